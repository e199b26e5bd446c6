"""What is claimed of the fixed patterns: coverage of their factors, draws, density in tiles, cost of building."""

import time
import tracemalloc

import numpy as np
import pytest
import scipy.sparse

import oracle
from sparseattn import Pattern, patterns

LONG = 131_072
CAUSAL = oracle.causal(256)[0, 0]


def dense(pattern):
    return pattern.to_dense()[0, 0]


def share(reached):
    """Share of the causal pairs."""
    return (reached & CAUSAL).sum() / CAUSAL.sum()


def test_strided_factors_reach_all_in_two_layers_and_no_shorter_ones_do():
    local, column = (dense(patterns.strided(256, stride=16, factor=f)) for f in ("local", "column"))
    assert np.array_equal(local @ column, CAUSAL) and np.array_equal(column @ local, CAUSAL)
    shorter = dense(patterns.sliding_window(256, left=14))
    assert not np.array_equal(shorter @ column, CAUSAL)


def test_fixed_reaches_all_by_its_last_sub_block_alone():
    shares = []
    for sub_block in range(4):
        options = {"stride": 32, "n_summary": 8, "sub_block": sub_block}
        local, summary = (dense(patterns.fixed(256, factor=f, **options)) for f in ("local", "summary"))
        shares.append(share(summary @ local | local))
        both = dense(patterns.fixed(256, **options))
        assert np.array_equal(both, local | summary)
        if sub_block == 0:
            assert share(local @ summary | local) == pytest.approx(0.35, abs=0.01)  # the order of the factors matters
    assert shares == pytest.approx([1, 0.78, 0.56, 0.35], abs=0.01)
    heads = patterns.fixed(256, stride=32, n_summary=8, sub_block=[0, 1, 2, 3]).to_dense()[0].any(0)
    assert np.array_equal(heads @ heads, CAUSAL)


def test_fixed_heads_share_their_local_part():
    pattern = patterns.fixed(256, stride=32, n_summary=8, sub_block=[0, 1, 0, 3])
    assert len(pattern.parts) == 4 and sum(part.heads is None for part in pattern.parts) == 1


def test_prefix_lm_is_causal_and_the_square_of_the_prefix():
    inside = np.arange(90) < 30
    square = Pattern.from_buckets(np.where(inside, 0, -1), np.where(inside, 0, -1))
    assert patterns.prefix_lm(90, 30).same_pairs(patterns.causal(90) | square)
    assert patterns.prefix_lm(90, 30, window=9).same_pairs(patterns.sliding_window(90, left=8) | square)
    assert patterns.prefix_lm(90, 0).same_pairs(patterns.causal(90))
    assert patterns.prefix_lm(90, 200).same_pairs(patterns.dense(90))


def test_prefix_stays_visible_behind_a_window():
    pattern = patterns.prefix_lm(90, 30, window=9) | Pattern.from_ranges([0] * 90, [30] * 90, 90)
    i, j = oracle.positions(90)
    assert np.array_equal(pattern.to_dense(), (j < 30) | (j <= i) & (j > i - 9))


def test_sinks_hold_as_many_keys_as_the_cache_and_the_present_one():
    keys = dense(patterns.attention_sinks(200, n_sinks=4, recent=20)).sum(1)
    assert keys.max() == 25 and np.array_equal(keys, np.minimum(np.arange(200) + 1, 25))


def test_one_decoded_token_has_the_row_of_the_whole():
    whole = patterns.attention_sinks(200, n_sinks=4, recent=20)
    one = patterns.attention_sinks(1, 200, n_sinks=4, recent=20, offset=[30, 199]).to_dense()[:, 0, 0]
    assert np.array_equal(one, dense(whole)[[30, 199]])


def test_random_blocks_are_distinct_and_uniform():
    drawn = patterns.random_blocks(20, per_row=5, block_size=1, n_heads=400, seed=1).to_dense()[0]
    assert (drawn.sum(2) == 5).all()
    # 8,000 rows, each block with chance 1 / 4; pairs of blocks with chance 1 / 19
    assert np.abs(drawn.mean((0, 1)) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 8000)
    rows = drawn.reshape(-1, 20).astype(int)
    together = (rows.T @ rows)[np.triu_indices(20, 1)] / 8000
    assert np.abs(together - 1 / 19).max() < 5 * np.sqrt(1 / 19 / 8000)


def test_random_blocks_follow_their_seed():
    options = {"per_row": 3, "block_size": 16, "n_heads": 2}
    first = patterns.random_blocks(300, seed=4, **options)
    assert first == patterns.random_blocks(300, seed=4, **options) and first != patterns.random_blocks(
        300, seed=5, **options)
    assert not np.array_equal(*first.to_dense()[0])
    wide = patterns.random_blocks(60, 90, per_row=2, block_size=(16, 8))
    assert (wide.to_dense()[0, 0, ::16, ::8].sum(1) == 2).all()
    assert patterns.random_blocks(60, 90, per_row=99, block_size=16).same_pairs(patterns.dense(60, 90))
    assert patterns.random_blocks(60, per_row=0).nnz == 0


@pytest.mark.parametrize(("n_window", "n_global"), [(3, None), (5, None), (3, 2), (1, 0)])
def test_bigbird_draws_outside_window_and_globals(n_window, n_global):
    options = {"block_size": 4, "n_window": n_window, "n_global": n_global, "n_heads": 200}
    pattern = patterns.bigbird(80, n_random=3, **options) - patterns.bigbird(80, n_random=0, **options)
    layout = pattern.to_dense()[0, :, ::4, ::4]
    others = np.ones((20, 20), bool) & ~patterns.bigbird(80, n_random=0, **options).to_dense()[0, 0, ::4, ::4]
    others[-1] = False  # rows 1 to n_rows - 2 draw
    others[0] = False
    assert np.array_equal(layout.sum(2), np.broadcast_to(np.minimum(others.sum(1), 3), (200, 20)))
    chance = np.minimum(3 / np.maximum(others.sum(1), 1), 1)[:, None] * others
    assert np.abs(layout.mean(0) - chance).max() < 5 * np.sqrt(0.25 / 200)
    few = patterns.bigbird(24, block_size=4, n_random=9)
    assert few.same_pairs(patterns.dense(24))  # fewer random blocks where fewer exist


def test_unidirectional_deepspeed_layouts_look_ahead_until_trimmed():
    layout = patterns.deepspeed_layout("fixed", 128, block_size=8, num_global_blocks=2, attention="unidirectional")
    assert not layout.same_pairs(layout & patterns.causal(128))
    trimmed = dense(layout & patterns.causal(128))
    assert np.array_equal(trimmed, dense(layout) & oracle.causal(128)[0, 0])
    four, five = (patterns.deepspeed_layout("local_sliding_window", 128, num_sliding_window_blocks=n,
                                            attention="bidirectional") for n in (4, 5))
    assert four == five  # an even window counts one block more


def test_ragged_deepspeed_layout_is_the_longer_one_cut():
    whole = patterns.deepspeed_layout("variable", 128, local_window_blocks=[2, 3])
    assert patterns.deepspeed_layout("variable", 115, local_window_blocks=[2, 3]).same_pairs(whole[:, :, :115, :115])


def test_top_left_documents_by_empty_ones():
    pattern = patterns.documents([5, 0, 3, 0], [5, 4, 3, 6], causal=True)
    expected = np.zeros((8, 18), bool)
    expected[:5, :5], expected[5:, 9:12] = np.tri(5, dtype=bool), np.tri(3, dtype=bool)
    assert np.array_equal(dense(pattern), expected)


def test_csr_keeps_every_entry():
    mask = oracle.sliding_window(60, left=9)[0, 0]
    csr = scipy.sparse.csr_array(mask)
    assert csr.nnz % 4 and np.array_equal(dense(Pattern.from_scipy(csr)), mask)
    assert np.array_equal(dense(Pattern.from_mask(mask)), mask)


@pytest.mark.parametrize(("pattern", "least"), [
    (lambda: patterns.sliding_window(8192, left=64, right=64, dilation=4), 0.6),
    (lambda: patterns.sliding_window(8192, left=128, dilation=3), 0.6),
    (lambda: patterns.strided(16384, stride=128), 0.75),
    (lambda: patterns.fixed(2048, stride=128, n_summary=32), 0.8),
    (lambda: patterns.fixed(LONG, stride=128, n_summary=32, sub_block=[0, 1, 2, 3]), 0.99),
    (lambda: patterns.random_blocks(8192, per_row=3), 1.0),
    (lambda: patterns.bigbird(8192), 1.0),
])
def test_density_in_tiles(pattern, least):
    assert pattern().density_in_tiles >= least


BUILDS = {
    "dense": lambda: patterns.dense(LONG), "causal": lambda: patterns.causal(LONG),
    "sliding_window": lambda: patterns.sliding_window(LONG, left=255),
    "dilated": lambda: patterns.sliding_window(LONG, left=64, right=64, dilation=[1, 2, 3, 4] * 2),
    "block_local": lambda: patterns.block_local(LONG, block=128, forward=1, wrap=True),
    "global_tokens": lambda: patterns.global_tokens(LONG, range(0, LONG, 512)),
    "documents": lambda: patterns.documents([LONG // 1024] * 1024, causal=True),
    "padding": lambda: patterns.padding(np.arange(LONG) % 10 > 0),
    "prefix_lm": lambda: patterns.prefix_lm(LONG, 1000, window=512),
    "attention_sinks": lambda: patterns.attention_sinks(LONG, n_sinks=4, recent=255),
    "strided": lambda: patterns.strided(LONG, stride=128),
    "fixed": lambda: patterns.fixed(LONG, stride=128, n_summary=32, sub_block=[0, 1, 2, 3]),
    "longformer": lambda: patterns.longformer(LONG, window=512, global_tokens=range(8)),
    "longformer dilated": lambda: patterns.longformer(LONG, window=512, dilation=[1, 2], global_tokens=[0, 9]),
    "random_blocks": lambda: patterns.random_blocks(LONG, per_row=3, n_heads=8),
    "bigbird": lambda: patterns.bigbird(LONG, n_heads=8),
    "bigbird official": lambda: patterns.bigbird(LONG, n_heads=8, plan="official"),
    "etc": lambda: patterns.etc(LONG, LONG // 128, radius=84, hard=True, sentence=np.arange(LONG) // 128),
    "deepspeed_layout": lambda: patterns.deepspeed_layout("bigbird", LONG, block_size=64),
}


@pytest.mark.parametrize("name", BUILDS)
def test_building_131072_tokens(name):
    began = time.process_time()
    BUILDS[name]()
    assert time.process_time() - began < 1
    tracemalloc.start()
    try:
        BUILDS[name]()
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
