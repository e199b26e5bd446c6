"""Questions beside the table of workloads: options, decoding, the host, the plain backend, blocks of 64, content."""

from __future__ import annotations

import time

import cupy
import numpy as np

import sparseattn as sa
from gpu_comparison import contest, peers, workloads
from gpu_comparison.contest import BACKWARD, FORWARD, beside_peers, ours_backward, ours_forward, pairs, prepared
from gpu_comparison.report import Question, Row
from sparseattn import patterns

OPTION_BAR, BIAS_BAR = 1.15, 1.30  # time over that of the plain call
DECODE_BAR = 0.75  # of the rate of reading
HOST_BAR = 40  # microseconds
PLAIN_BARS = 0.15, 0.1  # forward, backward: times as fast as cupy_raw


def options(shape, dtype, backward):
    """What each option adds to a causal call and to a window."""
    _, n_heads, n, _ = shape
    q, k, v, dout = (peers.shared(peers.random(*shape, dtype=dtype)) for _ in range(4))
    random = np.random.default_rng(0)
    table = cupy.asarray(random.standard_normal((n_heads, 1024)), np.float32)
    distances = cupy.asarray(np.minimum(np.arange(1024) // 32, 31)[::-1].copy(), np.int32)
    chosen = {
        "softcap": {"softcap": 30.0},
        "sinks": {"sinks": cupy.linspace(-1, 1, n_heads, dtype=np.float32)},
        "dropout": {"dropout": 0.1, "seed": 1},
        "bias alibi": {"bias": sa.bias.alibi(cupy.asarray(0.5 ** np.arange(1, n_heads + 1), np.float32))},
        "bias by_offset": {"bias": sa.bias.by_offset(table, left=1023)},
        "bias labels": {"bias": sa.bias.labels(table[:, :32].copy(), distances, left=1023)},
        "bias array (n, n)": {"bias": cupy.asarray(random.standard_normal((n, n), np.float32))},
    }
    for name, build in (("causal", lambda: patterns.causal(n)),
                        ("window 1024", lambda: patterns.sliding_window(n, left=1023))):
        pattern = prepared(build(), backward)
        plain = {}
        for option, arguments in {"plain": {}, **chosen}.items():
            for direction in ("forward", "backward")[:1 + backward]:
                job, _ = (ours_backward(q, k, v, dout, pattern, **arguments) if direction == "backward"
                          else ours_forward(q, k, v, pattern, **arguments))
                row = Row("options", f"{name}: {option}", direction, {"ours": peers.milliseconds(job)})
                plain.setdefault(direction, row.times["ours"])
                bar = None if option == "plain" else BIAS_BAR if option.startswith("bias") else OPTION_BAR
                row.questions.append(Question("time over the plain call's", row.times["ours"] / plain[direction], bar,
                                              at_most=True))
                yield row


def decode(dtype, batch=4, n_keys=32768, n_kv_heads=8, group=8, head_dim=128):
    """One query a head over a long cache: the share of the rate at which memory is read."""
    q = peers.random(batch, n_kv_heads * group, 1, head_dim, dtype=dtype)
    k, v = (peers.random(batch, n_kv_heads, n_keys, head_dim, dtype=dtype) for _ in range(2))
    pattern = prepared(patterns.dense(1, n_keys), False)
    workload = workloads.Workload(f"decode, {n_keys} keys, group {group}", lambda: pattern, None, causal=False)
    row, = beside_peers("decode", workload, q, k, v, None, dtype)
    n_bytes = 2 * k.numel() * k.element_size()
    big = peers.random(1 << 30, dtype="float32")
    rate = big.numel() * big.element_size() / peers.milliseconds(big.sum)
    row.questions.insert(0, Question("of the rate of reading", n_bytes / row.times["ours"] / rate, DECODE_BAR, unit=""))
    row.questions.append(Question("read", n_bytes / row.times["ours"] / 1e6, unit="GB/s"))
    yield row


def host(dtype, calls=2000):
    """Wall time of small calls that nobody waits for: what the host does for a pattern seen before."""
    q, k, v, dout = (peers.shared(peers.random(1, 8, 64, 64, dtype=dtype)) for _ in range(4))
    chosen = {"": {}, ", softcap": {"softcap": 30.0}, ", dropout": {"dropout": 0.1, "seed": 1},
              ", sinks": {"sinks": cupy.zeros(8, np.float32)},
              ", by_offset": {"bias": sa.bias.by_offset(cupy.ones((8, 64), np.float32), left=63)}}
    for name, build in (("causal", lambda: patterns.causal(64)), ("strided", lambda: patterns.strided(64, stride=8))):
        pattern = prepared(build(), True)
        for option, arguments in chosen.items():
            for direction in ("forward", "backward"):
                job, _ = (ours_backward(q, k, v, dout, pattern, **arguments) if direction == "backward"
                          else ours_forward(q, k, v, pattern, **arguments))
                bar = HOST_BAR if direction == "forward" and not option and name == "causal" else None
                took = Question("host", _microseconds(job, calls), bar, at_most=True, unit="us a call")
                yield Row("host", f"small {name} call{option}", direction, questions=[took])


def _microseconds(job, calls):
    """Least of five, of a few hundred calls each: the queue of launches must not fill up."""
    least = np.inf
    for _ in range(5):
        cupy.cuda.Device().synchronize()
        begin = time.perf_counter()
        for _ in range(calls // 5):
            job()
        least = min(least, (time.perf_counter() - begin) / (calls // 5))
    return least * 1e6


def plain(shape, backward):
    """The plain backend beside the fast one, in float32."""
    arrays = [peers.shared(peers.random(*shape, dtype="float32")) for _ in range(4)]
    built = workloads.positional(shape[2])
    for workload in (w for w in built if w.name in ("dense", "causal", "window 1024, causal", "strided 128, causal")):
        pattern = workload.pattern()
        for number, (direction, flop) in enumerate((("forward", FORWARD), ("backward", BACKWARD))[:1 + backward]):
            row = Row("plain", workload.name, direction, flop=flop * pairs(pattern, arrays[0]) * shape[3])
            make, results = ours_backward if number else ours_forward, {}
            for name in ("numba_cuda", "cupy_raw"):
                job, results[name] = make(*arrays[:4 if number else 3], prepared(pattern, backward, name), name)
                row.times[name] = peers.milliseconds(job)
            row.differs["numba_cuda"] = peers.difference(results["numba_cuda"], map(peers.tensor, results["cupy_raw"]))
            row.ask("cupy_raw", PLAIN_BARS[number], ours="numba_cuda")
            yield row


def blocks(shape, dtype, backward, group=8):
    """Patterns whose blocks FlexAttention's tiles do not fit, beside Flex at its best block size; grouped heads."""
    _, n_heads, n, head_dim = shape
    q, dout = (peers.random(1, n_heads, n, head_dim, dtype=dtype) for _ in range(2))
    k, v = (peers.random(1, max(n_heads // group, 1), n, head_dim, dtype=dtype) for _ in range(2))
    made = workloads.in_blocks(n, q.float().cpu().numpy(), k.float().cpu().numpy())
    for workload in made:
        per_head = workload.pattern().n_heads > 1
        yield from beside_peers("blocks", workload, q, k, v, dout if backward else None, dtype, per_head=per_head)
        peers.free_memory()


def content(shape, dtype, only=None, group=8):
    """Wall time of a training step whose pattern follows from its arrays: choosing it, its first call and gradient, and
    those of a pattern seen before; the whole step beside that of dense causal attention."""
    _, n_heads, n, head_dim = shape
    made = [peers.random(1, n_heads, n, head_dim, dtype=dtype) for _ in range(4)]
    attend = peers.sdpa("SDPA flash", True)
    dense = sum(peers.milliseconds(job) for job, _ in (peers.forward(attend, *made[:3]), peers.backward(attend, *made)))
    q, k, v, dout = map(peers.shared, made)
    for name, (heads, choose) in by_content(q, k, group).items():
        if only and not name.startswith(tuple(only)):
            continue
        steps = [_step(q, k[:, :heads], v[:, :heads], dout, choose) for _ in range(4)][1:]  # the first one compiles
        new, again = np.median(steps, axis=0)
        for part, first, later in zip(("choosing", "forward", "backward"), new, again):
            seen = {} if part == "choosing" else {"seen before": later}
            yield Row("content", name, part, {"a new pattern": first, **seen})
        row = Row("content", name, "whole step", {"ours": new.sum(), "SDPA flash, dense": dense})
        row.ask("SDPA flash, dense")
        yield row
        peers.free_memory()


def by_content(q, k, group):
    """Name -> (k/v heads, what chooses a pattern) of families that look at q and k, CuPy's."""
    n_heads, n, head_dim = q.shape[1:]
    kv_heads, random = max(n_heads // group, 1), cupy.random.default_rng(0)
    scores = random.random((1, kv_heads, n, n // 64), np.float32)
    weights = random.random((1, kv_heads, n, (n - 32) // 16 + 1), np.float32).repeat(group, axis=1).astype(np.float16)
    means = random.standard_normal((n_heads, n // 64, head_dim), np.float32)
    fewer, chunks = (q[:, :kv_heads], k[:, :kv_heads]), {"chunk_length": 64, "causal": True}
    return {
        "top_k, 64 keys": (kv_heads, lambda: patterns.top_k(*fewer, n_selected=64, causal=True)),
        "top_k, 64 keys, each head": (kv_heads, lambda: patterns.top_k(q, fewer[1], n_selected=64, causal=True)),
        "gate, 16 blocks of 64": (kv_heads, lambda: patterns.from_block_scores(scores, block_size=(1, 64), k=16)),
        "NSA selection, 16 of 64": (kv_heads, lambda: patterns.nsa_selection(
            weights, n_kv_heads=kv_heads, n_tokens=n, compress_block=32, compress_stride=16, select_block=64,
            n_selected=16)),
        "MoBA, 3 of 512": (n_heads, lambda: patterns.moba(q, k, chunk_size=512, top_k=3)),
        "LSH, chunks of 64": (n_heads, lambda: patterns.lsh(q, k, n_buckets=[2, n // 64], n_hashes=1, **chunks)),
        "LSH, 4 rounds": (n_heads, lambda: patterns.lsh(q, k, n_buckets=[2, n // 64], n_hashes=4, **chunks)),
        "clusters of 64": (n_heads, lambda: patterns.clusters(q, k, means, window=64, causal=True)),
        "XAttention": (n_heads, lambda: patterns.xattention(q, k, stride=8, threshold=0.9)),
    }


def _step(q, k, v, dout, choose):
    """Milliseconds of choosing, attending and the gradient; then of the last two once more."""
    chosen, pattern = _clock(choose)
    times = []
    for first in (chosen, 0.0):
        forward, (out, lse) = _clock(sa.attend, q, k, v, pattern, return_lse=True, backend=contest.BACKEND)
        backward, _ = _clock(sa.attend_backward, dout, q, k, v, out, lse, pattern, backend=contest.BACKEND)
        times.append((first, forward, backward))
    return times


def _clock(job, *arguments, **options):
    """Milliseconds, and what the job returns."""
    cupy.cuda.Device().synchronize()
    begin, found = time.perf_counter(), job(*arguments, **options)
    cupy.cuda.Device().synchronize()
    return (time.perf_counter() - begin) * 1e3, found
