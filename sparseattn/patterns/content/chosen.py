"""What single queries chose, as patterns: rows of keys, or key blocks in an order of queries that makes them dense."""

import numpy as np

from sparseattn.index_ops.ranges import canonical
from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import tiles
from sparseattn.structure import BlockCSR, Order, Ranges

CLASS = 8  # queries of a block, in the mean, from which sorted tiles are faster than rows


def chosen_keys(chosen, shape, block_size=None):
    """Query i attends the keys chosen[..., i, :], int32 (batch, heads, n_queries, m), rising, -1 for none."""
    some = chosen >= 0
    counts = some.sum(axis=3)
    ends = np.cumsum(counts).reshape(counts.shape)
    indptr = np.zeros((*chosen.shape[:2], shape[0] + 1), np.int64)
    if shape[0]:
        indptr[..., 1:], indptr[..., 0] = ends, ends[..., 0] - counts[..., 0]
    part = BlockCSR(shape, (1, 1), indptr, chosen[some])
    pattern = Pattern.from_parts([part], shape, *chosen.shape[:2])
    return pattern if block_size is None else pattern.reblock(block_size)


def chosen_blocks(chosen, block, stops, n_keys, near=(), block_size=None):
    """Query i attends the keys j < stops[i] of the blocks chosen[..., i, :], and its ranges of `near`.

    chosen : int32 (batch, heads, n_queries, m), rising, -1 for none; block : tokens; stops : int (n_queries,); near :
    (starts, stops) of ranges in the natural order, disjoint from the rest. A part a choice, its queries sorted by the
    block they chose, so that neighbours share their keys; few queries stay rows of blocks.
    """
    batch, n_heads, n_queries, n_choices = chosen.shape
    shape, size = (n_queries, n_keys), tiles(block_size)
    parts = [_in_order(starts, ends, shape, size) for starts, ends in near]
    if n_queries * block < CLASS * n_keys:
        parts += _rows(chosen, block, stops, shape).parts
    else:
        parts += [_sorted(chosen[..., choice], block, stops, shape, size) for choice in range(n_choices)]
    return Pattern.from_parts(parts, shape, batch, n_heads)


def _in_order(starts, stops, shape, size):
    starts, stops = canonical(np.clip(starts, 0, shape[1]), np.clip(stops, 0, shape[1]))
    return Ranges(shape, starts.reshape(1, 1, -1), stops.reshape(1, 1, -1), block_size=size)


def _sorted(block_of, block, stops, shape, size):
    """One choice of each query, int32 (batch, heads, n_queries), as ranges."""
    small = np.int16 if shape[1] // block < 1 << 15 else np.int32  # sorted in linear time
    tokens = np.argsort(block_of.astype(small), axis=2, kind="stable").astype(np.int32)
    block_of = np.take_along_axis(block_of, tokens, axis=2)
    ends = np.minimum((block_of + 1) * block, stops[tokens])
    starts, ends = canonical(np.maximum(block_of, 0) * block, np.where(block_of < 0, 0, ends))
    return Ranges(shape, starts, ends, Order.listed(tokens, shape[0]), block_size=size)


def _rows(chosen, block, stops, shape):
    """All choices of few queries as blocks of one query."""
    layout = np.zeros((*chosen.shape[:3], -(-shape[1] // block) + 1), bool)
    np.put_along_axis(layout, chosen, True, axis=3)  # -1 is the column too many
    pattern = Pattern.from_blocks(layout[..., :-1], block_size=(1, block), shape=shape)
    cut = np.minimum((chosen.max(axis=(0, 1, 3), initial=-1) + 1) * block, shape[1]) > stops
    return pattern & Pattern.from_ranges(np.zeros_like(stops), stops, shape[1]) if cut.any() else pattern
