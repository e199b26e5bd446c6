"""One workload beside its peers: checked, timed, asked."""

from __future__ import annotations

import sparseattn as sa
from gpu_comparison import peers
from gpu_comparison.report import Row

BACKEND = "cupy_raw"
FORWARD, BACKWARD = 4, 10  # FLOP a pair and column
FLOAT32_BARS = {"dense": (1.2, 1.0), "causal": (1.2, 1.0)}  # to SDPA's memory-efficient kernel
AGREE = {"float16": 2e-2, "bfloat16": 5e-2, "float32": 5e-3}  # of the largest entry


def prepared(pattern, backward, backend=BACKEND):
    return pattern.prepare(backend, backward=backward).to("cuda")


def ours_forward(q, k, v, pattern, backend=BACKEND, **options):
    """(job, its results) of CuPy arrays."""
    def job():
        return sa.attend(q, k, v, pattern, backend=backend, **options)
    return job, [job()]


def ours_backward(q, k, v, dout, pattern, backend=BACKEND, **options):
    out, lse = sa.attend(q, k, v, pattern, return_lse=True, backend=backend, **options)

    def job():
        return sa.attend_backward(dout, q, k, v, out, lse, pattern, backend=backend, **options)

    return job, job()[:3]


def pairs(pattern, q):
    """Of all batch items and heads of a call."""
    return pattern.nnz * q.shape[0] * q.shape[1] // (pattern.batch * pattern.n_heads)


def beside_peers(section, workload, q, k, v, dout, dtype, with_flex=True, per_head=False, judged=True):
    """Rows of a workload: forward, and backward where there is a dout."""
    pattern = prepared(workload.pattern(), dout is not None)
    rows = []
    for number, direction in enumerate(("forward", "backward")[:1 if dout is None else 2]):
        row = Row(section, workload.name, direction, flop=(FORWARD, BACKWARD)[number] * pairs(pattern, q) * q.shape[3])
        arrays = (q, k, v) if number == 0 else (q, k, v, dout)
        job, results = (ours_backward if number else ours_forward)(*map(peers.shared, arrays), pattern)
        row.times["ours"] = peers.milliseconds(job)
        for name, make in contestants(workload, q, k, v, dtype, with_flex, per_head).items():
            _run(row, name, make, peers.backward if number else peers.forward, arrays, results, dtype)
        _ask(row, workload, number, dtype, judged)
        rows.append(row)
    return rows


def contestants(workload, q, k, v, dtype, with_flex, per_head):
    """Name -> what makes a function of q, k, v."""
    found = {}
    if with_flex and dtype != "float32":
        for size in workload.block_sizes:
            found[f"Flex {size}"] = lambda size=size: peers.flex(q, k, v, workload.mod, size, per_head)
    if workload.causal is not None:
        for name in ("SDPA efficient",) if dtype == "float32" else ("SDPA cuDNN", "SDPA flash"):
            found[name] = lambda name=name: peers.sdpa(name, workload.causal)
    return found


def _run(row, name, make, way, arrays, expected, dtype):
    """Time a peer that runs; one whose results differ is named, not timed."""
    try:
        job, results = way(make(), *arrays)
        row.differs[name] = peers.difference(expected, results)
        del results
        if not row.differs[name] <= AGREE[dtype]:  # NaN too
            raise ValueError(f"its result differs from ours by {row.differs.pop(name):.1e} of the largest entry")
        row.times[name] = peers.milliseconds(job)
    except Exception as error:  # whatever a peer's compiler or choice of kernels raises
        row.missing[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _ask(row, workload, number, dtype, judged):
    flexes = [name for name in row.times if name.startswith("Flex")]
    if flexes:
        best = min(flexes, key=row.times.get)
        judge = judged and workload.bars is not None and dtype == "bfloat16"
        row.ask(best, workload.bars[number] if judge else None)
    bars = FLOAT32_BARS.get(workload.name) if judged and dtype == "float32" else None
    for name in row.times:
        if name.startswith("SDPA"):
            row.ask(name, bars[number] if bars and name == "SDPA efficient" else None)
