"""Choosing by array functions, as CuPy's arrays are chosen from, against the compiled loops: here both on NumPy's."""

import numpy as np
import pytest

import cuda_on_cpu
from sparseattn.selection.adding import add_by_turns, add_rows, sums_by_class, sums_by_product
from sparseattn.selection.cached import recent_in_bucket
from sparseattn.selection.coverage import among_best, best, count_to_cover
from sparseattn.selection.hashing import buckets_of_products, hash_buckets
from sparseattn.selection.largest import of_rows
from sparseattn.selection.meetings import cluster_tiles
from sparseattn.selection.members import cluster_members, members_by_products, sums_by_mean, tiles_by_loops
from sparseattn.selection.rounds import masks_by_arrays, masks_by_loops, sort_rounds
from sparseattn.selection.softmax import diagonal_sums
from sparseattn.selection.topk import top_of_rows


@pytest.mark.skipif(cuda_on_cpu.why_not() is not None, reason=str(cuda_on_cpu.why_not()))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_cols, n_selected", [(1, 1), (7, 9), (300, 1), (300, 20), (2000, 70), (2000, 1999)])
def test_best_of_rows(n_cols, n_selected, dtype):
    rng = np.random.default_rng(n_selected)
    for scores in (rng.standard_normal((2, 5, n_cols)), rng.integers(-3, 3, (2, 5, n_cols)) * 0.0,
                   rng.integers(-9, 9, (2, 5, n_cols)) * 1e300 ** (dtype == np.float64),
                   np.arange(n_cols) + np.zeros((2, 5, 1)), -np.arange(n_cols) + np.zeros((2, 5, 1))):
        scores = scores.astype(dtype)
        scores[..., ::5] = rng.choice([np.nan, np.inf, -np.inf, 0, -0.0], scores[..., ::5].shape)
        scores[1, 4] = np.nan
        for limits in (np.full(5, n_cols), np.array([n_cols, n_cols // 2, 0, 1, n_cols])):
            got = cuda_on_cpu.largest(scores, n_selected, limits)
            assert np.array_equal(got, top_of_rows(scores, n_selected, limits))


@pytest.mark.skipif(cuda_on_cpu.why_not() is not None, reason=str(cuda_on_cpu.why_not()))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbouring_numbers_are_told_apart(dtype):
    info = np.finfo(dtype)
    rising = np.array([-np.inf, np.nan, info.min, -1, np.nextafter(dtype(-1), dtype(0)), -info.tiny,
                       -info.smallest_subnormal, -0.0, 0, info.smallest_subnormal, info.tiny, 1,
                       np.nextafter(dtype(1), dtype(2)), info.max, np.inf], dtype)
    scores = np.random.default_rng(0).permutation(rising)
    falling = [col for col in np.argsort(-scores, kind="stable").tolist() if scores[col] > -np.inf]
    for n in range(1, 16):
        wanted = sorted(falling[:n])
        assert cuda_on_cpu.largest(scores[None], n, [15])[0].tolist() == wanted + [-1] * (n - len(wanted))


@pytest.mark.parametrize("shape, n_selected", [((3, 0), 4), ((0, 5), 2), ((2, 4, 6), 0)])
def test_nothing_to_choose(shape, n_selected):
    scores = np.ones(shape, np.float32)
    for got in (top_of_rows(scores, n_selected), of_rows(scores, n_selected, np.full(shape[-2], shape[-1]))):
        assert got.dtype == np.int32 and np.array_equal(got, np.full((*shape[:-1], n_selected), -1))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("most", [1, 6, 500])
def test_recent_keys_of_a_bucket(most, padded):
    rng = np.random.default_rng(most)
    q, k = rng.integers(0, 9, (2, 3, 2, 7)), rng.integers(0, 9, (2, 3, 2, 90))
    valid = rng.random((2, 90)) < 0.7 if padded else None
    got = recent_in_bucket(q, k, most, valid)
    assert got.dtype == np.int32 and got.shape == (2, 3, 7, min(most, 90))
    for b, h, i in np.ndindex(2, 3, 7):
        met = [j for j in range(84 + i) if (q[b, h, :, i] == k[b, h, :, j]).any()
               and (valid is None or (valid[b, j] and valid[b, 83 + i]))]
        wanted = met[-most:]
        assert got[b, h, i].tolist() == wanted + [-1] * (min(most, 90) - len(wanted))


@pytest.mark.parametrize("factors", [[2], [6], [14, 2, 2]])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_buckets(dtype, factors, monkeypatch):
    """Whole numbers: their products are exact, and many of them are equal."""
    monkeypatch.setattr("sparseattn.selection.hashing.CHUNK", {"numpy": 1000})
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 2, 150, 5)).astype(dtype)
    x[0, 0, 5], x[0, 1, 7], x[1, 0, 9, 2] = 0, np.nan, np.inf
    rotations = rng.integers(-2, 3, (2, 4, 5, 3, sum(factors) // 2)).astype(np.float32)
    heads = np.arange(4) // 2
    got = buckets_of_products(x, rotations, factors, heads)
    assert got.dtype == np.int32 and np.array_equal(got, hash_buckets(x, rotations, factors, heads))
    assert not got[0, :2, :, 5].any() and not got[0, 2:, :, 7].any() and got.max() < np.prod(factors)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("window", [1, 12, 300])
def test_members_of_clusters(window, padded):
    rng = np.random.default_rng(window)
    x, means = rng.standard_normal((2, 2, 80, 6)), rng.standard_normal((4, 7, 6))
    x[0, 0, 3], x[1, 1, 5], x[1, 0, 8] = np.nan, 0, x[1, 0, 2]
    valid = rng.random((2, 80)) < 0.7 if padded else None
    heads = np.arange(4) // 2
    got = members_by_products(x, heads, means, window, valid)
    assert np.array_equal(got, cluster_members(x, heads, means, window, valid))
    assert not (got[0, :2] == 3).any()


def test_equal_tokens_tie_for_a_cluster():
    x = np.repeat(np.random.default_rng(0).standard_normal((1, 1, 10, 8)), 9, axis=2).astype(np.float32)
    means = np.random.default_rng(1).standard_normal((1, 5, 8)).astype(np.float32)
    members = members_by_products(x, [0], means, 14, None)[0, 0]
    assert (np.sort(members % 9, axis=1) == sorted([*range(9), *range(5)])).all()


def test_tokens_nearest_to_a_mean():
    """One with a NaN is nearest to none."""
    rng = np.random.default_rng(0)
    x, means = rng.standard_normal((2, 1, 50, 6)), rng.standard_normal((2, 4, 6))
    x[0, 0, 7, 2] = np.nan
    sums, counts = sums_by_mean(x, [0, 0], means, None)
    unit = x[:, 0] / np.linalg.norm(x[:, 0], axis=-1, keepdims=True)
    for head in range(2):
        nearest = np.where(np.isnan(unit).any(-1), -1, (unit @ means[head].T).argmax(-1))
        for c in range(4):
            assert counts[head, c] == (nearest == c).sum()
            assert np.allclose(sums[head, c], unit[nearest == c].sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_are_added_in_one_order(dtype):
    """To the bit as the loop that takes row by row, with two heads to one of the total's."""
    rng = np.random.default_rng(0)
    members = np.sort(rng.integers(-1, 40, (2, 4, 9, 13)).astype(np.int32), axis=3)
    members = np.where(np.diff(members, axis=3, prepend=-2) > 0, members, -1)  # a token is once in a cluster
    rows = rng.standard_normal((2, 4, 9, 13, 5)).astype(dtype)
    total = np.zeros((2, 2, 40, 5), np.float64 if dtype == np.float64 else np.float32)
    heads = np.arange(4) // 2
    got, expected = (add(rows, members, heads, total.copy()) for add in (add_by_turns, add_rows))
    assert got.any() and got.tobytes() == expected.tobytes()
    nobody = np.full_like(members, -1)
    assert not add_by_turns(rows, nobody, heads, total.copy()).any()


def test_sums_of_classes():
    rng = np.random.default_rng(0)
    rows, classes = rng.integers(-9, 9, (70, 5)).astype(np.float32), rng.integers(-1, 6, 70)
    for got, expected in zip(sums_by_product(rows, classes, 8), sums_by_class(rows, classes, 8)):
        assert np.array_equal(got, expected) and got.any() and not got[6:].any()


def test_among_the_best():
    rng = np.random.default_rng(0)
    for first in (0, 3):
        scores = rng.integers(0, 5, 40).astype(np.float32)
        for count in (0, 1, 17, 40, 50):
            assert np.array_equal(np.flatnonzero(among_best(scores, count, first)), best(scores, count, first))
    assert [count_to_cover(np.array([1.0, 4, 3, 2]), share) for share in (0, 0.4, 0.41, 0.9, 1)] == [1, 1, 2, 3, 4]


@pytest.mark.parametrize("n_rows, n_keys", [(1, 1), (1, 9), (4, 9), (9, 9)])
def test_sums_by_distance(n_rows, n_keys):
    rows = np.tril(np.random.default_rng(0).random((n_rows, n_keys)), n_keys - n_rows)
    by_distance = [sum(rows[i, n_keys - n_rows + i - d] for i in range(n_rows) if n_keys - n_rows + i >= d)
                   for d in range(n_keys)]
    assert np.allclose(diagonal_sums(rows), by_distance, rtol=0, atol=1e-13)


@pytest.mark.parametrize("same_bucket", [False, True])
@pytest.mark.parametrize("rules", [(True, False, True), (True, True, True), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("n, length, window, padded", [(90, 16, (1, 0), False), (61, 70, (1, 1), True),
                                                       (150, 70, (2, 1), False), (40, 7, (9, 9), True)])
def test_pairs_of_hash_rounds(n, length, window, padded, rules, same_bucket):
    rng = np.random.default_rng(n)
    live = rng.random((2, n)) < 0.7 if padded else None
    q, k = (sort_rounds(rng.integers(0, 6, (2, 2, 3, n)).astype(np.int32), 6, length, live) for _ in range(2))
    if rules[2]:
        k = q
    n_chunks = 3 * q.tokens.shape[3]
    before = min(window[0], n_chunks - 1)
    seen = before + 1 + min(window[1], n_chunks - 1 - before)
    wanted, got = (make(q, k, same_bucket, (before, seen), rules) for make in (masks_by_loops, masks_by_arrays))
    for ours, theirs in zip((*got[0], *got[1], got[2]), (*wanted[0], *wanted[1], wanted[2]), strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("offset", [None, 0, 13])
@pytest.mark.parametrize("window, padded", [(1, False), (24, False), (37, True), (90, False)])
def test_pairs_of_clusters(window, padded, offset):
    rng = np.random.default_rng(window)
    x = rng.standard_normal((2, 2, 97, 5)).astype(np.float32)
    means, valid = rng.standard_normal((2, 6, 5)).astype(np.float32), rng.random((2, 97)) < 0.3 if padded else None
    q, k = (cluster_members(x[:, :, :n], [0, 1], means, window, None if valid is None else valid[:, :n])
            for n in (84, 97))
    slots = np.full((*k.shape[:3], 2, -(-k.shape[3] // 2)), -1, np.int32)
    slots.reshape(*k.shape[:3], -1)[..., : k.shape[3]] = k
    tokens, cluster, bounds, masks, states = tiles_by_loops(q, k, slots, (84, 97), offset, 16)
    got = cluster_tiles(q, k, slots, (84, 97), offset, 16)
    assert got[2] == bounds and got[3].dtype == masks.dtype and got[4].dtype == states.dtype
    there = cluster >= 0
    for ours, theirs in zip((got[0], got[1], got[4][there]), (tokens, cluster, states[there]), strict=True):
        assert np.array_equal(ours, theirs)
    partial = (states == 0) & there[..., None]  # of full and empty tiles nobody reads the mask
    assert np.array_equal(got[3][partial], masks[partial]) and (partial.any() or window == 1 or padded)
