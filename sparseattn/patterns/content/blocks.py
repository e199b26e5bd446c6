"""Chosen blocks as a causal Pattern."""

import numpy as np

from sparseattn.index_ops.cells import Cells, from_cells
from sparseattn.index_ops.masks import full_mask, pack
from sparseattn.pattern import Pattern
from sparseattn.xp import namespace


def causal_blocks(layout, block_size, shape):
    """Query i attends key j when their block is chosen and ``j <= i + offset``, offset = n_keys - n_queries.

    layout: bool (batch, n_heads, rows, cols), of either library, in which the pattern is made. Blocks beyond the
    diagonal are left out, those on it share masks. O(layout) time, O(chosen blocks) memory.
    """
    (block_q, block_k), (n_queries, n_keys), xp = block_size, shape, namespace(layout)
    cells = Cells(shape, block_size, layout.shape[:2], xp.flatnonzero(layout), None, None)
    _, _, row, col = cells.coordinates()
    ahead = n_keys - n_queries + row * block_q - col * block_k  # of the block's first key, its first query
    inside = ahead > -block_q
    cells.numbers, ahead = cells.numbers[inside], ahead[inside]
    partial = ahead < block_k - 1
    kinds, which = xp.unique(ahead[partial], return_inverse=True)
    cells.ids = xp.zeros(ahead.size, np.int64)
    cells.ids[partial] = 1 + which.reshape(-1)
    crossed = xp.arange(block_k) <= kinds[:, None, None] + xp.arange(block_q)[:, None]
    cells.masks = xp.concatenate([full_mask(block_size, xp), pack(crossed)])
    return Pattern.from_parts([from_cells(cells)], shape, *layout.shape[:2])


def own_blocks(block_size, shape):
    """Which blocks (rows, cols) hold a query's own key, and which (rows, cols) begin at or before a row's last one."""
    (block_q, block_k), (n_queries, n_keys) = block_size, shape
    first = n_keys - n_queries + np.arange(0, n_queries, block_q)[:, None]
    last = np.minimum(first + block_q, n_keys) - 1
    begin = np.arange(0, n_keys, block_k)
    before = begin <= last
    return before & (begin + block_k > first), before


def aligned_offset(n_queries, n_keys, block):
    """Whole blocks of keys before the first query; ValueError where there are none such."""
    offset = n_keys - n_queries
    if offset % block:
        raise ValueError(f"q has {n_queries} tokens and k {n_keys}: the {offset} keys before the first query are not "
                         f"whole blocks of {block}; give the queries from token {offset // block * block} on")
    return offset // block
