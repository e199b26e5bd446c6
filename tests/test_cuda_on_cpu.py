"""The text of cupy_raw's kernels without a GPU: a few calls of each kernel, dtype and kind of option.

tests/test_gpu.py has the rest, on a GPU.
"""

import types

import numpy as np
import pytest

import cuda_on_cpu
import oracle
import sparseattn as sa
import test_options
from sparseattn import dispatch, patterns
from sparseattn.kernels.gpu import launch_backward, launch_forward, plan, terms
from test_attend import DTYPES, compared, drawn
from test_bias import test_largest_gradient_of_a_table  # noqa: F401
from test_gpu import WALKS, test_few_columns_of_float32_keep_every_bit  # noqa: F401

pytestmark = pytest.mark.skipif(cuda_on_cpu.why_not() is not None, reason=str(cuda_on_cpu.why_not()))
LARGE, SMALL = 227 * 1024, 99 * 1024  # bytes of shared memory of a thread block


@pytest.fixture
def backend(request, monkeypatch):
    """Calls run these kernels, for GPUs with as much shared memory as the parameter says."""
    target = cuda_on_cpu.target(getattr(request, "param", LARGE))

    def forward(q, k, v, pattern, *, scale, out=None, options):
        return launch_forward.forward(target, q, k, v, pattern, scale, out, options)

    def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None, options):
        return launch_backward.backward(target, dout, q, k, v, out, lse, pattern, scale, dlse, options)

    kernels = types.SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setattr(dispatch, "choose", lambda *_: kernels)
    return "cupy_raw"


@pytest.mark.parametrize("walk, layout, dtype", [
    ("window", (2, 1, 64, 40), "float32"), ("strided", (1, 1, 20, 20), "float32"), ("rows", (2, 2, 40, 64), "float32"),
    ("window", (2, 2, 100, 128), "float16"), ("rows", (4, 4, 64, 7), "float16")], ids=str)
def test_walks(walk, layout, dtype, backend):
    build, mask = WALKS[walk]
    compared(build(), mask, *drawn(5, mask, layout, DTYPES[dtype], batch=1), backend)


@pytest.mark.parametrize("backend", [LARGE, SMALL], indirect=True, ids=["227 KB", "99 KB"])
@pytest.mark.parametrize("width, dtype", [(130, "float32"), (192, "float16")])
def test_wide_heads(width, dtype, backend):
    mask = oracle.causal(70)
    compared(patterns.causal(70), mask, *drawn(6, mask, (1, 1, width, width), DTYPES[dtype], batch=1), backend)


@pytest.mark.parametrize("build, mask, dtype", [
    (lambda: patterns.strided(40, stride=8), oracle.strided(40, stride=8), "float32"),
    (lambda: patterns.strided(40, stride=8), oracle.strided(40, stride=8), "bfloat16"), (*WALKS["rows"], "float16")],
    ids=["tiles of float32", "tiles of 16 bits", "rows"])
def test_options_together(build, mask, dtype, backend):
    arrays = drawn(7, mask, (2, 2, 20, 20), DTYPES[dtype], batch=1)
    ours, theirs, counted = test_options.options_of(("softcap", "bias", "sinks", "dropout"), arrays[0], mask)
    test_options.compared(build(), counted, arrays, ours, theirs, backend, binned=lambda ds: ds)


@pytest.mark.parametrize("sizes", [(5, 150), (150, 5)], ids=str)
def test_cut_rows(sizes, backend, cut):
    mask = oracle.dense(*sizes)
    compared(patterns.dense(*sizes), mask, *drawn(9, mask, (1, 1, 20, 20), np.float16, batch=1), backend)


def test_more_places_than_a_grid_has(backend, cut, monkeypatch):
    monkeypatch.setattr(plan, "MOST_PLACES", 3)
    mask = oracle.strided(40, stride=8)
    arrays = drawn(7, mask, (2, 1, 20, 20), np.float16, batch=2)
    ours, theirs, counted = test_options.options_of(("bias", "sinks"), arrays[0], mask)
    test_options.compared(patterns.strided(40, stride=8), counted, arrays, ours, theirs, backend, binned=lambda ds: ds)


@pytest.mark.parametrize("shape", [(1, 3), (2, 1)], ids=["of batch items", "of heads"])
def test_places_that_share_a_bias_take_turns(shape, backend, monkeypatch):
    monkeypatch.setattr(terms, "TOGETHER", 2)
    mask = oracle.strided(140, stride=8)
    arrays = drawn(7, mask, (3, 3, 20, 20), np.float16, batch=2)
    bias = np.random.default_rng(0).standard_normal((*shape, 140, 140)).astype(np.float32)
    axes = tuple(axis for axis in (0, 1) if shape[axis] == 1)
    test_options.compared(patterns.strided(140, stride=8), mask, arrays, {"bias": bias}, {"bias": bias}, backend,
                          binned=lambda ds: ds.sum(axes, keepdims=True))


def test_table_of_distances(backend):
    mask, table = oracle.causal(90), np.random.default_rng(1).standard_normal((2, 60)).astype(np.float32)
    q, k, v, dout = drawn(8, mask, (2, 1, 32, 32), np.float16, batch=1)
    term = sa.bias.by_offset(table, left=50)
    out, lse = sa.attend(q, k, v, patterns.causal(90), bias=term, return_lse=True)
    got = sa.attend_backward(dout, q, k, v, out, lse, patterns.causal(90), bias=term).dbias
    place = np.arange(90)[None, :] - np.arange(90)[:, None] + 50
    dense = np.where((place >= 0) & (place < 60), table[:, np.clip(place, 0, 59)], 0)
    ds = oracle.all_gradients(dout, q, k, v, mask, bias=dense[None])[3]
    exact = np.stack([(ds * (place == t)).sum((0, 2, 3)) for t in range(60)], axis=1)
    assert np.abs(got - exact).max() <= 4e-3 * np.abs(exact).max()


def test_array_that_is_shared(backend):
    test_options.test_array_that_is_shared("heads and batch", backend)


def test_nan_of_a_query_without_weight(backend):
    """A query all of whose pairs have a bias of -inf gives an array nothing."""
    mask, pattern = oracle.causal(140), patterns.causal(140)
    q, k, v, dout = drawn(8, mask, (4, 2, 40, 24), np.float16)
    bias = np.random.default_rng(1).standard_normal((140, 140)).astype(np.float32)
    bias[17] = -np.inf
    results = []
    for junk in (0, np.nan):
        dout[:, 1:, 17] = junk
        out, lse = sa.attend(q, k, v, pattern, bias=bias, return_lse=True)
        results.append(sa.attend_backward(dout, q, k, v, out, lse, pattern, bias=bias).dbias)
    np.testing.assert_array_equal(*results)
    assert not results[0][17].any() and results[0][18].any()


def test_rows_of_unlike_size(backend):
    """In float32 each row is as exact as its own numbers allow, beside rows of the tile 2**50 times as large."""
    mask, pattern = oracle.causal(70), patterns.causal(70)
    q, k, v, dout = drawn(4, mask, (1, 1, 64, 64), np.float32, batch=1)
    sizes = np.exp2(np.linspace(-20, 30, 70)).astype(np.float32)[:, None]
    arrays = q * np.float32(1e-25), k * np.float32(1e25), v * sizes, dout / sizes
    out, lse = sa.attend(*arrays[:3], pattern, return_lse=True)
    got = out, *sa.attend_backward(arrays[3], *arrays[:3], out, lse, pattern)[:3]
    exact = oracle.attention(*arrays[:3], mask)[:1] + oracle.gradients(arrays[3], *arrays[:3], mask)
    for a, b in zip(got, exact, strict=True):
        a, b = a[..., 1:, :].astype(np.float64), b[..., 1:, :]
        assert (np.abs(a - b).max(-1) <= 2e-5 * np.abs(b).max(-1)).all()
