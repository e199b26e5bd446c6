"""The laws of patterns, against dense booleans."""

import pickle
from operator import and_, or_, sub

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import any_pattern, over, pattern_pairs

from sparseattn import Pattern, patterns


def same(pattern, dense):
    """The pattern holds just these pairs, counts them rightly, and keeps the rules of its structure."""
    got = pattern.to_dense()
    assert got.shape == dense.shape
    assert np.array_equal(got, dense)
    assert pattern.nnz == dense.sum()
    pattern.check()
    tiles = Pattern(pattern.tiles(), pattern.shape, pattern.batch, pattern.n_heads)
    assert np.array_equal(tiles.to_dense(), dense)
    tiles.check()


@given(pattern_pairs())
def test_union_intersection_difference(pair):
    a, b = pair
    batch, n_heads = max(a.batch, b.batch), max(a.n_heads, b.n_heads)
    x, y = (over(p.to_dense(), batch, n_heads) for p in pair)
    same(a | b, x | y)
    same(a & b, x & y)
    same(a - b, x & ~y)


COMBINED = {"|": (or_, or_), "&": (and_, and_), "-": (sub, lambda x, y: x & ~y)}


def _heads_of(*names):
    """One pattern a head, each of another kind, so that parts name their heads."""
    kinds = {"window": patterns.sliding_window(45, left=6), "column": patterns.strided(45, stride=7, factor="column"),
             "local": patterns.block_local(45, block=8), "blocks": patterns.bigbird(45, block_size=8, n_random=1),
             "both": Pattern.per_batch([patterns.strided(45, stride=5), patterns.causal(45)])}
    return Pattern.per_head([kinds[name] for name in names])


SIX = _heads_of("column", "window", "both", "blocks", "local", "column")
UNEQUAL = [
    (_heads_of("window", "column"), _heads_of("column", "local", "window", "blocks")),
    (_heads_of("window", "window"), _heads_of("column", "both", "window", "column")),
    (_heads_of("both", "column"), _heads_of("window", "both", "both", "blocks")),
    (_heads_of("column", "blocks"), SIX), (_heads_of("blocks", "both", "window"), SIX),
    (Pattern.from_mask(SIX[0, :2].to_dense()), SIX), (patterns.strided(45, stride=5), SIX),
]


@pytest.mark.parametrize("pair", UNEQUAL, ids=lambda pair: f"{pair[0].n_heads} and {pair[1].n_heads}")
@pytest.mark.parametrize("sign", COMBINED)
def test_heads_of_unequal_counts(sign, pair):
    """Each head of the pattern of fewer heads stands for as many neighbouring ones of the other."""
    combined, expected = COMBINED[sign]
    x, y = (over(p.to_dense(), max(p.batch for p in pair), pair[1].n_heads) for p in pair)
    same(combined(pair[0], pair[1]), expected(x, y))
    same(combined(pair[1], pair[0]), expected(y, x))


@pytest.mark.parametrize("pair", UNEQUAL, ids=lambda pair: f"{pair[0].n_heads} and {pair[1].n_heads}")
def test_same_pairs_with_heads_of_unequal_counts(pair):
    few, many = pair
    each = many.n_heads // few.n_heads
    written_out = Pattern.per_head([few[:, h // each] for h in range(many.n_heads)])
    assert few.same_pairs(written_out) and written_out.same_pairs(few)
    assert few != written_out  # which is about how they are stored
    assert not few.same_pairs(many) and not many.same_pairs(few)


def test_parts_per_head_of_counts_without_a_common_multiple_among_them():
    """A part for each of 2 heads and one for each of 3, in patterns of 6."""
    rng = np.random.default_rng(0)
    two, three = (Pattern.from_mask(rng.random((h, 30, 30)) < 0.3) for h in (2, 3))
    none = Pattern.from_mask(np.zeros((6, 30, 30), bool))
    x, y = (over(p.to_dense(), 1, 6) for p in (two, three))
    same((two | none) & (three | none), x & y)
    same((two | none) | (three | none), x | y)
    same((two | none) - (three | none), x & ~y)


@given(pattern_pairs())
def test_laws(pair):
    a, b = pair
    assert (a | b).same_pairs(b | a)
    assert (a & b).same_pairs(b & a)
    assert ((a - b) | (a & b)).same_pairs(a | (a & b))
    assert ((a - b) & b).nnz == 0
    assert (a | a) == a or (a | a).same_pairs(a)


@given(any_pattern())
def test_transpose(a):
    same(a.T, a.to_dense().swapaxes(2, 3))
    assert a.T is a.T
    assert np.array_equal(a.T.T.to_dense(), a.to_dense())


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(any_pattern(), SIZES, SIZES)
def test_reblock_and_back(a, first, second):
    same(a.reblock(first), a.to_dense())
    same(a.reblock(first).reblock(second), a.to_dense())


def slices(n, least):
    return st.tuples(st.integers(0, n), st.integers(0, n), st.integers(1, 3)).map(
        lambda t: slice(min(t[:2]), max(*t[:2], min(t[:2]) + least), t[2]))


@given(st.data())
def test_slices(data):
    a = data.draw(any_pattern())
    dense = a.to_dense()
    key = tuple(data.draw(slices(n - least, least)) for n, least in zip(dense.shape, (1, 1, 0, 0), strict=True))
    same(a[key], dense[key])


def test_slices_of_few_axes_and_numbers():
    a = Pattern.per_batch([patterns.causal(9), patterns.dense(9)])
    assert np.array_equal(a[1].to_dense(), a.to_dense()[1:2])
    assert np.array_equal(a[..., 2:5, -1].to_dense(), a.to_dense()[..., 2:5, 8:9])
    assert a[0].same_pairs(patterns.causal(9))


@given(pattern_pairs(), st.integers(0, 3))
def test_concatenate(pair, axis):
    a, b = pair
    batch, n_heads = max(a.batch, b.batch), max(a.n_heads, b.n_heads)
    dense = [p.to_dense() for p in pair]
    if axis != 0:
        dense = [np.repeat(d, batch // d.shape[0], axis=0) for d in dense]
    if axis != 1:
        dense = [np.repeat(d, n_heads // d.shape[1], axis=1) for d in dense]
    same(Pattern.concatenate([a, b], axis), np.concatenate(dense, axis))


@given(pattern_pairs())
def test_per_head_and_per_batch(pair):
    a, b = (p[0, 0] for p in pair)
    rows = [a, b, a, a]
    same(Pattern.per_head(rows), np.concatenate([p.to_dense() for p in rows], axis=1))
    same(Pattern.per_batch(rows), np.concatenate([p.to_dense() for p in rows], axis=0))


def test_heads_of_one_pattern_are_stored_once():
    a, b = patterns.bigbird(512, seed=1), patterns.bigbird(512, seed=2)
    both = Pattern.per_head([a, a, a, a])
    assert both.n_heads == 4 and sum(p.n_blocks for p in both.parts) == a.parts[0].n_blocks
    dilated = Pattern.per_head([patterns.sliding_window(512, left=9, dilation=d) for d in (1, 2, 2, 1)])
    assert len(dilated.parts) == 2
    assert Pattern.per_head([a, b]).to_dense().sum() == a.nnz + b.nnz


@given(any_pattern())
def test_identity(a):
    twin = pickle.loads(pickle.dumps(a))
    assert twin == a and hash(twin) == hash(a) and twin.digest == a.digest
    assert a.same_pairs(Pattern.from_mask(a.to_dense()))
    assert str(a.shape[0]) in repr(a)


def test_equality_is_of_structure_and_same_pairs_of_sets():
    a = patterns.sliding_window(100, left=5)
    b = a.reblock(16)
    assert a != b and a.same_pairs(b)
    assert not a.same_pairs(patterns.sliding_window(100, left=6))
    assert a != 3


def test_to_scipy_and_back():
    a = patterns.strided(50, stride=7)
    matrix = a.to_scipy()
    assert matrix.nnz == a.nnz and np.array_equal(matrix.toarray(), a.to_dense()[0, 0])
    assert Pattern.from_scipy(matrix).same_pairs(a)


def test_every_stored_entry_of_a_scipy_matrix_is_kept():
    matrix = scipy.sparse.csr_array((np.array([1.0, 0.0, 2.0]), np.array([4, 0, 4]), np.array([0, 1, 3])), shape=(2, 5))
    assert np.array_equal(Pattern.from_scipy(matrix).to_dense()[0, 0], [[0, 0, 0, 0, 1], [1, 0, 0, 0, 1]])


def test_keys_at_several_slots():
    """A key order with repeats: pairs may use any slot of a key, the transpose has one row a key."""
    from sparseattn.structure import BlockCSR, Order

    order = Order.listed([0, 1, 2, 3, 2, 3, 4, 5], 6)
    part = BlockCSR((4, 6), (2, 4), np.array([[[0, 1, 2]]]), np.array([0, 1], np.int32), k_order=order)
    pattern = Pattern.from_parts([part], (4, 6))
    want = np.zeros((1, 1, 4, 6), bool)
    want[..., :2, :4] = want[..., 2:, 2:] = True
    same(pattern, want)
    same(pattern.T, want.swapaxes(2, 3))
    causal = patterns.causal(4, 6).to_dense()
    same(pattern & patterns.causal(4, 6), want & causal)
    same(pattern - patterns.causal(4, 6), want & ~causal)
    same(patterns.causal(4, 6) - pattern, causal & ~want)
    same(patterns.causal(4, 6) | pattern, want | causal)
    same(pattern[..., 1:4, 2:5], want[..., 1:4, 2:5])


@settings(max_examples=10)
@given(any_pattern())
def test_coverage_counts_pairs(a):
    from sparseattn.pattern.picture import coverage

    one = a[0, 0]
    if min(one.shape):
        assert np.allclose(coverage(one, 1000), one.to_dense()[0, 0])
        assert np.isclose(coverage(one, 1).sum(), one.density)


def test_plot_draws_full_partial_and_empty_blocks():
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    ax = patterns.causal(256).plot()
    image = ax.images[0].get_array()
    assert image.shape == (128, 128) and set(np.unique(image)) == {0, 1, 2}
    assert (np.diagonal(image) == 1).all() and (image[np.tril_indices(128, -1)] == 2).all()
