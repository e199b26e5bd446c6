"""Every kernel, option and dtype of the plain GPU backend: on a GPU, or else in Numba's simulator.

That is NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/test_numba_cuda.py. A GPU runs the tests of test_gpu.py too.
"""

import ml_dtypes
import numpy as np
import pytest

import oracle
import simulator
import sparseattn as sa
import test_attend
import test_bias
import test_options
from devices import CALLS, there_and_back, usable_or_skip
from sparseattn import Pattern, dispatch, patterns
from sparseattn.kernels import numba_cuda
from sparseattn.kernels.gpu import plan
from sparseattn.kernels.numba_cuda.shapes import SIMULATED
from test_attend import drawn

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def backend(monkeypatch):
    """The backend's name; calls of NumPy arrays go to it, in the simulator as they are, else to the GPU and back."""
    if SIMULATED:
        simulator.install(monkeypatch)
        monkeypatch.setattr(dispatch, "choose", lambda *_: numba_cuda)
        return numba_cuda.NAME
    usable_or_skip(numba_cuda.NAME)
    for where, function in CALLS:
        monkeypatch.setattr(where, function, there_and_back(getattr(where, function)))
    return numba_cuda.NAME


def scattered(n_queries, n_keys, block_size, seed=0):
    """(pattern, mask) of pairs drawn at random; one query and one key have none."""
    mask = oracle.scattered(n_queries, n_keys, 0.2, seed)
    return Pattern.from_mask(mask[0, 0], block_size=block_size), mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles(dtype, backend):
    mask = oracle.causal(18, 35)
    layout = {"float32": (2, 2, 20, 12), "float16": (1, 1, 5, 34), "bfloat16": (1, 1, 17, 3)}[dtype]
    test_attend.compared(patterns.causal(18, 35), mask, *drawn(0, mask, layout, DTYPES[dtype], batch=1), backend)


@pytest.mark.parametrize("block_size, dtype", [(1, "float16"), (16, "float32"), (50, "bfloat16")])
def test_rows(block_size, dtype, backend):
    pattern, mask = scattered(5, 55, (1, block_size))
    test_attend.compared(pattern, mask, *drawn(1, mask, (3, 3, 9, 20), DTYPES[dtype], batch=1), backend)


def test_widest_heads(backend):
    pattern, mask = scattered(4, 20, (1, 8))
    test_attend.compared(pattern, mask, *drawn(2, mask, (1, 1, 250, 129), np.float32, batch=1), backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_go_on_from_each_other(dtype, backend):
    mask = oracle.strided(24, stride=8)
    test_attend.compared(patterns.strided(24, stride=8), mask, *drawn(3, mask, (1, 1, 16, 8), DTYPES[dtype], batch=1),
                         backend, scale=-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiles", "rows"])
def test_cut_rows(name, dtype, backend, cut):
    pattern, mask = {"tiles": lambda: (patterns.dense(5, 70), oracle.dense(5, 70)),
                     "rows": lambda: scattered(3, 70, (1, 30))}[name]()
    arrays = drawn(4, mask, (2, 1, 12, 8), DTYPES[dtype], batch=1)
    sinks = np.linspace(-1, 1, arrays[0].shape[1]).astype(np.float32)
    test_options.compared(pattern, mask, arrays, {"sinks": sinks}, {"sinks": sinks}, backend)


@pytest.mark.parametrize("name", ["tiles", "rows"])
def test_more_places_than_a_grid_has(name, backend, cut, monkeypatch):
    monkeypatch.setattr(plan, "MOST_PLACES", 3)
    pattern, mask = {"tiles": lambda: (patterns.dense(5, 70), oracle.dense(5, 70)),
                     "rows": lambda: scattered(3, 70, (1, 30))}[name]()
    arrays = drawn(4, mask, (2, 2, 8, 8), np.float32, batch=2)
    sinks = np.linspace(-1, 1, 2).astype(np.float32)
    test_options.compared(pattern, mask, arrays, {"sinks": sinks}, {"sinks": sinks}, backend)


def test_places_that_share_a_bias_take_turns(backend):
    pattern, mask = patterns.causal(20), oracle.causal(20)
    bias = np.random.default_rng(0).standard_normal((1, 2, 20, 20)).astype(np.float32)
    test_options.compared(pattern, mask, drawn(4, mask, (2, 2, 8, 8), np.float32, batch=2), {"bias": bias},
                          {"bias": bias}, backend, binned=lambda ds: ds.sum(0, keepdims=True))


def test_rows_of_several_steps_with_an_array(backend):
    """The sums that the gradient of an array takes leave the rest of the walk alone."""
    mask = oracle.scattered(3, 70, 0.9, 0)
    bias = np.random.default_rng(1).standard_normal((1, 1, 3, 70)).astype(np.float32)
    arrays = drawn(0, mask, (1, 1, 8, 8), np.float32, batch=1)
    test_options.compared(Pattern.from_mask(mask[0, 0], block_size=(1, 16)), mask, arrays, {"bias": bias},
                          {"bias": bias}, backend, binned=lambda ds: ds)


def test_dk_and_dv_of_cut_rows(backend, cut):
    for pattern, mask in ((patterns.dense(70, 5), oracle.dense(70, 5)), scattered(34, 20, (1, 20))):
        test_attend.compared(pattern, mask, *drawn(5, mask, (1, 1, 8, 12), np.float32, batch=1), backend)


SMALL = {"tiles": lambda: (patterns.causal(8, 12), oracle.causal(8, 12)), "rows": lambda: scattered(5, 12, (1, 8))}


def few(mask):
    """q, k, v, dout of two heads that share k and v."""
    return test_bias.inputs(*mask.shape[2:], np.float32, 1, 2, 1)


@pytest.mark.parametrize("option", test_options.OPTIONS)
@pytest.mark.parametrize("name", SMALL)
def test_options_of_calls(name, option, backend):
    pattern, mask = SMALL[name]()
    arrays = drawn(6, mask, (2, 2, 8, 8), np.float32)
    ours, theirs, counted = test_options.options_of((option,), arrays[0], mask)
    test_options.compared(pattern, counted, arrays, ours, theirs, backend,
                          binned=(lambda ds: ds) if option == "bias" else None)


@pytest.mark.parametrize("name", SMALL)
def test_options_together(name, backend):
    pattern, mask = SMALL[name]()
    arrays = drawn(7, mask, (2, 2, 8, 8), DTYPES["bfloat16"])
    ours, theirs, counted = test_options.options_of(test_options.OPTIONS[:4], arrays[0], mask)
    dlse = np.random.default_rng(1).standard_normal(arrays[0].shape[:3]).astype(ours["sinks"].dtype)
    test_options.compared(pattern, counted, arrays, ours, theirs, backend, dlse, lambda ds: ds)


@pytest.mark.parametrize("name", SMALL)
def test_tables_of_offsets(name, backend):
    """A value that many pairs share."""
    pattern, mask = SMALL[name]()
    table = np.random.default_rng(1).standard_normal((2, 6))
    place = test_bias.distances(*mask.shape[2:]) + 3
    dense = np.where((place >= 0) & (place < 6), table[:, np.clip(place, 0, 5)].swapaxes(0, 1)[:, :, 0], 0)
    test_bias.same_as_dense(sa.bias.by_offset(table, left=3), table, dense,
                            lambda ds: np.stack([(ds * (place == t)).sum((0, 2, 3)) for t in range(6)], axis=1),
                            pattern, mask, few(mask), backend)


@pytest.mark.parametrize("offset", [None, 9, -3])
@pytest.mark.parametrize("name", SMALL)
def test_slopes(name, offset, backend):
    """A table of all distances of a call, each end of which is some pair's."""
    pattern, mask = SMALL[name]()
    slopes, far = np.array([0.5, 0.125]), np.abs(test_bias.distances(*mask.shape[2:], offset))
    test_bias.same_as_dense(sa.bias.alibi(slopes, offset=offset), slopes, -slopes[:, None, None] * far,
                            lambda ds: -(ds * far).sum((0, 2, 3)), pattern, mask, few(mask), backend)


@pytest.mark.parametrize("name", SMALL)
def test_labels_with_a_table_a_query(name, backend):
    pattern, mask = SMALL[name]()
    n_queries, n_keys = mask.shape[2:]
    rng = np.random.default_rng(2)
    table, labels = rng.standard_normal((2, n_queries, 5)), rng.integers(0, 5, (n_queries, n_keys))
    label = np.broadcast_to(labels, (1, 2, n_queries, n_keys))
    test_bias.same_as_dense(sa.bias.labels(table, labels), table, np.take_along_axis(table[None], label, -1),
                            lambda ds: np.stack([(ds * (label == t)).sum((0, 3)) for t in range(5)], axis=-1),
                            pattern, mask, few(mask), backend)


@pytest.mark.parametrize("axes", [(0, 1), (0,), (1,), (0, 1, 2)], ids=["heads and batch", "batch", "heads", "queries"])
@pytest.mark.parametrize("name", ["tiles", "several tiles", "rows"])
def test_arrays_that_are_shared(name, axes, backend):
    several = {"several tiles": lambda: (patterns.strided(40, stride=8), oracle.strided(40, stride=8))}
    pattern, mask = (SMALL | several)[name]()
    arrays = drawn(9, mask, (2, 2, 8, 8), np.float32)
    bias = np.random.default_rng(1).standard_normal((2, 2, *mask.shape[2:])).astype(np.float32)
    bias = bias[tuple(slice(1 if axis in axes else None) for axis in range(4))]
    test_options.compared(pattern, mask, arrays, {"bias": bias, "dropout": 0.3, "seed": 5},
                          {"bias": bias, "weights": oracle.dropout_weights((2, 2, *mask.shape[2:]), 0.3, 5)}, backend,
                          binned=lambda ds: ds.sum(axes, keepdims=True))


def test_equal_calls_give_equal_bits(backend, cut):
    pattern, mask = scattered(3, 70, (1, 30))
    q, k, v, dout = drawn(8, mask, (2, 2, 8, 8), np.float32, batch=1)
    results = []
    for _ in range(2):
        out, lse = sa.attend(q, k, v, pattern, return_lse=True, backend=backend)
        results.append((out, lse, *sa.attend_backward(dout, q, k, v, out, lse, pattern, backend=backend)[:3]))
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.skipif(not SIMULATED, reason="there calls are moved to the GPU, patterns with them")
@pytest.mark.parametrize("kind", ["table", "pairs"])
def test_launches_are_kept_and_read_the_bias_of_the_call(kind, backend):
    pattern, mask = scattered(6, 20, (1, 8))
    for seed in range(3):
        values = np.random.default_rng(seed).standard_normal((2, 5) if kind == "table" else mask.shape[1:])
        values = values.astype(np.float32)
        term = sa.bias.by_offset(values, left=2) if kind == "table" else values
        place = np.clip(test_bias.distances(*mask.shape[2:]) + 3, 0, 6)[0, 0]
        dense = np.pad(values, ((0, 0), (1, 1)))[:, place] if kind == "table" else values
        _both_ways(pattern, mask, backend, {"bias": term}, {"bias": dense})
        assert len(pattern.memo.get("gpu plans", dict)) == 2


@pytest.mark.skipif(not SIMULATED, reason="there calls are moved to the GPU, patterns with them")
def test_launches_are_kept_and_read_the_seed_of_the_call(backend):
    pattern, mask = scattered(6, 20, (1, 8))
    for seed in (0, 5, 2**63):
        weights = oracle.dropout_weights((1, 2, *mask.shape[2:]), 0.4, seed)
        _both_ways(pattern, mask, backend, {"dropout": 0.4, "seed": seed}, {"weights": weights})
        assert len(pattern.memo.get("gpu plans", dict)) == 2
    _both_ways(pattern, mask, backend, {"dropout": 0.3, "seed": 0}, {"weights": oracle.dropout_weights(
        (1, 2, *mask.shape[2:]), 0.3, 0)})


def _both_ways(pattern, mask, backend, ours, theirs):
    """A call with these options and its gradients are those of the oracle with its own."""
    q, k, v, dout = few(mask)
    out, lse = sa.attend(q, k, v, pattern, return_lse=True, backend=backend, **ours)
    got = sa.attend_backward(dout, q, k, v, out, lse, pattern, backend=backend, **ours)
    assert np.allclose(out, oracle.attention(q, k, v, mask, **theirs)[0], atol=1e-5)
    exact = oracle.all_gradients(dout, q, k, v, mask, **theirs)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(got[:3], exact))


@pytest.mark.parametrize("backward", [False, True])
def test_estimate(backward):
    pattern, mask = scattered(20, 30, (1, 8))
    x = np.zeros((1, 2, 30, 16), np.float32)
    found = numba_cuda.estimate(x[:, :, :20], x, x, pattern | patterns.causal(20, 30), backward=backward)
    kept = 2 * (mask | oracle.causal(20, 30)).sum()
    assert sum(part.kept_pairs for part in found.parts) == kept * (2 if backward else 1)
    assert all(part.stored_pairs >= part.kept_pairs for part in found.parts) and found.flops > 0 and found.bytes > 0
