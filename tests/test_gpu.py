"""The GPU's backends: the tests of calls and options run there, and what only a GPU can get wrong.

Skipped, with the reason, where there is no CuPy or no device. `-n 12` (pytest-xdist) shares a device among workers.
"""

# ruff: noqa: F401
# The imported tests are collected here once more, with the `backend` of this file.

import ml_dtypes
import numpy as np
import pytest

import families
import oracle
import sparseattn as sa
import test_nsa
import test_options
import test_reformer
import test_routing
from devices import BACKENDS, CALLS, cupy_or_skip, moved, poisoned, there_and_back, usable_or_skip
from sparseattn import Pattern, patterns
from sparseattn.kernels import cupy_raw
from sparseattn.kernels.cupy_raw.run import target
from test_attend import (
    DTYPES,
    close,
    compared,
    drawn,
    test_axes,
    test_broadcast_and_read_only_inputs,
    test_dlse,
    test_equal_calls_give_equal_bits,
    test_families,
    test_head_layouts,
    test_huge_scores,
    test_no_heads_or_batch,
    test_out,
    test_out_beside_its_inputs_in_one_buffer,
    test_out_of_parts_in_16_bits,
    test_pattern_heads_are_kv_heads_or_query_heads,
    test_scale,
    test_strides,
    test_vjp_is_attend_and_its_backward,
    test_what_nobody_attends_touches_nothing,
)
from test_bias import (
    test_alibi,
    test_by_offset,
    test_by_offset_shared_by_heads,
    test_caches_that_grow,
    test_gradient_in_the_dtype_of_the_table,
    test_labels_of_distances,
    test_labels_of_pairs,
    test_largest_gradient_of_a_table,
    test_log_count,
    test_log_count_is_the_logarithm_of_counts_as_a_bias,
    test_log_count_of_more_heads_than_the_pattern_has,
    test_nothing_counts,
    test_relative_2d,
)
from test_goldens import test_attention, test_decoding_with_a_cache
from test_goldens_fixed import (
    test_attention_sinks,
    test_bigbird_counts_blocks,
    test_longformer_with_global_projections,
    test_longt5_local,
    test_longt5_transient_global,
    test_pegasusx,
    test_prefix_lm,
)
from test_goldens_grids import (
    test_neighborhoods,
    test_single_axes,
    test_sum_of_axes,
    test_windows_of_the_second_version,
    test_windows_with_their_bias,
)
from test_goldens_reformer import (
    test_chunks_in_order,
    test_hashed,
    test_padding_among_the_buckets,
    test_padding_in_a_bucket_of_its_own,
)
from test_goldens_routing import test_routing as test_routing_as_published
from test_goldens_selection import (
    test_block_top_k,
    test_indexer,
    test_moba,
    test_nsa_by_the_rules_of_the_package,
    test_nsa_of_equal_blocks,
    test_nsa_variant_by_the_rules_of_the_package,
    test_quest,
    test_top_k,
)
from test_options import (
    test_16_bit_bias_and_sinks,
    test_all_together,
    test_array_that_is_shared,
    test_bias_of_minus_infinity_leaves_pairs_out,
    test_dropped_pairs,
    test_dropped_pairs_do_not_depend_on_blocks_orders_or_threads,
    test_each_alone,
    test_empty_rows_have_the_sink,
    test_equal_calls_give_equal_gradients_of_a_shared_array,
    test_grouped_heads_drop_by_query_head,
    test_merge_of_parts_takes_sinks_in_one_of_them,
    test_missing_axes_are_batch_and_head_0,
    test_no_queries_or_keys,
    test_shapes_and_strides_of_an_array,
    test_softcap_of_huge_scores,
)
from test_options import test_equal_calls_give_equal_bits as test_equal_calls_with_options_give_equal_bits

NARROW = [name for name in DTYPES if name != "float64"]
# (query heads a pattern head, query heads a kv head where the pattern has one, qk_dim, v_dim)
WIDE_LAYOUTS = [(2, 1, 256, 256), (1, 1, 256, 3), (1, 1, 33, 250), (4, 4, 192, 129), (2, 2, 96, 96), (20, 20, 128, 128)]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Name of a GPU's backend; as long as a test has it, calls take NumPy arrays to the GPU and back."""
    cupy_or_skip()
    name = usable_or_skip(request.param)
    for where, function in CALLS:
        monkeypatch.setattr(where, function, there_and_back(getattr(where, function)))
    return name


@pytest.fixture(params=BACKENDS)
def on_gpu(request):
    """Name of a GPU's backend, for tests that hold CuPy arrays themselves."""
    cupy_or_skip()
    return usable_or_skip(request.param)


def arrays_there(seed, mask, layout, dtype, **options):
    return moved(drawn(seed, mask, layout, DTYPES[dtype], **options))


def both_ways(q, k, v, dout, pattern, backend, **options):
    """(out, lse, dq, dk, dv, ...) of CuPy arrays, those that there are; memory starts as NaN."""
    with poisoned():
        out, lse = sa.attend(q, k, v, pattern, return_lse=True, backend=backend, **options)
        gradients = sa.attend_backward(dout, q, k, v, out, lse, pattern, backend=backend, **options)
    return [x for x in (out, lse, *gradients) if x is not None]


ROWS = oracle.scattered(40, 150, 0.1)  # too few pairs for tiles
WALKS = {
    "window": (lambda: patterns.sliding_window(150, left=40), oracle.sliding_window(150, left=40)),
    "strided": (lambda: patterns.strided(150, stride=12), oracle.strided(150, stride=12)),
    "rows": (lambda: Pattern.from_mask(ROWS[0, 0], block_size=(1, 16)), ROWS),
}


@pytest.mark.parametrize("n", [70, 1], ids=["tiles", "rows"])
def test_few_columns_of_float32_keep_every_bit(n, backend):
    """A query with one key has its value as it is."""
    q, k, v = np.random.default_rng(2).standard_normal((3, 2, 3, n, 20)).astype(np.float32)
    np.testing.assert_array_equal(sa.attend(q, k, v, patterns.sliding_window(n, left=0), backend=backend), v)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("layout", WIDE_LAYOUTS, ids=str)
@pytest.mark.parametrize("walk", WALKS)
def test_wide_heads_and_large_groups(walk, layout, dtype, backend):
    build, mask = WALKS[walk]
    compared(build(), mask, *drawn(5, mask, layout, DTYPES[dtype], batch=1), backend)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("layout", [*WIDE_LAYOUTS, (1, 1, 64, 64)], ids=str)
@pytest.mark.parametrize("walk", [*WALKS, "rows of 64"])
@pytest.mark.parametrize("backend", ["cupy_raw"], indirect=True)
def test_shapes_for_less_shared_memory(backend, walk, layout, dtype, monkeypatch):
    """What a GPU of compute capability 8.6 runs, on any."""
    monkeypatch.setattr(cupy_raw, "_target", lambda device: target(99 * 1024))
    build, mask = WALKS[walk.removesuffix(" of 64")]
    pattern = build().reblock((1, 64)) if walk == "rows of 64" else build()
    compared(pattern, mask, *drawn(5, mask, layout, DTYPES[dtype], batch=1), backend)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", ["dense(3, 9000)", "causal(70, 9000)", "globals(2300)", "dense(9000, 5)"])
def test_rows_that_are_cut(name, dtype, backend):
    pattern, mask = {
        "dense(3, 9000)": lambda: (patterns.dense(3, 9000).reblock((1, 64)), oracle.dense(3, 9000)),
        "causal(70, 9000)": lambda: (patterns.causal(70, 9000), oracle.causal(70, 9000)),
        "globals(2300)": lambda: (patterns.global_tokens(2300, [3, 900]), oracle.global_tokens(2300, [3, 900])),
        "dense(9000, 5)": lambda: (patterns.dense(9000, 5), oracle.dense(9000, 5)),
    }[name]()
    arrays = drawn(6, mask, (2, 2, 40, 24) if dtype == "float32" else (2, 1, 64, 64), DTYPES[dtype], batch=1)
    sinks = np.linspace(-1, 1, arrays[0].shape[1]).astype(np.float32)
    test_options.compared(pattern, mask, arrays, {"sinks": sinks}, {"sinks": sinks}, backend)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("lead, width", [(1, 64), (8, 64), (3, 20)])
def test_views_that_begin_anywhere(lead, width, dtype, backend):
    mask = oracle.strided(70, stride=8)
    wide = drawn(0, mask, (4, 2, 100, 100), DTYPES[dtype])
    compared(patterns.strided(70, stride=8), mask, *(x[..., lead:lead + width] for x in wide), backend)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("case", families.TABLE[::9], ids=lambda case: case.name)
def test_as_on_the_cpu(case, dtype, on_gpu):
    """Same options too: dropout leaves out the same pairs."""
    arrays = drawn(2, case.mask, (2, 2, 40, 40), DTYPES[dtype])
    ours, _, _ = test_options.options_of(("softcap", "bias", "sinks", "dropout"), arrays[0], case.mask)
    here = both_ways_here(*arrays, case.build(), **ours)
    there = both_ways(*moved(arrays), case.build().to("cuda"), on_gpu, **moved(ours))
    unit = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv", "dbias", "dsinks"), there, here, strict=True):
        a, b = (x.astype(np.float64) for x in (a.get(), b))
        assert np.array_equal(np.isfinite(a), np.isfinite(b)), name
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        # out is rounded to 16 bits before the backward reads it, on either side
        assert np.abs(a - b).max(initial=0) <= max(2 * unit, 2e-5) * np.abs(b).max(initial=1), name


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind", ["by_offset", "labels", "array"])
@pytest.mark.parametrize("name", ["strided", "causal", "window"])
def test_bias_over_many_tiles(name, kind, dtype, on_gpu):
    """Tiles whose pairs lie too far apart to be summed together, tiles beyond the table, tiles of one label."""
    n, random = 1500, np.random.default_rng(0)
    pattern = {"strided": lambda: patterns.strided(n, stride=50), "causal": lambda: patterns.causal(n),
               "window": lambda: patterns.sliding_window(n, left=130)}[name]()
    arrays = arrays_there(3, np.ones((1, 1, n, n), bool), (2, 2, 64, 64), dtype, batch=1)
    here, left = [x.get() for x in arrays], 200 if name == "causal" else n - 1
    table = random.standard_normal((2, left + 1)).astype(np.float32)
    distances = (np.arange(left + 1) // 30 % 4).astype(np.int32)  # farther ones have the first label

    def made(move):
        if kind == "array":
            return move(np.random.default_rng(1).standard_normal((2, n, n), np.float32))
        if kind == "by_offset":
            return sa.bias.by_offset(move(table), left=left)
        return sa.bias.labels(move(table[:, :4].copy()), move(distances), left=left)

    there = both_ways(*arrays, pattern.to("cuda"), on_gpu, bias=made(moved))
    wanted = both_ways_here(*here, pattern, bias=made(lambda x: x))
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv", "dbias"), there, wanted, strict=True):
        a, b = a.get().astype(np.float64), b.astype(np.float64)
        bound = 1e-5 if name == "lse" or dtype == "float32" else 2 * float(ml_dtypes.finfo(DTYPES[dtype]).eps)
        # sums of whole diagonals: what is off by rounding `out` to 16 bits adds up
        assert np.abs(a - b).max() <= (4 if name == "dbias" else 1) * bound * np.abs(b).max(), name


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [(1, 1, True, True), (2, 1, True, True), (1, 8, True, True), (1, 1, False, True)],
                         ids=["by heads and batch", "by heads", "by batch", "by queries too"])
@pytest.mark.parametrize("n, width, name", [(1500, 128, "causal"), (900, 64, "strided"), (1500, 96, "window"),
                                            (300, 192, "causal"), (300, 256, "window"), (900, 32, "causal")])
def test_shared_arrays_over_many_tiles(n, width, name, shape, dtype, on_gpu):
    """Of grouped heads: the gradient of an array beside that in float32 on the CPU, its bits those of another call."""
    pattern = {"strided": lambda: patterns.strided(n, stride=50), "causal": lambda: patterns.causal(n),
               "window": lambda: patterns.sliding_window(n, left=130)}[name]()
    arrays = arrays_there(3, np.ones((1, 1, n, n), bool), (8, 4, width, width), dtype)
    shape = *shape[:2], *(n if whole else 1 for whole in shape[2:])
    bias = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    there, again = (both_ways(*arrays, pattern.to("cuda"), on_gpu, bias=moved(bias))[-1].get() for _ in range(2))
    wanted = both_ways_here(*(x.get().astype(np.float32) for x in arrays), pattern, bias=bias)[-1].astype(np.float64)
    assert there.tobytes() == again.tobytes()
    assert np.abs(there - wanted).max() <= 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("walk", [*WALKS, "dense"])
def test_rows_of_unlike_size(walk, on_gpu):
    """In float32 each row is as exact as its own numbers allow, beside rows of the tile 2**50 times as large."""
    mask = oracle.dense(150) if walk == "dense" else WALKS[walk][1]
    pattern = patterns.dense(150) if walk == "dense" else WALKS[walk][0]()
    q, k, v, dout = drawn(4, mask, (2, 1, 64, 64), np.float32, batch=1)
    sizes = np.exp2(np.linspace(-20, 30, 150)).astype(np.float32)[:, None]
    v, dout = v * (1 if walk == "dense" else sizes), dout / sizes[-mask.shape[2]:]
    arrays = q * np.float32(1e-25), k * np.float32(1e25), v, dout
    there = both_ways(*moved(arrays), pattern.to("cuda"), on_gpu)
    q, k, v, dout = arrays
    exact = oracle.attention(q, k, v, mask) + oracle.gradients(dout, q, k, v, mask)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), there, exact, strict=True):
        if name != "lse":
            a, b = a.get()[..., 1:, :].astype(np.float64), b[..., 1:, :]  # the first query attends one key: its dq is 0
            assert (np.abs(a - b).max(-1) <= 2e-5 * np.abs(b).max(-1)).all(), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("on_gpu", ["cupy_raw"], indirect=True)
def test_a_query_with_one_key_has_no_gradient(on_gpu, dtype):
    """Its weight is 1 whatever the score is."""
    for pattern in (patterns.causal(130), patterns.strided(130, stride=12)):
        arrays = arrays_there(7, np.ones((1, 1, 130, 130), bool), (4, 2, 96, 40), dtype)
        _, _, dq, _, _ = both_ways(*arrays, pattern.to("cuda"), on_gpu)
        assert not dq[:, :, 0].any() and dq[:, :, 1].any()


def both_ways_here(q, k, v, dout, pattern, **options):
    out, lse = sa.attend(q, k, v, pattern, return_lse=True, backend="numba_cpu", **options)
    gradients = sa.attend_backward(dout, q, k, v, out, lse, pattern, backend="numba_cpu", **options)
    return [x for x in (out, lse, *gradients) if x is not None]


@pytest.mark.parametrize("dtype", NARROW)
def test_equal_bits_from_cut_rows_and_shared_values(dtype, on_gpu):
    n = 5000
    pattern = (patterns.sliding_window(n, left=50) | patterns.global_tokens(n, [0, 7])).to("cuda")
    shape = (2, n, 48)
    q, k, v, dout = moved([np.random.default_rng(i).standard_normal(shape).astype(DTYPES[dtype]) for i in range(4)])
    table = moved(np.random.default_rng(4).standard_normal((2, 90)).astype(np.float32))
    results = [both_ways(q, k, v, dout, pattern, on_gpu, bias=sa.bias.by_offset(table, left=80), dropout=0.1, seed=3)
               for _ in range(4)]
    for other in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", ["plain", "options"])
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_in_a_graph(dtype, walk, kind, on_gpu):
    """A call makes no use of the host's memory or of another stream, and waits for nothing."""
    cupy = cupy_or_skip()
    build, mask = WALKS[walk]
    pattern = build().to("cuda").prepare(on_gpu)
    arrays = arrays_there(0, mask, (4, 2, 64, 64), dtype)
    others = arrays_there(1, mask, (4, 2, 64, 64), dtype)
    table = cupy.asarray(np.random.default_rng(2).standard_normal((arrays[0].shape[1], 60)), np.float32)
    term, sinks = sa.bias.by_offset(table, left=50), cupy.linspace(-1, 1, arrays[0].shape[1], dtype=np.float32)
    options = {"softcap": 2.0, "bias": term, "sinks": sinks, "dropout": 0.2, "seed": 9} if kind == "options" else {}

    def run():
        out, lse = sa.attend(*arrays[:3], pattern, return_lse=True, backend=on_gpu, **options)
        return out, lse, *sa.attend_backward(arrays[3], *arrays[:3], out, lse, pattern, backend=on_gpu, **options)

    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        run()
        stream.begin_capture()
        results = [x for x in run() if x is not None]
        graph = stream.end_capture()
        for mine, new in zip(arrays, others):
            mine[...] = new
        for x in results:
            x.view(f"u{x.itemsize}")[...] = 2 ** (8 * x.itemsize) - 1
        graph.launch(stream)
        expected = [x for x in run() if x is not None]
    stream.synchronize()
    assert len(results) == len(expected) == (7 if kind == "options" else 5)
    for got, wanted in zip(results, expected):
        assert np.isfinite(got.get().astype(np.float32)).any() and got.get().tobytes() == wanted.get().tobytes()


def test_calls_run_on_the_current_stream(on_gpu):
    cupy = cupy_or_skip()
    pattern = patterns.causal(500).to("cuda")
    q, k, v = moved([np.random.default_rng(i).standard_normal((1, 2, 500, 64), np.float32) for i in range(3)])
    expected = sa.attend(q, k, v, pattern, backend=on_gpu).get()
    late, busy = cupy.full_like(q, np.nan), cupy.ones((6000, 6000), np.float32)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(5):
            busy = busy @ busy * 1e-4
        late[...] = q + 0 * busy[0, 0]
        out = sa.attend(late, k, v, pattern, backend=on_gpu)
    stream.synchronize()
    assert np.array_equal(out.get(), expected)


def test_calls_run_where_q_is(on_gpu):
    cupy = cupy_or_skip()
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU; this needs two")
    mask, pattern = oracle.strided(150, stride=12), patterns.strided(150, stride=12)
    with cupy.cuda.Device(0):
        arrays = arrays_there(0, mask, (2, 1, 64, 64), "float32")
        expected = both_ways(*arrays, pattern.to("cuda:0"), on_gpu)
    with cupy.cuda.Device(1):
        there = arrays_there(0, mask, (2, 1, 64, 64), "float32")
    with cupy.cuda.Device(0):
        got = both_ways(*there, pattern.to(there[0].device), on_gpu)
    for a, b in zip(got, expected, strict=True):
        assert a.device.id == 1 and a.get().tobytes() == b.get().tobytes()


def test_more_than_2_31_elements(on_gpu):
    """Offsets of tokens (q, dout: heads beside each other) and of heads (k, out, gradients) both pass 2**31."""
    cupy = cupy_or_skip()
    n_heads, n_tokens, width, last = 520, 65536, 64, 300
    size = n_heads * n_tokens * width * 2
    cupy.get_default_memory_pool().free_all_blocks()
    if cupy.cuda.Device().mem_info[0] < 9 * size:
        pytest.skip(f"this needs {9 * size >> 30} GiB of free memory on the GPU")
    assert n_heads * n_tokens * width > 2**31
    random = cupy.random.RandomState(0)
    q, dout = (cupy.empty((1, n_tokens, n_heads, width), np.float16).transpose(0, 2, 1, 3) for _ in range(2))
    k = cupy.empty((1, n_heads, n_tokens, width), np.float16)
    for x in (q, k, dout):
        for first in range(0, n_heads, 40):
            x[:, first:first + 40] = random.standard_normal(x[:, first:first + 40].shape, np.float32)
    pattern = patterns.sliding_window(n_tokens, left=63).to("cuda")
    out, lse = sa.attend(q, k, k, pattern, return_lse=True, backend=on_gpu)
    gradients = sa.attend_backward(dout, q, k, k, out, lse, pattern, backend=on_gpu)[:3]
    # the first of the last tokens see what is cut off
    mask, seen = oracle.sliding_window(last, left=63), np.s_[:, :, 100:]
    for head in (0, 259, n_heads - 1):
        here = [x[:, head:head + 1, n_tokens - last:].get() for x in (q, k, dout)]
        there = [x[:, head:head + 1, n_tokens - last:].get()[seen] for x in (out, lse, *gradients)]
        q1, k1, dout1 = here
        exact = oracle.attention(q1, k1, k1, mask) + oracle.gradients(dout1, q1, k1, k1, mask)
        plain = list(oracle.plain(dout1, q1, k1, k1, mask))
        for i, (name, got) in enumerate(zip(("out", "lse", "dq", "dk", "dv"), there)):
            close(f"{name} of head {head}", got, exact[i][seen], (result[i][seen] for result in plain))
    del q, k, dout, out, lse, gradients
    cupy.get_default_memory_pool().free_all_blocks()


@pytest.mark.parametrize("block_q", [16, 1], ids=["tiles", "rows"])
def test_more_batch_items_than_a_grid_has(block_q, backend):
    arrays = drawn(3, oracle.causal(4), (1, 1, 8, 8), np.float16, batch=66000)
    bias = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    ours = {"bias": bias, "sinks": np.ones(1, np.float32)}
    test_options.compared(patterns.causal(4).reblock((block_q, 16)), oracle.causal(4), arrays, ours,
                          {"bias": bias[None, None], "sinks": ours["sinks"]}, backend, binned=lambda ds: ds.sum((0, 1)))


def test_pattern_elsewhere_is_refused(on_gpu):
    x = moved(np.zeros((1, 1, 8, 4), np.float32))
    with pytest.raises(ValueError, match=r"move it once with pattern.to\('cuda'\)"):
        sa.attend(x, x, x, patterns.causal(8), backend=on_gpu)
    with pytest.raises(NotImplementedError, match="does not take NumPy arrays"):
        sa.attend(*3 * [x.get()], patterns.causal(8), backend=on_gpu)
    with pytest.raises(NotImplementedError, match="does not take CuPy arrays"):
        sa.attend(x, x, x, patterns.causal(8).to("cuda"), backend="numba_cpu")


def test_what_a_backend_refuses(on_gpu):
    cupy, pattern = cupy_or_skip(), patterns.causal(8).to("cuda")
    for shape, dtype, words in (((1, 1, 8, 4), np.float64, "float64; convert q, k and v to one of float16"),
                                ((1, 1, 8, 257), np.float32, "head_dim is 257 in q and k")):
        x = cupy.zeros(shape, dtype)
        with pytest.raises(NotImplementedError, match=words):
            sa.attend(x, x, x, pattern, backend=on_gpu)


def content(q, k):
    """Name -> the pattern that is chosen by what q and k (2, 2, 192, 32) hold."""
    p, nsa = patterns, {"n_kv_heads": 2, "n_tokens": 192, "compress_block": 16, "compress_stride": 8}
    return {
        "top_k": lambda: p.top_k(q, k, n_selected=9, causal=True),
        "indexer_top_k": lambda: p.indexer_top_k(q, k[:, 0], q[..., 0], n_selected=12),
        "block_top_k": lambda: p.block_top_k(q, k, block_size=16, n_blocks=3),
        "from_block_scores": lambda: p.from_block_scores(q[:, :, :12, :12], block_size=16, k=4),
        "moba": lambda: p.moba(q, k, chunk_size=32, top_k=3),
        "quest": lambda: p.quest(q, k, page_size=16, token_budget=64),
        "nsa_selection": lambda: p.nsa_selection(abs(q[..., :23]), **nsa, select_block=16, n_selected=5),
        "lsh": lambda: p.lsh(q, k, n_buckets=8, n_hashes=2, chunk_length=16),
        "clusters": lambda: p.clusters(q, k, q[0, :, :6], window=32),
        "vertical_slash": lambda: p.vertical_slash(q, k, n_vertical=30, n_slash=50, n_recent=9),
        "flex_prefill": lambda: p.flex_prefill(q, k, gamma=0.7, tau=0.2, block_size=16),
        "xattention": lambda: p.xattention(q, k, stride=4, block_size=32, threshold=0.8),
        "sparge": lambda: p.sparge(q, k, tau=0.6, theta=-1),
    }


@pytest.mark.parametrize("name", content(None, None))
def test_chosen_by_content(name, on_gpu):
    arrays = drawn(7, oracle.causal(192), (2, 1, 32, 32), np.float32)
    there = moved(arrays)
    pattern = content(*there[:2])[name]()
    mask = pattern.to_dense()
    assert mask.any() and not mask.all() and pattern.device == f"cuda:{there[0].device.id}"
    assert np.array_equal(mask, content(*arrays[:2])[name]().to_dense())
    got = [x.get() for x in both_ways(*there, pattern, on_gpu)]
    exact = oracle.attention(*arrays[:3], mask) + oracle.gradients(arrays[3], *arrays[:3], mask)
    plain = list(oracle.plain(arrays[3], *arrays[:3], mask))
    for i, (label, value) in enumerate(zip(("out", "lse", "dq", "dk", "dv"), got, strict=True)):
        close(label, value, exact[i], (result[i] for result in plain))


def variant_calls(dtype):
    """Name -> (arrays, options, shape of the output) of the variants that choose."""
    def given(arrays):
        return [x.astype(dtype) for x in arrays]

    *nsa, dout = test_nsa.drawn(dtype=dtype)
    reformer, routing = given((test_reformer.QK, test_reformer.V)), given((test_routing.Q, test_routing.K,
                                                                           test_routing.V))
    hashed = test_reformer.OPTIONS | {"causal": True, "valid": test_reformer.VALID}
    means = {"means": test_routing.MEANS, "window": 14, "valid": test_routing.VALID}
    memory = {name: x.astype(dtype) for name, x in test_routing.MEMORY.items()}
    return {
        "reformer": (reformer, hashed, test_reformer.V.shape),
        "reformer, count": (reformer, hashed | {"duplicates": "count", "key_norm": "l2_unit"}, test_reformer.V.shape),
        "routing": (routing, means, test_routing.DOUT.shape),
        "routing, shared": (routing, means | {"shared_qk": True, "exclude_self": True, "causal": True},
                            test_routing.DOUT.shape),
        "routing, memory": (routing, means | memory, test_routing.DOUT.shape),
        "nsa": (nsa, test_nsa.SIZES | {"window": 10}, dout.shape),
        "nsa, package": (test_nsa.drawn(n_compressed=23, dtype=dtype)[:6],
                         test_nsa.SIZES | {"window": 10, "rules": "package"}, dout.shape),
    }


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", variant_calls(np.float32))
def test_variants_that_choose(name, dtype, on_gpu):
    arrays, options, shape = variant_calls(DTYPES[dtype])[name]
    function = getattr(sa.variants, name.split(",")[0])
    dout = np.random.default_rng(0).standard_normal(shape).astype(DTYPES[dtype])
    out, pull = function(*arrays, **options)
    here = [out, *pull(dout)]
    results = []
    for _ in range(2):
        with poisoned():
            there, pull_there = function(*moved(arrays), **moved(options), backend=on_gpu)
            results.append([there, *pull_there(moved(dout))])
    unit = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    for a, again, b in zip(*results, here, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.tobytes() == again.tobytes()
            a, b = a.get().astype(np.float64), b.astype(np.float64)
            assert np.isfinite(a).all()
            # branches and roles are rounded to 16 bits before they are added
            assert np.abs(a - b).max() <= max(4 * unit, 5e-5) * np.abs(b).max(initial=1)
