"""profile against the definitions, written out in float64 over all pairs."""

import functools
import tracemalloc

import numpy as np
import pytest
from test_goldens import load

import sparseattn as sa
from sparseattn import patterns
from sparseattn.profiling import variability

MASSES, QUANTILES = (0.5, 0.9, 0.99), (0.5, 0.95)


def softmax(q, k, scale, causal, valid=None):
    """Dense weights (batch, n_heads, n_queries, n_keys), float64, and which pairs are allowed."""
    q, k = (np.asarray(x, np.float64) for x in (q, k))
    group, (n_queries, n_keys) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    s = scale * q @ np.repeat(k, group, axis=1).swapaxes(2, 3)
    allowed = np.ones(s.shape, bool)
    if causal:
        allowed &= np.arange(n_keys) <= np.arange(n_queries)[:, None] + n_keys - n_queries
    if valid is not None:
        allowed &= valid[:, None, None, :]
        if n_queries == n_keys:
            allowed &= valid[:, None, :, None]
    s = np.where(allowed, s, -np.inf)
    top = s.max(axis=-1, keepdims=True)
    e = np.exp(s - np.where(np.isfinite(top), top, 0))
    with np.errstate(invalid="ignore"):
        return e / e.sum(axis=-1, keepdims=True), allowed


def xlogx(p):
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0.0)


def by_definition(p, allowed):
    """Quantities of rows, name: (..., n_rows) or with one more axis; NaN or 0 where a row has no key."""
    n_queries, n_keys = p.shape[2:]
    place = np.arange(n_queries)[:, None] + n_keys - n_queries
    step = np.arange(n_keys) - place
    count = allowed.sum(axis=-1)
    entropy = np.where(count, -xlogx(p).sum(axis=-1), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "allowed": count, "entropy": entropy, "effective_keys": np.exp(entropy),
            "normalized_entropy": np.where(count == 1, 0.0, entropy / np.log(count)),
            "collision_keys": 1 / (p * p).sum(axis=-1), "max_weight": p.max(axis=-1), "sink_mass": p[..., 0],
            "distance": (p * abs(step)).sum(axis=-1), "offset": (p * step).sum(axis=-1),
        }
    ordered = -np.sort(-p, axis=-1)
    held = np.cumsum(ordered, axis=-1)
    found["keys_at_mass"] = np.stack([(held < m * (1 - 1e-12)).sum(axis=-1) + 1 for m in MASSES], axis=-1)
    found["keys_at_mass"][count == 0] = 0
    found["sparsity_at_mass"] = 1 - found["keys_at_mass"] / np.where(count, count, np.nan)[..., None]
    shares = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    best = [np.take_along_axis(held, np.maximum(np.ceil(x * count).astype(int), 1)[..., None] - 1, axis=-1)[..., 0]
            for x in shares]
    found["oracle_recall"] = np.stack(best, axis=-1)
    found["distance_quantiles"] = np.stack([_within(p, abs(step), m) for m in QUANTILES], axis=-1)
    return found


def _within(p, distance, mass):
    """The least distance within which so much mass lies."""
    found = np.full(p.shape[:3], np.nan)
    for b, h, i in np.ndindex(found.shape):
        if not np.isnan(p[b, h, i]).any():
            near = np.bincount(distance[i], p[b, h, i])
            found[b, h, i] = np.argmax(np.cumsum(near) >= mass * (1 - 1e-12))
    return found


def inputs(shape=(2, 4, 150, 16), n_kv_heads=2, n_keys=150, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    q = 2 * rng.standard_normal(shape)
    k, v = (rng.standard_normal((shape[0], n_kv_heads, n_keys, shape[3])) for _ in range(2))
    return tuple(x.astype(dtype) for x in (q, k, v))


measured = functools.partial(sa.profile, masses=MASSES, quantiles=QUANTILES, candidates=[])
CALLS = {
    "causal": ({}, {"causal": True}), "all": ({}, {}), "scaled": ({}, {"scale": -0.4, "causal": True}),
    "alike": ({}, {"scale": 0.0}),
    "later": ({"n_keys": 211}, {"causal": True}), "later, all": ({"n_keys": 211}, {}),
    "earlier": ({"n_keys": 90}, {"causal": True}), "earlier, all": ({"n_keys": 90}, {}),
    "blocks of 10": ({}, {"causal": True, "block_sizes": (5, 10)}),
    "some rows": ({}, {"causal": True, "rows": [3, 7, 64, 149]}), "one key": ({"n_keys": 1}, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_rows(name):
    made, options = CALLS[name]
    q, k, _ = inputs(**made)
    profile = measured(q, k, **options)
    p, allowed = softmax(q, k, options.get("scale", 0.25), options.get("causal", False))
    _compare(profile, p, allowed)


def test_padding():
    q, k, v = inputs()
    valid = np.ones((2, 150), bool)
    valid[0, 100:] = valid[1, :20] = valid[1, 70] = False
    q[0, :, 100:], k[0, :, 100:], v[0, :, 100:] = np.nan, np.nan, np.inf
    for causal in (False, True):
        p, allowed = softmax(np.nan_to_num(q), np.nan_to_num(k), 0.25, causal, valid)
        _compare(measured(q, k, v, causal=causal, valid=valid), p, allowed)


def _compare(profile, p, allowed):
    """Rows, their means, and sums over rows."""
    rows = profile.row_positions
    p, allowed = p[:, :, rows], allowed[:, :, rows]
    whole = np.full((*p.shape[:2], profile.shape[0], p.shape[3]), np.nan)
    whole[:, :, rows] = p
    there = np.zeros(whole.shape, bool)
    there[:, :, rows] = allowed
    found = by_definition(whole, there)
    for name, wanted in found.items():
        wanted, got = wanted[:, :, rows], getattr(profile.rows, name)
        if name in ("allowed", "keys_at_mass"):
            assert np.array_equal(got, wanted), name
        else:
            np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(getattr(profile, name), _mean(wanted, allowed), rtol=1e-11, atol=1e-12)
    _compare_sums(profile, np.nan_to_num(p), allowed)


def _mean(x, allowed):
    """Over rows that have a key."""
    keep = allowed.any(axis=-1)
    out = np.empty(keep.shape[:2] + x.shape[3:])
    for b, h in np.ndindex(keep.shape[:2]):
        out[b, h] = x[b, h][keep[b, h]].mean(axis=0)
    return out


def _compare_sums(profile, p, allowed):
    n_keys, count = p.shape[3], allowed.any(axis=-1).sum(axis=-1)[..., None]
    np.testing.assert_allclose(profile.column_mean, p.sum(axis=2) / count, rtol=1e-11, atol=1e-14)
    with np.errstate(invalid="ignore"):
        wanted = p.sum(axis=2) / np.where(allowed.any(axis=2), allowed.sum(axis=2), np.nan)
    np.testing.assert_allclose(profile.column_profile, wanted, rtol=1e-11, atol=1e-14)
    place = profile.row_positions + n_keys - profile.shape[0]
    step = np.arange(n_keys) - place[:, None]
    for at, offset in enumerate(profile.offsets):
        here = (step == offset) & allowed
        mass, n = np.where(here, p, 0).sum(axis=(2, 3)), here.sum(axis=(2, 3))
        np.testing.assert_allclose(profile.offset_mean[..., at], mass / count[..., 0], rtol=1e-11, atol=1e-14)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(profile.offset_profile[..., at], mass / np.where(n, n, np.nan), rtol=1e-11,
                                       atol=1e-14)
    for distance in (0, 1, 5, n_keys - 1):
        near = np.where(abs(step) <= distance, p, 0).sum(axis=(2, 3)) / count[..., 0]
        np.testing.assert_allclose(profile.distance_curve[..., distance], near, rtol=1e-11)
    _compare_shapes(profile, p, allowed, step)


def _compare_shapes(profile, p, allowed, step):
    for at, size in enumerate(profile.block_sizes):
        line, col = profile.row_positions // size, np.arange(p.shape[3]) // size
        for b, h in np.ndindex(p.shape[:2]):
            mass, holds = (np.zeros((line.max() + 1, col.max() + 1)) for _ in range(2))
            np.add.at(mass, (line[:, None], col), p[b, h])
            np.add.at(holds, (line[:, None], col), allowed[b, h])
            best = -np.sort(-mass[holds > 0])
            wanted = best[: -(-best.size // 10)].sum() / best.sum()
            assert profile.block_share[b, h, at] == pytest.approx(wanted, rel=1e-11)
    a = p.sum(axis=2) / allowed.any(axis=-1).sum(axis=-1)[..., None]
    np.testing.assert_allclose(profile.verticality, xlogx(a).sum(axis=-1), rtol=1e-11)
    mean = (p * abs(step)).sum(axis=(2, 3)) / allowed.any(axis=-1).sum(axis=-1)
    np.testing.assert_allclose(profile.diagonality, -mean / p.shape[3], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["profile_causal", "profile_bidirectional"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_goldens(name, dtype):
    z, params = load(name)
    n, (window, sinks) = z["q"].shape[2], (params["pattern"]["window"], params["pattern"]["sinks"])
    pattern = patterns.sliding_window(n, left=window - 1, right=window - 1)
    pattern |= sa.Pattern.from_ranges(np.zeros(n, int), np.full(n, sinks), n)
    profile = sa.profile(z["q"].astype(dtype), z["k"].astype(dtype), z["v"].astype(dtype), causal=params["causal"],
                         scale=params["scale"], masses=params["masses"], quantiles=params["quantiles"],
                         candidates={"as published": pattern})
    rows = profile.rows
    for key, got in (("entropy", rows.entropy), ("entropy_norm", rows.normalized_entropy),
                     ("distance_mean", rows.distance), ("max_weight", rows.max_weight)):
        np.testing.assert_allclose(got, z[f"{key}_rows"], rtol=1e-6, atol=1e-12, err_msg=key)
    for i, q in enumerate((50, 90, 99)):
        assert np.array_equal(rows.distance_quantiles[..., i], z[f"distance_q{q}_rows"])
    assert np.array_equal(rows.keys_at_mass, z["keys_at_mass"])
    np.testing.assert_allclose(profile.column_mean, z["column_mean"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rows.recall[0], z["recall_rows"], atol=4e-6)
    np.testing.assert_allclose(profile.output_error[0], z["rel_error"], rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_float32_entropies_are_those_of_float64(causal):
    q, k, _ = inputs((1, 2, 400, 64), n_keys=400, dtype=np.float32)
    q *= np.array([0.2, 6.0], np.float32).reshape(2, 1, 1)
    single = sa.profile(q, k, causal=causal, candidates=[])
    double = sa.profile(q.astype(float), k.astype(float), causal=causal, candidates=[])
    assert double.rows.entropy[double.rows.entropy > 0].min() < 1e-3  # rows that one key fills
    np.testing.assert_allclose(single.rows.entropy, double.rows.entropy, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(single.rows.lse, double.rows.lse, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, -3.0, 40.0])
def test_far_scales(scale):
    q, k, _ = inputs((1, 2, 70, 16), n_keys=70, dtype=np.float32)
    profile = measured(q, k, causal=True, scale=scale)
    p, _ = softmax(q, k, scale, True)
    np.testing.assert_allclose(profile.rows.entropy, -xlogx(p).sum(axis=-1), rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(profile.column_mean, p.mean(axis=2), atol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    import ml_dtypes

    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    q, k, v = (x.astype(kind) for x in inputs((1, 2, 90, 16), n_keys=90))
    pattern = patterns.causal(90) & patterns.sliding_window(90, left=10)
    low = sa.profile(q, k, v, causal=True, candidates=[pattern])
    high = sa.profile(*(x.astype(np.float64) for x in (q, k, v)), causal=True, candidates=[pattern])
    np.testing.assert_allclose(low.rows.entropy, high.rows.entropy, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(low.output_error, high.output_error, rtol=2e-2)  # dense outputs are rounded to 16 bits
    np.testing.assert_allclose(low.rows.recall, high.rows.recall, rtol=1e-5)


@pytest.mark.parametrize("axes", [2, 3])
def test_fewer_axes(axes):
    q, k, v = (x[0, 0] for x in inputs((1, 1, 60, 16), 1, 60))
    small, whole = ((x[(None,) * (n - 2)] for x in (q, k, v)) for n in (axes, 4))
    candidates = [patterns.sliding_window(60, left=5, right=5)]
    own, wanted = (sa.profile(*x, candidates=candidates) for x in (small, whole))
    assert own.rows.entropy.shape == (1, 1, 60) and own.output_error.shape == (1, 1, 1)
    assert np.array_equal(own.rows.entropy, wanted.rows.entropy)


def test_grids():
    shape, before = (6, 9), 3
    n = before + 54
    q, k, _ = inputs((1, 2, n, 16), n_keys=n)
    profile = measured(q, k, shape=shape)
    p, _ = softmax(q, k, 0.25, False)
    p = p[..., before:] / p[..., before:].sum(axis=-1, keepdims=True)
    place = np.indices(shape).reshape(2, -1)
    step = abs(place[:, :, None] - place[:, None])  # (axes, queries, keys)
    wanted = [np.nan * np.zeros((1, 2, n)) for _ in range(3)]
    for found, d in zip(wanted, (*step, np.hypot(*step))):
        found[..., before:] = (p[:, :, before:] * d).sum(axis=-1)
    np.testing.assert_allclose(profile.rows.axis_distance, np.stack(wanted, axis=-1), rtol=1e-11)
    np.testing.assert_allclose(profile.axis_distance, np.stack(wanted, axis=-1)[:, :, before:].mean(axis=2), rtol=1e-11)
    assert profile.grid == shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_variability(causal, padded, monkeypatch):
    monkeypatch.setattr(variability, "CHUNK", 3000)
    q, k, _ = inputs((3, 4, 60, 16), 2, 60)
    q[:, 0], k[:, 0] = q[:1, 0], k[:1, 0]  # this head knows position alone
    valid = np.ones((3, 60), bool)
    valid[1, 50:] = valid[2, 7] = not padded
    p, allowed = softmax(q, k, 0.25, causal, valid)
    there = allowed.any(axis=-1).all(axis=(0, 1))
    p = np.nan_to_num(p)[:, :, there]
    wanted = abs(p - p.mean(axis=0)).sum(axis=(0, 2, 3)) / (2 * p.sum(axis=(0, 2, 3)))
    profile = measured(q, k, causal=causal, valid=valid)
    np.testing.assert_allclose(profile.variability, wanted, rtol=1e-10, atol=1e-14)
    assert wanted[0] < 0.1 < wanted[1] and measured(q[:1], k[:1]).variability is None


def test_equal_weights_and_long_rows():
    """Ties, bins that hold every key, and more keys than one work item holds."""
    n = 70_000
    k = np.zeros((1, 1, n, 4), np.float32)
    k[0, 0, ::7, 0] = 1.0
    q = np.full((1, 1, 3, 4), 8.0, np.float32)
    profile = sa.profile(q, k, candidates=[], scale=1.0, masses=(0.5, 1.0), quantiles=(0.5,))
    p = np.where(np.arange(n) % 7 == 0, np.exp(8.0), 1.0)
    p /= p.sum()
    assert profile.rows.keys_at_mass[0, 0, 0].tolist() == [int(np.ceil(0.5 / p[0])), n]
    np.testing.assert_allclose(profile.entropy, -xlogx(p).sum(), rtol=1e-9)
    np.testing.assert_allclose(profile.rows.max_weight, p[0], rtol=1e-6)


def test_the_same_bits_for_any_number_of_threads():
    q, k, v = inputs((1, 2, 600, 32), n_keys=600, dtype=np.float32)
    pattern = patterns.strided(600, stride=20)
    found = []
    for n in (1, 3):
        with sa.threads(n):
            profile = sa.profile(q, k, v, causal=True, candidates=[pattern])
        found.append([profile.rows.entropy, profile.column_mean, profile.offset_mean, profile.rows.recall,
                      profile.output_error, profile.block_share])
    assert all(np.array_equal(a, b) for a, b in zip(*found))


def test_memory():
    """O(n_keys): less than half of what the weights of the sampled rows would take, 1 in 70 of all."""
    n = 32_768
    q, k, v = (np.random.default_rng(i).standard_normal((1, 1, n, 16), dtype=np.float32) for i in range(3))
    window = patterns.sliding_window(n, left=100)
    sa.profile(q[:, :, :256], k[:, :, :256], v[:, :, :256], candidates=[window[:, :, :256, :256]])  # compiles
    tracemalloc.start()
    profile = sa.profile(q, k, v, causal=True, candidates=[window])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert profile.row_positions.size > 1000 and peak < 120e6


def test_sampled_rows():
    q, k, _ = inputs((1, 1, 5000, 8), 1, 5000, dtype=np.float32)
    profile = sa.profile(q, k, causal=True, candidates=[])
    rows = profile.row_positions
    assert 900 < rows.size < 1200 and set(range(5000 - 64, 5000)) <= set(rows.tolist())
    counts = np.histogram(rows[rows < 5000 - 64], bins=8, range=(0, 5000))[0]
    assert counts.min() > 0.7 * counts.max()
    for stride in (16, 48, 100, 128):  # no residue is missed, none is met much more often
        residues = np.bincount(rows % stride, minlength=stride)
        assert residues.min() > 0 and residues.max() < 4 * residues.mean()
    few = sa.profile(q, k, causal=True, candidates=[], rows=100)
    assert few.row_positions.size == 100 and few.row_positions[-1] == 4999
    assert sa.profile(q[:, :, :300], k[:, :, :300], candidates=[]).row_positions.size == 300
