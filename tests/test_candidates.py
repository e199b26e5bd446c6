"""Candidates: what they hold, by formula; defaults from statistics; peaks of profiles; costs."""

import numpy as np
import pytest

import sparseattn as sa
from sparseattn.index_ops.counting import count_by_head
from sparseattn.profiling import candidates, costs, families, peaks
from sparseattn.profiling.candidates import Candidate, as_candidates, defaults

LENGTHS = [(60, 60), (25, 60), (64, 64)]


def arrays(n_queries, n_keys, n_heads=2, n_kv_heads=2, dim=8):
    rng = np.random.default_rng(n_queries)
    return (rng.standard_normal((1, n_heads, n_queries, dim), dtype=np.float32),
            rng.standard_normal((1, n_kv_heads, n_keys, dim), dtype=np.float32))


def near(distance, causal, size):
    return ((distance >= 0) & (distance < size)) if causal else np.abs(distance) <= size // 2


# family: options, and what else than a window of 12 the rule holds for distance i - j, key j and head h
RULES = {
    "window": ({"size": 12, "first": 3}, lambda d, j, h: j < 3),
    "strided": ({"stride": 7, "size": 12}, lambda d, j, h: d % 7 == 0),
    "even": ({"stride": 5, "size": 12}, lambda d, j, h: j % 5 == 0),
    "columns": ({"columns": [[40, 3], [17, 18]], "size": 12}, lambda d, j, h: np.isin(j, [[3, 40], [17, 18]][h])),
    "diagonals": ({"offsets": [[20, 33], [21, 23]], "width": 1, "size": 12},
                  lambda d, j, h: np.isin(np.abs(d), [[19, 20, 21, 32, 33, 34], [20, 21, 22, 23, 24]][h])),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("family", RULES)
def test_rules(family, lengths, causal):
    options, rule = RULES[family]
    n_queries, n_keys = lengths
    pattern = Candidate(family, family, options).build(*arrays(n_queries, n_keys), causal).check()
    i, j = np.arange(n_keys - n_queries, n_keys)[:, None], np.arange(n_keys)
    for head in range(2):
        expected = near(i - j, causal, 12) | rule(i - j, j, head)
        expected &= (j <= i) | (not causal)
        found = pattern.to_dense()[0, head % pattern.n_heads]
        assert np.array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize("causal", [True, False])
def test_choices_are_those_of_the_families(causal):
    q, k = arrays(128, 128, 4, 2)
    P = sa.patterns
    found = {name: Candidate(name, name, options).build(q, k, causal) for name, options in (
        ("top_keys", {"n": 9}), ("top_blocks", {"block": 4, "n": 6, "near": 2}))}
    assert found["top_keys"].same_pairs(P.top_k(q, k, n_selected=9, causal=causal))
    repeated = np.repeat(k, 2, axis=1)
    assert found["top_blocks"].same_pairs(P.block_top_k(q, repeated, block_size=4, n_blocks=6, local_blocks=2,
                                                        causal=causal))
    if causal:
        pages = Candidate("pages", "pages", {"page": 4, "n": 5, "size": 10}).build(q, k, True)
        expected = P.quest(q, k, page_size=4, token_budget=20) | P.sliding_window(128, left=9)
        assert pages.same_pairs(expected)
        lines = Candidate("lines", "vertical_slash", {"vertical": 40, "slash": 60}).build(q, k, True)
        assert lines.same_pairs(P.vertical_slash(q, k, n_vertical=40, n_slash=60))


@pytest.mark.parametrize("before", [0, 3])
def test_grids(before):
    grid = (6, 8)
    q, k = arrays(48 + before, 48 + before)
    P = sa.patterns
    axis = [np.arange(48) // 8, np.arange(48) % 8]
    same = [np.equal.outer(x, x) for x in axis]
    modulo = np.logical_and(*[np.equal.outer(x % 2, x % 2) for x in axis])
    expected = {
        "neighborhood": ({"kernel": [3, 5]}, P.neighborhood(grid, kernel_size=(3, 5)).to_dense()[0, 0]),
        "swin": ({"window": [3, 4], "shift": [1, 2]}, P.swin(grid, window=(3, 4), shift=(1, 2)).to_dense()[0, 0]),
        "axial": ({"stride": 2}, same[0] | same[1] | modulo),
        "grid_strided": ({"stride": 2}, modulo),
    }
    for name, (options, inner) in expected.items():
        found = Candidate(name, name, {"grid": grid} | options).build(q, k, False).check().to_dense()[0, 0]
        whole = np.ones(found.shape, bool)
        whole[before:, before:] = inner
        assert np.array_equal(found, whole)
    with pytest.raises(ValueError, match="48 tokens but q only 40"):
        Candidate("axial", "axial", {"grid": grid}).build(*arrays(40, 40), False)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(300, 300), (100, 300), (5, 5)], ids=str)
def test_defaults_fit_any_input(lengths, causal):
    """Every query has a key, causal ones see nothing ahead, each head can be built alone, names differ."""
    q, k = arrays(*lengths, 4, 2)
    rng = np.random.default_rng(0)
    offsets, columns = rng.random((2, 4, lengths[1]))
    found = defaults(*lengths, causal=causal, offsets=offsets, columns=columns)
    assert len({c.name for c in found}) == len(found) and found[0].family == "dense"
    position = np.arange(lengths[1] - lengths[0], lengths[1])[:, None]
    for candidate in found:
        pattern = candidate.build(q, k, causal)
        dense = np.broadcast_to(pattern.to_dense(), (1, 4, *lengths))
        assert dense.any(axis=3).all() and pattern.shape == lengths, candidate.name
        assert not (causal and (dense & (np.arange(lengths[1]) > position)).any()), candidate.name
        some = candidate.of_heads([1, 3], 4).build(q[:, [1, 3]], k[:, [0, 1]], causal)
        assert np.array_equal(np.broadcast_to(some.to_dense(), (1, 2, *lengths)), dense[:, [1, 3]]), candidate.name


def test_defaults_of_a_long_input_and_a_grid():
    flat = np.ones((2, 4096))
    names = {c.family for c in defaults(4096, 4096, causal=True, offsets=flat, columns=flat)}
    assert names == {"dense", "window", "strided", "even", "random", "columns", "diagonals", "top_keys", "top_blocks",
                     "pages", "vertical_slash"}
    grid = defaults(1370, 1370, causal=False, grid=(37, 37))
    assert {"neighborhood", "swin", "axial", "grid_strided"} <= {c.family for c in grid}
    q, k = arrays(1370, 1370)
    for candidate in grid:
        if not candidate.dynamic:
            assert candidate.build(q, k, False).shape == (1370, 1370)


def test_a_window_of_a_million_tokens_is_built_at_once():
    q = np.broadcast_to(np.float32(0), (1, 2, 1 << 20, 8))
    for candidate in defaults(1 << 20, 1 << 20, causal=True):
        if candidate.family in ("dense", "window", "strided", "even"):
            assert candidate.build(q, q, True).shape == (1 << 20, 1 << 20)


def test_strides_at_peaks():
    n = 512
    mass = np.full((3, n), 0.2 / n)
    mass[0, ::24] += 0.8 / len(range(0, n, 24))
    mass[1, :8] += 0.1
    mass[2, ::40] += 0.8 / len(range(0, n, 40))
    assert peaks.strides(mass) == [24, 40]
    assert peaks.strides(np.full((2, n), 1 / n)) == []


def test_diagonals_and_columns_at_peaks():
    mass = np.zeros((2, 200))
    mass[0, [90, 92, 150]] = 0.3, 0.2, 0.4
    mass[1, 5] = 1.0  # inside the window
    first, second = peaks.diagonals(mass, 2, 64)
    assert all(abs(found - wanted) <= peaks.WIDTH for found, wanted in zip(first, (91, 150)))
    assert len(second) == 2 and min(second) >= 64
    assert peaks.largest(np.array([[0.1, 0.5, 0.0, 0.4], [0.3, 0.3, 0.3, 0.1]]), 2) == [[1, 3], [0, 1]]


def test_given_ones():
    pattern = sa.Pattern.per_head([sa.patterns.causal(20), sa.patterns.sliding_window(20, left=3)])
    found = as_candidates({"mine": pattern, "lambda": lambda q, k: sa.patterns.causal(q.shape[2]),
                           "small": Candidate("other", "window", {"size": 4})})
    assert [c.name for c in found] == ["mine", "lambda", "small"]
    assert [c.dynamic for c in found] == [False, True, False]
    q, k = arrays(20, 20)
    assert found[0].of_heads([1], 2).build(q[:, 1:], k[:, 1:], True).same_pairs(pattern[:, 1:2])
    assert found[1].build(q, k, True).same_pairs(sa.patterns.causal(20))
    with pytest.raises(ValueError, match="give a Candidate or a function"):
        found[0].build(*arrays(25, 25), True)
    with pytest.raises(ValueError, match="two candidates are named 'a'"):
        as_candidates([("a", pattern), ("a", pattern)])
    with pytest.raises(TypeError, match="is a int; expected a Pattern"):
        as_candidates([3])


def test_counts_by_head():
    q, k = np.random.default_rng(0).standard_normal((2, 3, 4, 100, 8), dtype=np.float32)
    P = sa.patterns
    each = sa.Pattern.per_head([P.causal(100), P.sliding_window(100, left=3), P.strided(100, stride=9), P.dense(100)])
    padded = P.padding(np.arange(100) < np.array([[50], [70], [90]])) & P.causal(100)
    for pattern in (P.top_k(q, k, n_selected=7, causal=True), P.block_top_k(q, k, block_size=16, n_blocks=3), each,
                    P.sliding_window(100, left=8, dilation=[1, 3, 3, 5]), padded):
        kept, stored = sum(count_by_head(part, pattern.n_heads) for part in pattern.tiles())
        assert np.allclose(kept, pattern.to_dense().sum(axis=(2, 3)).mean(axis=0))
        assert np.all(stored >= kept)
        assert stored.sum() * pattern.batch == pytest.approx(kept.sum() * pattern.batch / pattern.density_in_tiles)


def test_costs():
    q, k = arrays(256, 256, 4, 2)
    window = Candidate("w", "window", {"size": 16})
    cost = costs.of(window.build(q, k, True), window, q, k)
    assert cost.kept.shape == cost.stored.shape == cost.seconds.shape == (4,)
    assert np.all(cost.kept == 256 * 16 - 120) and np.all(cost.stored > cost.kept)
    whole = costs.of(costs.DENSE.build(q, k, True), costs.DENSE, q, k)
    assert np.all(whole.seconds > cost.seconds) and np.all(whole.kept == 256 * 257 / 2)
    chosen = Candidate("top", "top_keys", {"n": 4})
    assert np.all(costs.of(chosen.build(q, k, True), chosen, q, k).seconds > cost.seconds)
    assert set(costs.CHOOSING) == set(families.DYNAMIC) and candidates.SIZE == 64
