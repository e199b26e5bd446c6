"""Parts of one kind as one part: each set at a batch item, a query slot and a key slot of its own."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseattn.index_ops.cells import Cells, from_cells, to_cells
from sparseattn.structure import Ranges


@dataclass(frozen=True)
class Place:
    """A part, and where it begins in the one it becomes a piece of. No two share a query slot of a batch item."""

    part: Any
    item: int  # batch item
    n_items: int  # batch items that it fills
    row: int  # query slot, at a block's border
    col: int  # key slot, the same


def by_kind(patterns_parts):
    """Lists of (number of the pattern, part) that may become one part: one from each pattern at most."""
    groups = {}
    for number, parts in enumerate(patterns_parts):
        met = Counter()
        for part in parts:
            kind = _kind(part)
            met[kind] += 1  # two parts of one kind hold the same queries: the second is for a group of its own
            groups.setdefault((*kind, met[kind]), []).append((number, part))
    return list(groups.values())


def _kind(part):
    """What parts must share to become one. Heads that share a part's structure keep sharing it."""
    heads = None if part.heads is None else tuple(part.heads.tolist())
    return type(part), part.block_size, part.lead[1], heads, part.q_order is None, part.k_order is None


def assembled(places, shape, batch, q_order, k_order):
    """One part of these, with orders that give every place its tokens; elsewhere are no pairs."""
    whole = _ranges if isinstance(places[0].part, Ranges) else _blocks
    return whole(places, shape, batch, q_order, k_order)


def _ranges(places, shape, batch, q_order, k_order):
    first = places[0].part
    n_slots = shape[0] if q_order is None else q_order.n_slots
    lead = batch, max(p.part.starts.shape[1] for p in places)
    starts, stops = (np.zeros(lead + (n_slots,), np.int32) for _ in range(2))
    for p in places:
        here = slice(p.item, p.item + p.n_items), slice(None), slice(p.row, p.row + p.part.n_q_slots)
        some = p.part.stops > p.part.starts
        starts[here], stops[here] = (np.where(some, x + np.int32(p.col), 0) for x in (p.part.starts, p.part.stops))
    return Ranges(shape, starts, stops, q_order, k_order, first.heads, first.block_size)


def _blocks(places, shape, batch, q_order, k_order):
    first = places[0].part
    (block_q, block_k), n_heads = first.block_size, first.lead[1]
    whole = Cells(shape, first.block_size, (batch, n_heads), None, None, None, q_order, k_order, first.heads)
    n_rows, n_cols = whole.grid
    numbers, ids, masks, count = [], [], [], 0
    for p in places:
        cells = to_cells(p.part, (p.n_items, n_heads))
        b, h, row, col = cells.coordinates()
        line = ((b + p.item) * n_heads + h) * n_rows + row + p.row // block_q
        numbers.append(line * n_cols + col + p.col // block_k)
        ids.append(cells.ids.astype(np.int64) + count)
        masks.append(cells.masks)
        count += len(cells.masks)
    numbers, ids, whole.masks = (np.concatenate(x) for x in (numbers, ids, masks))
    by_number = np.argsort(numbers, kind="stable")
    whole.numbers, whole.ids = numbers[by_number], ids[by_number]
    return from_cells(whole)
