"""Chosen keys and chosen distances as parts of a causal pattern, each in the form in which it is dense. `columns` and
`distances` are int32 (batch, n_heads, n), rising; the last query sits at the last key."""

import numpy as np

from sparseattn.index_ops.cells import Cells, from_cells
from sparseattn.index_ops.masks import full_mask, pack
from sparseattn.structure import BlockCSR, Order, Ranges

BLOCK = 32  # tokens of the tiles that hold crowded distances
CROWD = 6  # distances within BLOCK of each other from which tiles are faster than single pairs
PIECE = 1 << 21  # pairs looked at together


def column_part(columns, shape):
    """The pairs of chosen keys: ranges over these alone."""
    q_pos = np.arange(shape[1] - shape[0], shape[1])
    stops = np.empty(columns.shape[:2] + (shape[0],), np.int32)
    for at in np.ndindex(columns.shape[:2]):
        stops[at] = np.searchsorted(columns[at], q_pos, side="right")
    return Ranges(shape, np.zeros_like(stops), stops, None, Order.listed(columns, shape[1]))


def crowded_part(columns, distances, shape):
    """The pairs at distances that are many within BLOCK tokens, without chosen keys: tiles, alike along a diagonal."""
    lead, offset, rows = columns.shape[:2], shape[1] - shape[0], -(-shape[0] // BLOCK)
    numbers, ids, masks = [], [], [full_mask((BLOCK, BLOCK))]
    cells = Cells(shape, (BLOCK, BLOCK), lead, None, None, None, None, _without(columns, shape[1]))
    for line, at in enumerate(np.ndindex(lead)):
        chosen = np.zeros(shape[1] + 4 * BLOCK, bool)  # by distance + 2 * BLOCK
        chosen[distances[at][_crowded(distances[at])] + 2 * BLOCK] = True
        # tiles a whole number of blocks apart: the distance of a tile's first query to its first key
        apart = np.arange(offset % BLOCK - (BLOCK if offset % BLOCK else 0), shape[1] + BLOCK - 1, BLOCK)
        held = chosen[apart[:, None] + 2 * BLOCK + _inner().ravel()]
        apart, held = apart[held.any(axis=1)], held[held.any(axis=1)]
        row = np.arange(rows)[:, None]
        col = row + (offset - apart) // BLOCK
        there = (col >= 0) & (col < cells.grid[1])
        numbers.append(((line * rows + row) * cells.grid[1] + col)[there])
        ids.append(np.broadcast_to(sum(map(len, masks)) + np.arange(apart.size), col.shape)[there])
        masks.append(pack(held.reshape(-1, BLOCK, BLOCK)))
    cells.numbers, cells.ids, cells.masks = (np.concatenate(x) for x in (numbers, ids, masks))
    by_number = np.argsort(cells.numbers, kind="stable")
    cells.numbers, cells.ids = cells.numbers[by_number], cells.ids[by_number]
    return from_cells(cells)


def lonely_part(columns, distances, shape):
    """The pairs at the other distances, without chosen keys, one by one."""
    q_pos = np.arange(shape[1] - shape[0], shape[1])
    counts, indices = np.zeros(columns.shape[:2] + (shape[0],), np.int64), [np.zeros(0, np.int32)]
    for at in np.ndindex(columns.shape[:2]):
        lonely = distances[at][~_crowded(distances[at])][::-1]
        free = np.ones(shape[1], bool)
        free[columns[at]] = False
        step = max(PIECE // max(lonely.size, 1), 1)
        for first in range(0, shape[0], step) if lonely.size else ():
            keys = q_pos[first : first + step, None].astype(np.int32) - lonely
            kept = (keys >= 0) & free[keys]  # a negative key reads another's flag, and is dropped
            counts[at][first : first + step] = kept.sum(axis=1)
            indices.append(keys[kept])
    indptr = np.zeros(counts.shape[:2] + (shape[0] + 1,), np.int64)
    np.cumsum(counts, axis=2, out=indptr[..., 1:])
    pairs = indptr[..., -1]
    indptr += (np.cumsum(pairs) - pairs.ravel()).reshape(pairs.shape + (1,))
    return BlockCSR(shape, (1, 1), indptr, np.concatenate(indices))


def _crowded(distances):
    """Which distances share their BLOCK of distances with CROWD - 1 others."""
    return np.bincount(distances // BLOCK)[distances // BLOCK] >= CROWD if distances.size else np.zeros(0, bool)


def _inner():
    """How much farther each pair of a tile is apart than its first query and its first key, (BLOCK, BLOCK)."""
    return np.arange(BLOCK)[:, None] - np.arange(BLOCK)


def _without(columns, n_keys):
    """The natural order of keys with nobody where a chosen key stands."""
    tokens = np.broadcast_to(np.arange(n_keys, dtype=np.int32), columns.shape[:2] + (n_keys,)).copy()
    np.put_along_axis(tokens, columns.astype(np.int64), -1, axis=2)
    return Order.listed(tokens, n_keys)
