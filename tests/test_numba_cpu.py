"""The CPU kernels on hand-built structures, against dense float64: every road through them, and what they promise."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import oracle
import pytest

from sparseattn import pool
from sparseattn.index_ops.masks import pack
from sparseattn.kernels import numba_cpu
from sparseattn.kernels.numba_cpu import layout
from sparseattn.pattern import Pattern
from sparseattn.structure import BlockCSR, Order

PACKAGE = Path(numba_cpu.__file__).parents[2]
EPS = {"float32": 2**-23, "float64": 2**-52, "float16": 2**-10, "bfloat16": 2**-7}


def blocks(allowed, block_size, **fields):
    """A BlockCSR of a dense bool ([batch, heads,] n_queries, n_keys) in slots; every partial block has its own mask."""
    allowed = allowed.reshape((1,) * (4 - allowed.ndim) + allowed.shape)
    (block_q, block_k), (n_q, n_k) = block_size, allowed.shape[2:]
    inside = np.pad(np.ones((n_q, n_k), bool), ((0, -n_q % block_q), (0, -n_k % block_k)))
    indptr, indices, ids, masks = [], [], [], [np.ones(block_size, bool)]
    for lead in np.ndindex(allowed.shape[:2]):
        padded = np.pad(allowed[lead], ((0, -n_q % block_q), (0, -n_k % block_k)))
        line = [len(indices)]
        for row in range(padded.shape[0] // block_q):
            for col in range(padded.shape[1] // block_k):
                here = np.s_[row * block_q:(row + 1) * block_q, col * block_k:(col + 1) * block_k]
                if not padded[here].any():
                    continue
                indices.append(col)
                full = (padded[here] | ~inside[here]).all()
                ids.append(0 if full else len(masks))
                if not full:
                    # bits beyond the end mean nothing, so set them: a kernel that trusts them fails
                    masks.append(padded[here] | ~inside[here])
            line.append(len(indices))
        indptr.append(line)
    octets = np.packbits(np.array(masks), axis=2, bitorder="little")
    octets = np.pad(octets, ((0, 0), (0, 0), (0, -octets.shape[2] % 4)))
    return BlockCSR(fields.pop("shape", (n_q, n_k)), block_size,
                    np.array(indptr, np.int64).reshape(allowed.shape[:2] + (-1,)), np.array(indices, np.int32),
                    np.array(ids, np.int32), octets.view(np.uint32), **fields)


def pattern(*parts, batch=1, n_heads=1):
    return Pattern.from_parts(parts, parts[0].shape, batch, n_heads)


def window(n_queries, n_keys, width):
    i, j = np.arange(n_queries)[:, None] + n_keys - n_queries, np.arange(n_keys)
    return (j <= i) & (j > i - width)


def inputs(n_queries, n_keys, *, batch=2, n_heads=4, n_kv_heads=2, qk_dim=24, v_dim=24, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(n_heads, n_queries, qk_dim), (n_kv_heads, n_keys, qk_dim), (n_kv_heads, n_keys, v_dim),
              (n_heads, n_queries, v_dim)]
    return [rng.standard_normal((batch, *s)).astype(np.float32).astype(dtype) for s in shapes]


def run(q, k, v, dout, chosen, dlse=None):
    scale = q.shape[3] ** -0.5
    out, lse = numba_cpu.forward(q, k, v, chosen, scale=scale)
    return out, lse, *numba_cpu.backward(dout, q, k, v, out, lse, chosen, scale=scale, dlse=dlse)[:3]


def check(q, k, v, dout, chosen, dlse=None, allowed=None):
    """Forward and backward against float64; the error allowed is what a few roundings of the largest entry make."""
    got = run(q, k, v, dout, chosen, dlse)
    allowed = chosen.to_dense() if allowed is None else allowed
    wide = [x.astype(np.float64) for x in (q, k, v, dout)]
    want = *oracle.attention(*wide[:3], allowed), *oracle.gradients(wide[3], *wide[:3], allowed, dlse=dlse)[:3]
    rounding = EPS[q.dtype.name]
    for name, a, b, x in zip(("out", "lse", "dq", "dk", "dv"), got, want, (q, None, q, k, v), strict=True):
        assert x is None or a.dtype == x.dtype
        assert a.shape == b.shape
        a = a.astype(np.float64)
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite], err_msg=name)
        size = max(np.abs(b[finite]).max(initial=0), 1)
        fine = EPS["float32"] if name == "lse" and rounding > EPS["float32"] else rounding
        assert np.abs(a[finite] - b[finite]).max(initial=0) <= 12 * fine * size, name
    return got


@pytest.mark.parametrize("block_size", [(64, 64), (32, 16), (20, 24), (8, 128), (16, 1), (1, 16), (1, 1)])
@pytest.mark.parametrize("sizes", [(130, 130), (70, 150), (150, 70), (1, 90), (90, 1)])
def test_windows_in_blocks_of_any_size(block_size, sizes):
    check(*inputs(*sizes), pattern(blocks(window(*sizes, 40), block_size)))


@pytest.mark.parametrize(("qk_dim", "v_dim"), [(1, 1), (3, 20), (64, 8), (33, 80)])
@pytest.mark.parametrize("block_size", [(32, 32), (1, 8), (1, 1)])
def test_any_head_dim(qk_dim, v_dim, block_size):
    check(*inputs(60, 70, qk_dim=qk_dim, v_dim=v_dim), pattern(blocks(window(60, 70, 25), block_size)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("block_size", [(32, 32), (1, 8), (1, 1)])
def test_dtypes_in_one_part_and_in_two(dtype, block_size):
    near, far = window(100, 100, 30), window(100, 100, 70) & ~window(100, 100, 30)
    dlse = np.random.default_rng(1).standard_normal((2, 4, 100)).astype(np.float32)
    arrays = inputs(100, 100, dtype=dtype)
    check(*arrays, pattern(blocks(near, block_size)), dlse)
    listed = Order.listed(np.arange(100), 100)
    check(*arrays, pattern(blocks(near, (32, 32)), blocks(far, block_size, k_order=listed)), dlse)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(6, 1), (6, 2), (4, 4), (1, 1)])
@pytest.mark.parametrize("block_size", [(16, 16), (1, 8), (1, 1)])
def test_grouped_heads_and_structures_by_head_and_batch(n_heads, n_kv_heads, block_size):
    rng = np.random.default_rng(0)
    arrays = inputs(50, 60, n_heads=n_heads, n_kv_heads=n_kv_heads)
    for lead in ((1, 1), (1, n_kv_heads), (2, 1), (2, n_heads)):
        allowed = rng.random((*lead, 50, 60)) < 0.2
        check(*arrays, pattern(blocks(allowed, block_size), batch=lead[0], n_heads=lead[1]))


@pytest.mark.parametrize("block_size", [(32, 16), (1, 8), (1, 1)])
@pytest.mark.parametrize("lead", [(1, 1), (1, 4), (2, 4)])
def test_listed_orders_with_nobody_slots_and_repeated_keys(block_size, lead):
    rng = np.random.default_rng(0)
    q_order = np.stack([rng.permutation(np.r_[np.arange(80), [-1] * 7])[:85] for _ in range(lead[0] * lead[1])])
    # each key stands in two slots; disjoint columns for them keep every pair once
    k_order = np.stack([np.r_[rng.permutation(60), rng.permutation(60), -1, -1] for _ in range(lead[0] * lead[1])])
    allowed = np.zeros((*lead, 85, 122), bool)
    for at, (rows, cols) in zip(np.ndindex(lead), zip(q_order, k_order, strict=True), strict=True):
        half = rng.random((80, 60)) < 0.5
        later = np.arange(122) >= 60
        somebody = (rows >= 0)[:, None] & (cols >= 0)
        allowed[at] = (rng.random((85, 122)) < 0.3) & (half[rows][:, cols] == later) & somebody
    orders = [Order.listed(x.reshape(*lead, -1), n) for x, n in ((q_order, 80), (k_order, 60))]
    part = blocks(allowed, block_size, shape=(80, 60), q_order=orders[0], k_order=orders[1])
    check(*inputs(80, 60), pattern(part, batch=lead[0], n_heads=lead[1]))


def test_affine_orders():
    residues = Order.affine((90,), [(0, 4, 1), (0, 23, 4)])
    part = blocks(np.kron(np.eye(4, dtype=bool), window(23, 23, 9)), (16, 16), shape=(90, 90), q_order=residues,
                  k_order=residues)
    check(*inputs(90, 90), pattern(part))


def test_parts_about_some_heads_only():
    parts = [blocks(window(70, 70, 20), (16, 16), heads=np.array([0, 3], np.int32)),
             blocks(window(70, 70, 9), (1, 1), heads=np.array([1], np.int32))]
    check(*inputs(70, 70), pattern(*parts, n_heads=4))
    per_head = np.stack([window(70, 70, w) for w in (5, 50)])[None]
    check(*inputs(70, 70), pattern(blocks(per_head, (16, 16), heads=np.array([1, 2], np.int32)), n_heads=4))


def test_nothing_to_attend():
    empty = pattern(blocks(np.zeros((40, 30), bool), (16, 16)))
    check(*inputs(40, 30), empty)
    for sizes in ((0, 30), (30, 0), (0, 0)):
        check(*inputs(*sizes), Pattern((), sizes))
        check(*inputs(*sizes), Pattern((blocks(np.zeros(sizes, bool), (16, 16)),), sizes))
    check(*inputs(40, 30, batch=0), empty)


def test_a_long_row_is_cut_into_segments_and_merged(monkeypatch):
    allowed = window(60, 900, 40)
    allowed[3] = allowed[:, 7] = True
    arrays = inputs(60, 900)
    for block_size in ((16, 16), (1, 8), (1, 1)):
        monkeypatch.setattr(layout, "SEGMENT", 4096)
        whole = pattern(blocks(allowed, block_size))
        check(*arrays, whole)
        assert layout.work(whole.parts[0], 8).n_segments == 0
        monkeypatch.setattr(layout, "SEGMENT", 64)
        monkeypatch.setattr(layout, "CHUNK_PAIRS", 1 << 10)
        cut = pattern(blocks(allowed, block_size))
        check(*arrays, cut)
        assert layout.work(cut.parts[0], 8).n_segments > 1
        later = blocks(window(60, 900, 90) & ~allowed, (16, 16), q_order=Order.listed(np.arange(60), 60))
        check(*arrays, pattern(cut.parts[0], later))


@pytest.mark.parametrize("block_size", [(16, 16), (64, 64), (1, 8), (1, 1)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_dead_slots_never_touch_arithmetic(block_size, bad):
    rng = np.random.default_rng(0)
    for n_queries, n_keys in ((70, 90), (90, 70)):
        allowed = rng.random((n_queries, n_keys)) < 0.4
        allowed[rng.random(n_queries) < 0.2] = False
        allowed[:, rng.random(n_keys) < 0.2] = False
        allowed[:, -9:] = False
        q, k, v, dout = inputs(n_queries, n_keys)
        clean = run(q, k, v, dout, pattern(blocks(allowed, block_size)))
        k[:, :, ~allowed.any(0)] = v[:, :, ~allowed.any(0)] = bad
        q[:, :, ~allowed.any(1)] = dout[:, :, ~allowed.any(1)] = bad
        dirty = run(q, k, v, dout, pattern(blocks(allowed, block_size)))
        for a, b in zip(clean, dirty, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("block_size", [(16, 16), (1, 1)])
def test_huge_scores_give_no_nan(block_size):
    q, k, v, dout = inputs(60, 60)
    for part in (window(60, 60, 20), window(60, 60, 60)):
        for x in run(q * np.float32(1e15), k * np.float32(1e15), v, dout, pattern(blocks(part, block_size))):
            assert not np.isnan(x).any()


def test_a_query_with_one_key_has_no_gradient_at_all():
    q, k, v, dout = inputs(40, 40)
    _, _, dq, dk, _ = run(q, k, v, dout, pattern(blocks(np.eye(40, dtype=bool), (16, 16))))
    assert not dq.any() and not dk.any()


@pytest.mark.parametrize("block_size", [(32, 32), (1, 1)])
def test_any_scale(block_size):
    chosen, (q, k, v, dout) = pattern(blocks(window(70, 70, 30), block_size)), inputs(70, 70)
    for scale in (-0.5, 0.0, 1.5):
        out, lse = numba_cpu.forward(q, k, v, chosen, scale=scale)
        got = out, lse, *numba_cpu.backward(dout, q, k, v, out, lse, chosen, scale=scale)[:3]
        allowed = chosen.to_dense()
        want = (*oracle.attention(q, k, v, allowed, scale), *oracle.gradients(dout, q, k, v, allowed, scale)[:3])
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_no_heads_give_zero_gradients():
    chosen = pattern(blocks(window(70, 70, 30), (16, 16)))
    for grad in run(*inputs(70, 70, n_heads=0, n_kv_heads=1), chosen)[3:]:
        assert not grad.any()


@pytest.mark.parametrize("block_size", [(32, 32), (1, 1)])
def test_strided_inputs_and_out(block_size):
    chosen = pattern(blocks(window(80, 80, 30), block_size))
    q, k, v, dout = inputs(80, 80, qk_dim=32, v_dim=32)
    want = run(q, k, v, dout, chosen)
    token_first = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k, v, dout)]
    wide = np.zeros((2, 4, 160, 1024), np.float32)  # rows 8 KiB apart, in reverse order
    wide[:, :, 159::-2, :32] = q
    columns = [np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3) for x in (q, k, v, dout)]
    for case in (token_first, [wide[:, :, 159::-2, :32], *token_first[1:]], columns):
        for a, b in zip(run(*case, chosen), want, strict=True):
            np.testing.assert_array_equal(a, b)
    for out in (np.full((2, 80, 4, 32), np.nan, np.float32).transpose(0, 2, 1, 3),
                np.full((2, 4, 32, 80), np.nan, np.float32).swapaxes(2, 3)):
        given, _ = numba_cpu.forward(q, k, v, chosen, scale=32**-0.5, out=out)
        assert given is out
        np.testing.assert_array_equal(out, want[0])


def several_parts():
    """Windows, scattered pairs and permuted blocks, with a row and a column that are cut."""
    rng = np.random.default_rng(0)
    order = Order.listed(rng.permutation(400), 400)
    local = blocks(window(400, 400, 50), (32, 32))
    scattered = blocks((rng.random((400, 400)) < 0.05) & ~window(400, 400, 400), (1, 1))
    there = window(400, 400, 400) & ~window(400, 400, 50) & (rng.random((400, 400)) < 0.5)
    permuted = blocks(there[np.ix_(order.tokens[0, 0], order.tokens[0, 0])], (32, 32), q_order=order, k_order=order)
    return pattern(local, scattered, permuted)


def test_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_PAIRS", 1 << 10)
    monkeypatch.setattr(layout, "SEGMENT", 64)
    chosen, arrays = several_parts(), inputs(400, 400)
    for dtype in (np.float32, np.float16):
        cast = [x.astype(dtype) for x in arrays]
        results = []
        for n in (1, 2, 3, 5):
            with pool.threads(n):
                results += [run(*cast, chosen), run(*cast, chosen)]
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_python_threads_may_call_at_once():
    chosen, arrays = several_parts(), inputs(400, 400)
    want, results = run(*arrays, chosen), []
    work = lambda: results.extend(run(*arrays, chosen) for _ in range(5))  # noqa: E731
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 20
    for other in results:
        for a, b in zip(want, other, strict=True):
            np.testing.assert_array_equal(a, b)


def _child(queue, arrays, chosen):
    queue.put(run(*arrays, chosen))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_fork_after_use():
    chosen, arrays = several_parts(), inputs(400, 400)
    with pool.threads(2):
        want = run(*arrays, chosen)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_child, args=(queue, arrays, chosen))
        child.start()
        got = queue.get(timeout=60)
        child.join(60)
    assert child.exitcode == 0
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_number_of_threads():
    pool.set_threads(3)
    try:
        assert pool.n_threads() == 3
        with pool.threads(1):
            assert pool.n_threads() == 1
        assert pool.n_threads() == 3
    finally:
        pool.set_threads(None)
    for n, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="the number of threads is"):
            pool.set_threads(n)
        with pytest.raises(error, match="the number of threads is"), pool.threads(n):
            pass


CALL = """
import sys
from sparseattn.kernels import numba_cpu
assert "numba" not in sys.modules
from sparseattn.kernels.numba_cpu import sums
sums.row_dots("float32")
stats = sums.row_dots.dispatcher.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), stats.cache_path)
"""


def call(package, home, **environment):
    """(cache hits, misses, cache folder) of a process that compiles the quickest kernel that takes steps of another
    file."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(package), **environment}
    printed = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=False,
                             cwd=home)
    assert printed.returncode == 0, printed.stderr
    return printed.stdout.split()


def test_compiled_code_is_kept_also_for_a_read_only_package_and_dropped_when_a_file_changes(tmp_path):
    copy = tmp_path / "site"
    shutil.copytree(PACKAGE, copy / "sparseattn", ignore=shutil.ignore_patterns("__pycache__", "demo"))
    # a file where Numba would make its cache folder: not writable even for root
    (copy / "sparseattn/kernels/numba_cpu/__pycache__").write_text("")
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    hits, misses, folder = call(copy, tmp_path, **environment)
    assert (hits, misses) == ("0", "1")
    assert str(copy) not in folder.rpartition("sparseattn")[0] or not folder.startswith(str(copy))
    assert call(copy, tmp_path, **environment)[:2] == ["1", "0"]
    steps = copy / "sparseattn/kernels/numba_cpu/steps.py"
    steps.write_text(steps.read_text() + "\n# changed\n")
    assert call(copy, tmp_path, **environment)[:2] == ["0", "1"]


def test_one_compilation_a_dtype_whatever_layout_or_pattern():
    from sparseattn.kernels.numba_cpu import row_forward, tile_forward

    run(*inputs(40, 40), several_parts_of(40))
    for kernel in (tile_forward.tile_forward, row_forward.row_forward):
        assert len(kernel.dispatcher.overloads) <= 4


def several_parts_of(n):
    return pattern(blocks(window(n, n, 9), (16, 16)), blocks(window(n, n, 20) & ~window(n, n, 9), (1, 1)))


def test_estimate_counts_what_is_kept_and_stored():
    q, k, v, _ = inputs(100, 100)
    allowed = window(100, 100, 30)
    forward = numba_cpu.estimate(q, k, v, pattern(blocks(allowed, (32, 32))))
    backward = numba_cpu.estimate(q, k, v, pattern(blocks(allowed, (32, 32))), backward=True)
    (part,) = forward.parts
    assert (part.kernel, part.block_size, part.order) == ("tile_forward", (32, 32), "as they lie")
    assert part.kept_pairs == allowed.sum() * 8
    assert part.stored_pairs == part.n_blocks * 32 * 32 >= part.kept_pairs
    assert forward.flops == 4 * 24 * part.stored_pairs
    assert backward.flops == 10 * 24 * part.stored_pairs
    assert 0 < forward.seconds < backward.seconds
    assert numba_cpu.estimate(q, k, v, pattern(blocks(allowed, (1, 1)))).parts[0].kernel == "row_forward"


def test_prepare_and_warm():
    chosen = several_parts()
    numba_cpu.prepare(chosen, backward=True)
    check(*inputs(400, 400), chosen)
    numba_cpu.warm(("float32",), (8,))


def test_why_not_names_the_cure():
    assert numba_cpu.why_not(None, None, None, None) is None
    q, k, v, _ = inputs(8, 8)
    assert numba_cpu.why_not(q, k, v, None) is None
    assert "convert q" in numba_cpu.why_not(q.astype(np.int32), k, v, None)
    assert "byte order" in numba_cpu.why_not(q.astype(">f4"), k, v, None)


def test_work_items_cover_every_row_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        allowed = rng.random((rng.integers(1, 300), 40)) < rng.random()
        part = replace(blocks(allowed, (1, 1)))
        work = layout.work(part, int(rng.integers(1, 9)))
        rows = np.zeros(part.n_rows, int)
        for first, stop, segment, _, _ in work.items:
            rows[first:stop] += segment == 0
        assert (rows == 1).all()


@pytest.fixture(scope="module")
def registers():
    """Small entries over single intrinsics, compiled for float32 and float64 as they are called."""
    from numba import njit  # noqa: TID251

    from sparseattn.kernels.numba_cpu import lanewise, simd, steps

    load, store, data, lanes_of, where_bits = simd.load, simd.store, simd.data, simd.lanes_of, simd.where_bits
    exp, tanh, matmul = lanewise.exp, lanewise.tanh, steps.matmul

    @njit
    def exp_of(x, to):
        for i in range(0, x.size, lanes_of(data(x))):
            store(data(to), i, exp(load(data(x), i)))

    @njit
    def tanh_of(x, to):
        for i in range(0, x.size, lanes_of(data(x))):
            store(data(to), i, tanh(load(data(x), i)))

    @njit
    def product(c, a, a_row, a_step, b, n_rows, n_steps, add_to):
        matmul(data(c), c.shape[1], data(a), a_row, a_step, data(b), b.shape[1], n_rows, c.shape[1], n_steps, add_to)

    @njit
    def copy(x, to):
        for i in range(0, x.size, lanes_of(data(x))):
            store(data(to), i, load(data(x), i))

    @njit
    def choose(bits, a, b):
        store(data(a), 0, where_bits(bits, load(data(a), 0), load(data(b), 0)))

    return {"exp": exp_of, "tanh": tanh_of, "product": product, "copy": copy, "choose": choose}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh(registers, dtype):
    rng = np.random.default_rng(0)
    # registers with all lanes near 0, all far, and mixed take different roads
    for spread in (1e-30, 1e-3, 0.6, 2.0, 30.0, 1e5):
        x = (rng.uniform(-1, 1, 1 << 12) * spread).astype(dtype)
        got = np.empty_like(x)
        registers["tanh"](x, got)
        exact = np.tanh(x.astype(np.longdouble))
        assert (np.abs(got - exact) / np.spacing(np.abs(exact).astype(dtype))).max() < 2.5, spread
    x = np.tile(np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype), 16)
    got = np.empty_like(x)
    registers["tanh"](x, got)
    np.testing.assert_array_equal(got, np.tanh(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_of_scores(registers, dtype):
    from sparseattn.kernels.numba_cpu.lanewise import LOWEST

    lowest = LOWEST[8 * np.dtype(dtype).itemsize]
    x = np.random.default_rng(0).uniform(lowest, 0, 1 << 13).astype(dtype)
    x[:1024] = np.linspace(-1, 0, 1024)
    got = np.empty_like(x)
    registers["exp"](x, got)
    exact = np.exp(x.astype(np.longdouble))
    units = np.abs(got - exact) / np.spacing(exact.astype(dtype))
    assert (units < 1.3 - x / 4).all()  # that log2(e) is rounded counts with x
    special = np.full(16, -np.inf, dtype)
    special[:6] = [0, np.nan, np.nextafter(dtype(lowest), dtype(-np.inf)), 1.25 * lowest, 2 * lowest, -1e30]
    got = np.empty_like(special)
    registers["exp"](special, got)
    assert got[0] == 1 and np.isnan(got[1])
    assert (got[2:] == 0).all() and not np.signbit(got[2:]).any()


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_any_number_of_rows(registers, transposed):
    rng = np.random.default_rng(0)
    for n_rows in (*range(18), 64, 127):
        for n_cols in (16, 48, 64, 112):
            for n_steps in (0, 1, 7):
                a, b = rng.standard_normal((n_rows, n_steps)), rng.standard_normal((n_steps, n_cols))
                c = rng.standard_normal((n_rows + 1, n_cols)).astype(np.float32)
                stored = np.ascontiguousarray((a.T if transposed else a).astype(np.float32)).reshape(-1)
                rows, steps = (1, n_rows) if transposed else (n_steps, 1)
                for add in (False, True):
                    got = c.copy()
                    registers["product"](got, stored, rows, steps, b.astype(np.float32), n_rows, n_steps, add)
                    np.testing.assert_allclose(got[:n_rows], a @ b + (c[:n_rows] if add else 0), atol=1e-4)
                    np.testing.assert_array_equal(got[n_rows], c[n_rows])


def test_sixteen_bits_round_to_nearest_even_and_come_back_exactly(registers):
    every = np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 1 << 32, 1 << 16, np.uint64).astype(np.uint32).view(np.float32)
    wide[~np.isfinite(wide)] = np.inf
    for stored, carried in ((np.float16, np.uint16), (ml_dtypes.bfloat16, np.int16)):
        back = np.empty(every.size, np.float32)
        registers["copy"](every.view(carried), back)
        np.testing.assert_array_equal(back, every.view(stored).astype(np.float32))
        # ties: halfway between neighbours
        finite = back[:0x7B00].astype(np.float64)
        values = np.concatenate([wide, ((finite[:-1] + finite[1:]) / 2).astype(np.float32)])
        values = values[: values.size // 16 * 16]
        got = np.empty(values.size, carried)
        registers["copy"](values, got)
        with np.errstate(over="ignore"):
            want = values.astype(stored)
        np.testing.assert_array_equal(got.view(stored).astype(np.float32), want.astype(np.float32))


def test_lanes_are_chosen_by_bits(registers):
    from sparseattn.kernels.numba_cpu.simd import VECTOR_BITS

    lanes = VECTOR_BITS // 32
    for bits in (0, 1, 0b1010_0101, 0xFFFF, 0x8001):
        a, b = np.ones(lanes, np.float32), np.full(lanes, -np.inf, np.float32)
        registers["choose"](np.uint16(bits), a, b)
        np.testing.assert_array_equal(a == 1, [bool(bits >> i & 1) for i in range(lanes)])


@pytest.mark.parametrize("block_q, block_k", [(64, 64), (16, 64), (33, 70), (1, 5), (128, 32), (48, 96)])
def test_many_masks_are_turned_like_few(block_q, block_k, monkeypatch):
    bits = np.random.default_rng(block_q).random((40, block_q, block_k)) < 0.2
    bits[3], bits[:, :, :4] = False, False
    few = layout._lane_masks(pack(bits), block_k)
    monkeypatch.setattr(layout, "MANY", 0)
    for got, expected in zip(layout._lane_masks(pack(bits), block_k), few):
        assert got.dtype == expected.dtype and np.array_equal(got, expected)
