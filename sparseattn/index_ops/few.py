"""Ranges of few queries cut into blocks, number by number: a step of decoding is too small for NumPy's calls to pay."""

from functools import lru_cache

import numpy as np

from sparseattn.index_ops.masks import distinct, full_mask, pack
from sparseattn.structure import BlockCSR

QUERIES = 64  # up to which this is faster than cutting all rows at once


def cut_few(ranges, block_size):
    """Ranges as a BlockCSR; None where queries or partial blocks are many, or tokens are not in their own order."""
    if ranges.stops.size > QUERIES or ranges.q_order is not None or ranges.k_order is not None:
        return None
    block_q, block_k = block_size
    if ranges.stops.size == 1 and ranges.starts.item() == 0 and ranges.stops.item() == ranges.shape[1]:
        indices = np.arange(-(-ranges.shape[1] // block_k), dtype=np.int32)  # the newest query of a cache
        return BlockCSR(ranges.shape, block_size, np.array([[[0, indices.size]]]), indices, heads=ranges.heads)
    kinds, indptr, runs, n_blocks = {}, [], [], 0
    for starts, stops in zip(*(x.reshape(-1, x.shape[2]).tolist() for x in (ranges.starts, ranges.stops))):
        for at in range(0, len(starts), block_q):
            indptr.append(n_blocks)
            row = _row(starts[at : at + block_q], stops[at : at + block_q], ranges.shape[1], block_k, kinds)
            if row is None or len(kinds) > QUERIES:
                return None
            runs += row
            n_blocks += sum(last - first for first, last, _ in row)
        indptr.append(n_blocks)
    indptr = np.array(indptr, np.int64).reshape(ranges.stops.shape[:2] + (-1,))
    indices, ids, masks = _written(runs, n_blocks, tuple(kinds), block_size)
    return BlockCSR(ranges.shape, (block_q, block_k), indptr, indices, ids, masks, heads=ranges.heads)


def _row(starts, stops, n_keys, block_k, kinds):
    """A row of blocks as runs (first column, one past the last, kind); None if too many are partial.

    Kind 0 is a full block; a partial one has that of its edges in `kinds`, which takes new ones.
    """
    soonest, last = min(stops), -(-max(stops) // block_k)
    if last == 0:
        return []
    # an empty range is (0, 0)
    first = (min(starts) if soonest else min(start for start, stop in zip(starts, stops) if stop)) // block_k
    # blocks that all queries cover, the last of them perhaps ragged
    latest = max(starts)
    begin, end = -(-latest // block_k), last if soonest == n_keys else soonest // block_k
    if begin >= end:
        begin = end = last
    if begin - first + last - end > QUERIES:
        return None
    whole = [(begin, end, 0)] if begin < end else []
    if begin == first and end == last:
        return whole
    before, after = (_partial(range(*ends), starts, stops, block_k, kinds) for ends in ((first, begin), (end, last)))
    return before + whole + after


def _partial(columns, starts, stops, block_k, kinds):
    """Columns as runs of one, without those that no query reaches."""
    runs = []
    for column in columns:
        left = column * block_k
        edges = tuple([_edge(start - left, stop - left, block_k) for start, stop in zip(starts, stops)])
        if any(edges):
            runs.append((column, column + 1, kinds.setdefault(edges, len(kinds) + 1)))
    return runs


def _edge(low, high, block_k):
    """The keys of a block in a range, (first, one past the last); () for none."""
    low, high = max(low, 0), min(high, block_k)
    return (low, high) if low < high else ()


def _written(runs, n_blocks, kinds, block_size):
    """indices, mask_ids and masks of runs."""
    indices = np.empty(n_blocks, np.int32)
    ids = np.zeros(n_blocks, np.int32) if kinds else None
    numbers, masks = _masks_of(kinds, block_size) if kinds else (None, None)
    at = 0
    for first, last, kind in runs:
        indices[at : at + last - first] = np.arange(first, last)
        if kind:
            ids[at] = numbers[kind - 1]
        at += last - first
    return indices, ids, masks


@lru_cache(maxsize=256)
def _masks_of(kinds, block_size):
    """The number of the mask of each kind, and the masks. Kept: ends that move meet the same few again and again."""
    block_q, block_k = block_size
    edges = np.array([[edge or (0, 0) for edge in kind + ((),) * (block_q - len(kind))] for kind in kinds])
    k = np.arange(block_k)
    packed = pack((k >= edges[..., :1]) & (k < edges[..., 1:]))
    first, which = distinct(packed)
    return (1 + which).tolist(), np.concatenate([full_mask(block_size), packed[first]])
