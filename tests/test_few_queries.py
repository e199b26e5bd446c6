"""Few queries are cut into blocks number by number; the blocks are those that cutting all rows at once gives."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sparseattn import Pattern, patterns
from sparseattn.index_ops.few import QUERIES, cut_few
from sparseattn.index_ops.cells import from_cells
from sparseattn.index_ops.tiles import cells_of


@st.composite
def few_ranges(draw):
    """Ranges of few queries over few keys, and what they attend as booleans."""
    lead, n_keys = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)])), draw(st.integers(1, 200))
    n_queries = draw(st.sampled_from([1, 2, 7, 16]))
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    near = draw(st.booleans())  # a window that moves by one key a query, or ranges that have nothing in common
    first = seed.integers(0, n_keys + 1, (*lead, 1)) + np.arange(n_queries)
    starts = first if near else seed.integers(0, n_keys + 1, (*lead, n_queries))
    stops = starts + draw(st.integers(0, 90)) if near else seed.integers(0, n_keys + 1, starts.shape)
    keys = np.arange(n_keys)
    return Pattern.from_ranges(starts, stops, n_keys), (keys >= starts[..., None]) & (keys < stops[..., None])


@given(few_ranges(), st.sampled_from([1, 3, 8, 32]), st.sampled_from([1, 3, 16, 32, 70]))
def test_same_blocks_as_all_rows_at_once(case, block_q, block_k):
    pattern, dense = case
    for part in pattern.parts:
        few = cut_few(part, (block_q, block_k))
        if few is not None:  # many partial blocks: left to the other way
            assert few.digest == from_cells(cells_of(part, (block_q, block_k))).digest
            assert np.array_equal(Pattern((few,), pattern.shape, *few.lead).check().to_dense(), dense)


def test_which_ranges_are_few():
    one, = patterns.sliding_window(1, 5000, left=3000).parts
    assert cut_few(one, (1, 64)).n_blocks == 48
    many, = patterns.causal(QUERIES + 1).parts
    assert cut_few(many, (32, 32)) is None
    apart, = Pattern.from_ranges([0, 4990], [10, 5000], 5000).parts
    assert cut_few(apart, (32, 32)) is None  # 156 blocks would be looked at for two that hold pairs
    assert cut_few(apart, (1, 32)).n_blocks == 3
    dilated, = patterns.sliding_window(4, 40, left=3, dilation=2).parts
    assert cut_few(dilated, (1, 32)) is None


def test_a_single_query_has_rows_of_its_own():
    for pattern in (patterns.causal(1, 250), patterns.causal(100)[:, :, 80:81], patterns.dense(1, 70, block_size=32)):
        tiles, = pattern.tiles()
        assert tiles.block_size[0] == 1
        assert np.array_equal(Pattern((tiles,), pattern.shape).to_dense(), pattern.to_dense())


def test_growing_caches_attend_what_they_should():
    for n_keys in (1, 31, 64, 65, 200):
        key = np.arange(n_keys)
        for n_queries in (1, min(5, n_keys)):
            query = np.arange(n_queries)[:, None] + n_keys - n_queries
            assert np.array_equal(patterns.causal(n_queries, n_keys).to_dense()[0, 0], key <= query)
            window = patterns.sliding_window(n_queries, n_keys, left=40)
            assert np.array_equal(window.to_dense()[0, 0], (key <= query) & (key >= query - 40))
        far = patterns.sliding_window(1, n_keys, left=0, right=7, offset=-3).to_dense()[0, 0]
        assert np.array_equal(far[0], key <= 4)
        beyond = patterns.sliding_window(1, n_keys, left=9, offset=10**12)
        assert beyond.nnz == 0
