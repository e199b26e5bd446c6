"""merge: attention over a union of key sets from its parts."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import oracle
import sparseattn as sa
from sparseattn import patterns


def drawn(n, dtype=np.float64):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((2, 2, n, 8)).astype(dtype) for _ in range(4))


@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_parts_of_the_keys_make_the_whole(n_parts, backend):
    q, k, v, _ = drawn(60)
    bounds = np.linspace(0, 60, n_parts + 1).astype(int)
    whole = patterns.causal(60)
    parts = [sa.attend(q, k[:, :, a:b], v[:, :, a:b], whole[:, :, :, a:b], return_lse=True, backend=backend)
             for a, b in itertools.pairwise(bounds)]
    out, lse = sa.merge(iter(parts))
    exact, exact_lse = oracle.attention(q, k, v, oracle.causal(60))
    assert np.allclose(out, exact, atol=1e-13) and np.allclose(lse, exact_lse, atol=1e-13)


def test_gradients_of_the_parts_add_up(backend):
    q, k, v, dout = drawn(50)
    parts = [patterns.sliding_window(50, left=9), patterns.causal(50) - patterns.sliding_window(50, left=9)]
    out, lse = sa.merge([sa.attend(q, k, v, part, return_lse=True, backend=backend) for part in parts])
    grads = [sa.attend_backward(dout, q, k, v, out, lse, part, backend=backend) for part in parts]
    for i, exact in enumerate(oracle.gradients(dout, q, k, v, oracle.causal(50))):
        assert np.allclose(grads[0][i] + grads[1][i], exact, atol=1e-12)


def test_rows_without_keys():
    out = np.array([[1.0, 2.0], [np.nan, np.nan], [np.nan, 7.0]])
    lse = np.array([0.5, -np.inf, -np.inf])
    other = np.array([[3.0, 4.0], [5.0, 6.0], [np.inf, 7.0]]), np.array([-np.inf, 2.0, -np.inf])
    merged, total = sa.merge([(out, lse), other])
    assert np.array_equal(merged, [[1, 2], [5, 6], [0, 0]])
    assert np.array_equal(total, [0.5, 2.0, -np.inf])


def test_far_apart_and_huge():
    out = np.array([[1.0], [3.0]]), np.array([1e30, -1e30])
    other = np.array([[2.0], [4.0]]), np.array([-1e30, 1e30])
    merged, lse = sa.merge([out, other])
    assert np.array_equal(merged, [[1.0], [4.0]]) and np.array_equal(lse, [1e30, 1e30])


def test_nan_stays_visible():
    one = np.ones((2, 3), np.float32), np.array([0, np.nan], np.float32)
    out, lse = sa.merge([one, (np.ones((2, 3), np.float32), np.zeros(2, np.float32))])
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all() and np.isnan(lse[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes(dtype):
    wide = np.float64 if dtype == np.float64 else np.float32
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal((3, 40, 8)).astype(dtype), rng.standard_normal((3, 40)).astype(wide))
             for _ in range(3)]
    before = [x.copy() for part in parts for x in part]
    out, lse = sa.merge(parts)
    assert out.dtype == dtype and lse.dtype == wide
    assert all(np.array_equal(a, b) for a, b in zip(before, (x for part in parts for x in part)))
    weights = np.exp(np.array([part_lse for _, part_lse in parts], np.float64))
    exact = sum(w[..., None] * o.astype(np.float64) for w, (o, _) in zip(weights, parts)) / weights.sum(0)[..., None]
    # half a unit of the dtype for its rounding, a few of the arithmetic's
    allowed = ml_dtypes.finfo(dtype).eps / 2 + 4 * np.finfo(wide).eps
    assert np.abs(out.astype(np.float64) - exact).max() <= float(allowed) * 2.0 ** np.ceil(np.log2(np.abs(exact).max()))


def test_no_queries():
    out, lse = sa.merge([(np.ones((2, 0, 4)), np.ones((2, 0)))] * 2)
    assert out.shape == (2, 0, 4) and lse.shape == (2, 0)
