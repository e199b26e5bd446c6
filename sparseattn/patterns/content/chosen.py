"""What single queries chose, as patterns: rows of keys or key blocks, or key blocks in an order of queries that makes
them dense."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.cells import pointers
from sparseattn.index_ops.masks import between, full_mask
from sparseattn.index_ops.ranges import canonical
from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import tiles
from sparseattn.structure import BlockCSR, Order, Ranges
from sparseattn.xp import library, namespace, on_cpu

CLASS = 8  # queries of a block, in the mean, from which sorted tiles are faster than rows
SHARED = 8  # heads that share a row from which rows are faster on a GPU: they are the rows of its tile


def chosen_keys(chosen, shape, block_size=None):
    """Query i attends the keys chosen[..., i, :], int32 (batch, heads, n_queries, m), rising, -1 for none. They lie
    where `chosen` does."""
    some = chosen >= 0
    part = BlockCSR(shape, (1, 1), pointers(some.sum(axis=3)), chosen[some])
    pattern = Pattern.from_parts([part], shape, *chosen.shape[:2])
    return pattern if block_size is None else pattern.reblock(block_size)


def chosen_blocks(chosen, block, stops, n_keys, near=(), block_size=None, share=1):
    """Query i attends the keys j < stops[i] of the blocks chosen[..., i, :], and its ranges of `near`.

    chosen : int32 (batch, heads, n_queries, m), rising, -1 for none; block : tokens; stops : int (n_queries,); near :
    (starts, stops) of ranges in the natural order, disjoint from the rest, that begin with a block and end with one or
    at the query's stop; share : query heads that have a head's choice in common. A part a choice, its queries sorted by
    the block they chose, so that neighbours share their keys. Few queries, and on a GPU those that many heads share,
    stay rows of blocks. Both lie where `chosen` does.
    """
    batch, n_heads, n_queries, n_choices = chosen.shape
    shape, size = (n_queries, n_keys), tiles(block_size)
    if n_queries * block < CLASS * n_keys or (library(chosen) == "cupy" and share >= SHARED):
        return listed_blocks(_with_near(chosen, block, near), block, stops, n_keys)
    xp = namespace(chosen)
    parts = [_in_order(xp.asarray(starts), xp.asarray(ends), shape, size) for starts, ends in near]
    parts += [_sorted(chosen[..., choice], block, xp.asarray(stops), shape, size) for choice in range(n_choices)]
    return Pattern.from_parts(parts, shape, batch, n_heads)


def listed_blocks(chosen, block, stops, n_keys):
    """Query i attends the keys j < stops[i] of the blocks chosen[..., i, :], int32 (batch, heads, n_queries, m),
    rising, -1 for none, as blocks of one query that lie where `chosen` does."""
    xp, shape = namespace(chosen), (chosen.shape[2], n_keys)
    begin = chosen * np.int64(block)
    length = xp.minimum(xp.asarray(stops, np.int64)[:, None], n_keys) - begin  # up to the stop
    some = (chosen >= 0) & (length > 0)
    cols, length, whole = chosen[some], length[some], xp.minimum(n_keys - begin[some], block)
    ids = xp.where(length < whole, length, 0)
    used = xp.arange(block) == 0
    used[ids] = True
    kept = np.flatnonzero(on_cpu(used))
    masks = between(0 * kept[1:, None], kept[1:, None], -(-block // 32))
    part = BlockCSR(shape, (1, block), pointers(some.sum(axis=3)), cols)
    if len(masks):
        ids = (xp.cumsum(used) - 1)[ids].astype(np.int32)
        part = replace(part, mask_ids=ids, masks=xp.asarray(np.concatenate([full_mask((1, block)), masks])))
    return Pattern.from_parts([part], shape, *chosen.shape[:2])


def _with_near(chosen, block, near):
    """Chosen blocks and those of ranges, rising, -1 in front."""
    xp, lists = namespace(chosen), [chosen]
    for starts, stops in near:
        first, last = np.maximum(starts, 0) // block, -(-stops // block)
        for step in range(int((last - first).max(initial=0))):
            own = xp.asarray(np.where(first + step < last, first + step, -1).astype(np.int32))
            lists.append(xp.broadcast_to(own[:, None], (*chosen.shape[:3], 1)))
    return xp.sort(xp.concatenate(lists, axis=3), axis=3)


def _in_order(starts, stops, shape, size):
    starts, stops = canonical(starts.clip(0, shape[1]), stops.clip(0, shape[1]))
    return Ranges(shape, starts.reshape(1, 1, -1), stops.reshape(1, 1, -1), block_size=size)


def _sorted(block_of, block, stops, shape, size):
    """One choice of each query, int32 (batch, heads, n_queries), as ranges."""
    xp = namespace(block_of)
    small = np.int16 if shape[1] // block < 1 << 15 else np.int32  # sorted in linear time
    tokens = xp.argsort(block_of.astype(small), axis=2, kind="stable").astype(np.int32)
    block_of = xp.take_along_axis(block_of, tokens, axis=2)
    ends = xp.minimum((block_of + 1) * block, stops[tokens])
    starts, ends = canonical(xp.maximum(block_of, 0) * block, xp.where(block_of < 0, 0, ends))
    return Ranges(shape, starts, ends, Order.listed(tokens, shape[0]), block_size=size)
