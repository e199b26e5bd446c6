"""Hypothesis strategies for patterns of every kind of part: ranges, blocks, orders, heads, batch items."""

import numpy as np
from hypothesis import strategies as st

from sparseattn import Pattern, patterns

BATCH, HEADS = 2, (2, 4)


@st.composite
def shapes(draw, square=False):
    n_queries = draw(st.integers(0, 48))
    return n_queries, n_queries if square or draw(st.booleans()) else draw(st.integers(0, 48))


def _bits(draw, shape, density):
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < density


def _heads(draw):
    """How many heads a pattern of several has; two patterns may differ."""
    return draw(st.sampled_from(HEADS))


def _window(draw, n_queries, n_keys):
    reach, n_heads = st.none() | st.integers(0, 20), _heads(draw)
    dilation = draw(st.integers(1, 4) | st.lists(st.integers(1, 3), min_size=n_heads, max_size=n_heads))
    offset = draw(st.none() | st.integers(-5, 40) | st.lists(st.integers(-5, 40), min_size=BATCH, max_size=BATCH))
    reaches = {"left": draw(reach), "right": draw(reach)}
    return patterns.sliding_window(n_queries, n_keys, **reaches, dilation=dilation, offset=offset)


def _mask(draw, n_queries, n_keys):
    n_heads = _heads(draw)
    lead = draw(st.sampled_from([(), (n_heads,), (BATCH, 1), (BATCH, n_heads)]))
    size = draw(st.sampled_from([1, 3, 8, (5, 32), (1, 16), (33, 2)]))
    density = draw(st.sampled_from([0.02, 0.3, 0.95]))
    return Pattern.from_mask(_bits(draw, (*lead, n_queries, n_keys), density), block_size=size)


def _blocks(draw, n_queries, n_keys):
    size = draw(st.sampled_from([(4, 4), (16, 8), (7, 5)]))
    grid = (-(-n_queries // size[0]), -(-n_keys // size[1]))
    lead = draw(st.sampled_from([(), (_heads(draw),)]))
    return Pattern.from_blocks(_bits(draw, (*lead, *grid), 0.4), block_size=size,
                               shape=(n_queries, n_keys))


def _buckets(draw, n_queries, n_keys):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lead = draw(st.sampled_from([(), (1, _heads(draw)), (BATCH, 1)]))
    return Pattern.from_buckets(rng.integers(-1, 4, (*lead, n_queries)), rng.integers(-1, 4, (*lead, n_keys)))


def _csr(draw, n_queries, n_keys):
    bits = _bits(draw, (n_queries, n_keys), 0.1)
    return Pattern.from_csr(np.r_[0, np.cumsum(bits.sum(axis=1))], np.nonzero(bits)[1], n_keys)


def _padding(draw, n_queries, n_keys):
    lengths = np.array(draw(st.lists(st.integers(0, n_keys), min_size=BATCH, max_size=BATCH)))
    valid = np.arange(n_keys) < lengths[:, None]
    if draw(st.booleans()):
        valid &= _bits(draw, valid.shape, 0.7)
    return patterns.padding(valid, _bits(draw, (BATCH, n_queries), 0.8))


def _global(draw, n, _):
    if draw(st.booleans()):
        return patterns.global_tokens(n, _bits(draw, (BATCH, n), 0.1))
    return patterns.global_tokens(n, np.flatnonzero(_bits(draw, (n,), 0.1)))


def _strided(draw, n, _):
    return patterns.strided(n, stride=draw(st.integers(1, 9)), factor=draw(st.sampled_from([None, "local", "column"])))


def _bigbird(draw, n, _):
    return patterns.bigbird(n, block_size=draw(st.sampled_from([3, 8])), n_random=1,
                            n_heads=draw(st.sampled_from([1, *HEADS])), seed=draw(st.integers(0, 5)))


def _local(draw, n, _):
    near = st.integers(0, 2)
    return patterns.block_local(n, block=draw(st.integers(1, 12)), back=draw(near), forward=draw(near),
                                causal=draw(st.booleans()), wrap=draw(st.booleans()))


def _per_head(draw, n_queries, n_keys):
    """Parts that name their heads, some of them for each head of its own."""
    kinds = [_window, _csr, _buckets, _mask]
    each = [draw(st.sampled_from(kinds))(draw, n_queries, n_keys)[:, 0] for _ in range(_heads(draw))]
    return Pattern.per_head(each)


ANY_SHAPE = [_window, _per_head, _mask, _blocks, _buckets, _csr, _padding]
SQUARE = [_global, _strided, _bigbird, _local]


@st.composite
def pattern_of(draw, shape):
    """A pattern of that shape, of any kind."""
    kinds = ANY_SHAPE + (SQUARE if shape[0] == shape[1] else [])
    return draw(st.sampled_from(kinds))(draw, *shape)


@st.composite
def pattern_pairs(draw):
    """Two patterns of one shape."""
    shape = draw(shapes())
    return draw(pattern_of(shape)), draw(pattern_of(shape))


@st.composite
def any_pattern(draw):
    """A pattern, often a combination of two."""
    a, b = draw(pattern_pairs())
    return draw(st.sampled_from([a, a | b, a & b, a - b]))


def over(dense, batch, n_heads):
    """Booleans (1 | batch, 1 | heads, ...) over whole axes."""
    return np.repeat(np.repeat(dense, batch // dense.shape[0], axis=0), n_heads // dense.shape[1], axis=1)
