"""Reach: boolean products of patterns, against plain matrix products, and published claims on what stacks connect."""

import itertools

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns


def slow(layers, residual=False):
    """The product of boolean matrices, the lowest layer first."""
    product = np.eye(layers[0].shape[1], dtype=int)
    for pattern in layers:
        layer = pattern.to_dense().any(axis=(0, 1)).astype(int)
        product = ((layer + residual * np.eye(*layer.shape, dtype=int)) @ product > 0).astype(int)
    return product > 0


def blocks(seed, n_queries, n_keys, n_heads=1):
    return patterns.random_blocks(n_queries, n_keys, per_row=2, block_size=(3, 2), n_heads=n_heads, seed=seed)


@pytest.mark.parametrize("sizes", [(1, 1), (7, 7, 7), (8, 8, 8, 8), (65, 70, 33), (130, 64, 129, 200)])
@pytest.mark.parametrize("n_heads", [1, 3])
def test_product(sizes, n_heads):
    """Sizes from the last layer's queries down to the first one's keys."""
    layers = [blocks(i, q, k, n_heads) for i, (q, k) in enumerate(itertools.pairwise(sizes))][::-1]
    reach = sa.reach(layers)
    assert np.array_equal(reach.pairs, slow(layers))
    assert reach.n_layers == len(layers) and reach.pairs.dtype == bool
    missing = {tuple(x) for x in reach.unreached}
    assert missing == set(zip(*np.nonzero(~reach.pairs))) and reach.unreached.dtype == np.int32


def test_residual():
    factor = patterns.fixed(60, stride=12, n_summary=3, factor="summary")
    layers = [factor, patterns.sliding_window(60, left=4, right=1)]
    assert np.array_equal(sa.reach(layers, residual=True).pairs, slow(layers, residual=True))
    assert not np.array_equal(sa.reach(layers).pairs, sa.reach(layers, residual=True).pairs)


def test_repeated_in_turn():
    layers = [blocks(0, 40, 40), patterns.sliding_window(40, left=1)]
    assert np.array_equal(sa.reach(layers, n_layers=5).pairs, slow(layers + layers + layers[:1]))


def test_strips_of_a_long_pattern(monkeypatch):
    from sparseattn.profiling import reach as module

    layers = [blocks(3, 50, 70, 2)]
    monkeypatch.setattr(module, "STRIP", 500)
    assert np.array_equal(module.reach(layers).pairs, slow(layers))


@pytest.mark.parametrize("n", [16, 300])
def test_a_star_reaches_all_in_two_layers(n):
    star = patterns.global_tokens(n, [n // 3]) | patterns.sliding_window(n, left=0)
    reach = sa.reach(star)
    assert reach.layers_to_full == 2 and reach.pairs.all() and not reach.unreached.size


@pytest.mark.parametrize("n", [128, 512])
def test_bigbird_and_longformer_with_globals_in_two_layers(n):
    assert sa.reach(patterns.bigbird(n, block_size=8, n_random=0)).layers_to_full == 2
    assert sa.reach(patterns.longformer(n, window=16, global_tokens=[0])).layers_to_full == 2


@pytest.mark.parametrize(("n", "w"), [(100, 1), (100, 7), (256, 16), (257, 16)])
def test_windows(n, w):
    assert sa.reach(patterns.sliding_window(n, left=w, right=w)).layers_to_full == -(-(n - 1) // w)
    behind = sa.reach(patterns.sliding_window(n, left=w), n_layers=3)
    distance = np.arange(n)[:, None] - np.arange(n)
    assert behind.causal and np.array_equal(behind.pairs, (distance >= 0) & (distance <= 3 * w))
    assert sa.reach(patterns.sliding_window(n, left=w)).layers_to_full == -(-(n - 1) // w)


def test_strided_needs_exactly_as_many_local_keys_as_its_stride():
    n, stride = 256, 16
    local, column = (patterns.strided(n, stride=stride, factor=f) for f in ("local", "column"))
    for layers in ([local, column], [column, local]):
        assert sa.reach(layers).layers_to_full == 2
    fewer = patterns.sliding_window(n, left=stride - 2)
    for layers in ([fewer, column], [column, fewer]):
        reach = sa.reach(layers)
        assert reach.layers_to_full is None and reach.causal and reach.unreached.size


def test_fixed_reaches_all_through_the_last_sub_block_alone():
    n, stride, c = 256, 32, 8
    summaries = [patterns.fixed(n, stride=stride, n_summary=c, sub_block=u, factor="summary") for u in range(4)]
    local = patterns.fixed(n, stride=stride, n_summary=c, factor="local")
    shares = [sa.reach([local, summary], residual=True).share for summary in summaries]
    assert shares[0] == 1.0 and np.allclose(shares[1:], [0.78, 0.56, 0.35], atol=0.006)
    several = sa.reach(local | summaries[3], n_layers=9)
    assert several.share == pytest.approx(shares[3]) and several.layers_to_full is None
    united = sa.Pattern.per_head(summaries)
    assert sa.reach([local, united], residual=True).layers_to_full == 2
    turned = [sa.reach([summary, local], residual=True).share for summary in summaries]  # summaries below
    assert np.allclose(turned, 0.35, atol=0.006)


@pytest.mark.parametrize(("n", "most"), [(16, 6), (64, 6), (256, 7)])
def test_random_graphs_reach_all_in_a_logarithm_of_layers(n, most):
    """Blocks of one token: a window of 3 and 3 random ones, no global token."""
    options = {"block_size": 1, "n_window": 3, "n_random": 3, "n_global": 0}
    assert 2 < sa.reach(patterns.bigbird(n, **options)).layers_to_full <= most


@pytest.mark.parametrize(("n", "expected"), [(16, 9), (64, 57), (256, 249)])
def test_the_released_bigbird_plan_is_as_slow_as_its_window(n, expected):
    plan = patterns.bigbird(n, block_size=1, n_window=3, n_random=3, n_global=0, plan="official")
    assert sa.reach(plan).layers_to_full == expected
    assert sa.reach(patterns.sliding_window(n, left=1, right=1)).layers_to_full == n - 1


def test_dilation():
    n, w = 256, 16
    odd = sa.reach(patterns.sliding_window(n, left=w, right=w, dilation=2))
    assert odd.layers_to_full is None and not odd.pairs[0, 1] and odd.share == 0.5
    heads = patterns.sliding_window(n, left=w, right=w, dilation=[1, 2])
    assert sa.reach(heads).layers_to_full == 9
    assert sa.reach(patterns.sliding_window(n, left=w, right=w)).layers_to_full == 16


def test_causal_sinks_do_not_shorten_the_road():
    reach = sa.reach(patterns.attention_sinks(300, n_sinks=4, recent=28))
    assert reach.layers_to_full == -(-299 // 28) == 11


def test_repeating_without_end_stops():
    swapped = sa.Pattern.from_csr([0, 1, 2], [1, 0], 2)
    reach = sa.reach(swapped)
    assert reach.layers_to_full is None and reach.pairs.sum() == 2
    assert "never" in repr(reach) and "from 2 layers" in repr(sa.reach(patterns.global_tokens(9, [1])))


def test_refused():
    square, tall = patterns.causal(8), patterns.dense(6, 8)
    for given, error, message in (
        ([], ValueError, "one a layer"),
        ([square, "window"], TypeError, "layer 1 is a str"),
        ([square, tall, square], ValueError, "the layer below 6 queries"),
        ([patterns.causal(4, 8, offset=[1, 2])], ValueError, "2 batch items"),
    ):
        with pytest.raises(error, match=message):
            sa.reach(given)
    with pytest.raises(ValueError, match="can be repeated only where these are equal"):
        sa.reach(tall)
    with pytest.raises(ValueError, match="at least 1"):
        sa.reach(square, n_layers=0)
    with pytest.raises(TypeError, match="whole number"):
        sa.reach(square, n_layers=2.5)
    with pytest.raises(ValueError, match="as many queries as keys"):
        sa.reach([tall], residual=True)
