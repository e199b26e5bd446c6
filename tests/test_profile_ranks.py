"""Ranks without a full sort, beside a sort."""

import math

import numpy as np
import pytest

from sparseattn.profiling import ranks

SHARES, MASSES = np.array([1 / 64, 1 / 8, 1 / 2]), np.array([0.1, 0.5, 0.9, 0.99, 1.0])


def _rows(kind, n, rng):
    scores = {
        "spread": rng.standard_normal((3, n)), "peaked": 12 * rng.standard_normal((3, n)),
        "equal": np.zeros((3, n)), "two values": rng.integers(0, 2, (3, n)) * 1.0,
        "one far above": np.where(np.arange(n) == n // 2, 60.0, rng.standard_normal((3, n))),
        "some without weight": np.where(rng.random((3, n)) < 0.7, -1e9, rng.standard_normal((3, n))),
        "narrow": 1e-6 * rng.standard_normal((3, n)),
    }[kind]
    scores[:, 0] = scores.max(axis=1)
    return np.exp(scores - scores[:, :1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 17, 300, 5000, 20000])
@pytest.mark.parametrize("kind", ["spread", "peaked", "equal", "two values", "one far above", "some without weight",
                                  "narrow"])
def test_ranks_are_those_of_a_sort(kind, n, dtype):
    e = np.zeros((3, n + 5), dtype)
    e[:, :n] = _rows(kind, n, np.random.default_rng(n))
    n_open, stops = (e > 0).sum(axis=1), np.full(3, n)
    sums = e.sum(axis=1, dtype=float)
    above, picked = np.empty((3, SHARES.size + MASSES.size, 3)), np.empty_like(e)
    bits = e.view(np.int32 if dtype == np.float32 else np.int64)
    most = ranks.pick_rows(e, bits, stops, sums, n_open, SHARES, MASSES, picked, above)
    keys, held = np.empty((3, MASSES.size), np.int64), np.empty((3, SHARES.size))
    ranks.rank_rows(np.sort(picked[:, :most], axis=1), sums, n_open, SHARES, MASSES, above, keys, held)
    for i in range(3):
        up_to = np.cumsum(np.sort(e[i].astype(np.longdouble))[::-1])
        counts = [math.ceil(s * n_open[i]) for s in SHARES]
        np.testing.assert_allclose(held[i], up_to[np.array(counts) - 1] / sums[i], rtol=1e-12)
        for m, found in zip(MASSES, keys[i], strict=True):
            target, slack = m * sums[i], 1e-12 * sums[i]
            assert 1 <= found <= n_open[i]
            assert up_to[found - 1] >= target - slack
            assert found == 1 or up_to[found - 2] < target + slack


def test_few_keys_are_put_in_order():
    e = np.exp(np.random.default_rng(0).standard_normal((4, 8192))).astype(np.float32)
    picked, above = np.empty_like(e), np.empty((4, SHARES.size + MASSES.size - 1, 3))
    full, sums = np.full(4, 8192), e.sum(axis=1, dtype=float)
    most = ranks.pick_rows(e, e.view(np.int32), full, sums, full, SHARES, MASSES[:-1], picked, above)
    assert most < 8192 // 10
