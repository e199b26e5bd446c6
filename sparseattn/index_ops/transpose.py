"""Parts with queries and keys exchanged. Of either library."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.algebra import as_blocks, grouped, is_empty
from sparseattn.index_ops.blocks import transpose_blocks
from sparseattn.index_ops.cells import Cells, as_structure, to_cells
from sparseattn.index_ops.masks import full_mask
from sparseattn.index_ops.pairs import without_repeats
from sparseattn.index_ops.ranges import canonical, count_before, repeats
from sparseattn.structure import BlockCSR, Order, Ranges
from sparseattn.xp import namespace


def transposed(parts):
    """The parts as parts of (key, query) pairs; several of one where a key repeats in its order.

    Those with one order in which keys repeat are transposed together. Each would become as many parts as that order has
    turns, and all of them together do not become more.
    """
    return [turned for group in grouped(parts, _may_be_piled) for turned in _transposed(group)]


def _may_be_piled(a, b):
    if not all(isinstance(p, BlockCSR) and p.q_order is not None and p.k_order is not None for p in (a, b)):
        return False
    alike = a.heads is b.heads is None and a.block_size == b.block_size and a.indptr.shape[:2] == b.indptr.shape[:2]
    return alike and a.q_order.lead == b.q_order.lead and a.k_order == b.k_order and a.k_order.repeats


def _transposed(group):
    part = group[0] if len(group) == 1 else _pile(group)
    if isinstance(part, Ranges) and not repeats(part):
        turned = _transpose_ranges(part)
        if turned is not None:
            return [turned]
    return [p for p in without_repeats(transpose_blocks(as_blocks(part)), "q_order") if not is_empty(p)]


def _pile(parts):
    """BlockCSRs as one in which their rows of blocks stand below each other. They have one order of keys, block size
    and lead; a query may then sit at a slot of each, so the pile is for transposing. O(blocks)."""
    first, xp, (block_q, _) = parts[0], namespace(parts[0].indptr), parts[0].block_size
    order = Order.listed(xp.concatenate([p.q_order.filled(block_q) for p in parts], axis=2), first.shape[0])
    n_rows, row, n_masks = order.n_slots // block_q, 0, 0
    numbers, ids, masks = [], [], [full_mask(first.block_size, xp)]
    for part in parts:
        cells = to_cells(part)
        above = cells.numbers // (part.n_rows * part.n_cols) * (n_rows - part.n_rows) + row
        numbers.append(cells.numbers + above * part.n_cols)
        ids.append(xp.where(cells.ids > 0, cells.ids + n_masks, 0))
        masks.append(cells.masks[1:])
        row, n_masks = row + part.n_rows, n_masks + len(cells.masks) - 1
    numbers, ids = xp.concatenate(numbers), xp.concatenate(ids).astype(np.int32)
    by_number = xp.argsort(numbers, kind="stable")
    return as_structure(Cells(first.shape, first.block_size, first.lead, numbers[by_number], ids[by_number],
                              xp.concatenate(masks), order, first.k_order))


def _transpose_ranges(part):
    """Ranges of query slots for each key slot; None where they are not ranges. O(slots)."""
    (batch, n_heads, n_slots), n_keys, xp = part.starts.shape, part.n_k_slots, namespace(part.starts)
    some = part.stops > part.starts
    flat = xp.flatnonzero(some)
    if not flat.size:
        return _exchanged(part, *(xp.zeros((batch, n_heads, n_keys), np.int32) for _ in range(2)))
    line = flat // n_slots
    starts, stops = (x.reshape(-1)[flat] for x in (part.starts, part.stops))
    follows = line[1:] == line[:-1]
    if ((starts[1:] < starts[:-1]) & follows).any() or ((stops[1:] < stops[:-1]) & follows).any():
        return None
    n_lines = batch * n_heads
    before = xp.cumsum(xp.bincount(line, minlength=n_lines)) - xp.bincount(line, minlength=n_lines)
    # of each line and key, how many of the line's ranges have ended by it, and how many have begun
    ended, begun = (before[:, None] + xp.cumsum(
        xp.bincount(line * (n_keys + 1) + x, minlength=n_lines * (n_keys + 1)).reshape(n_lines, n_keys + 1)[:, :n_keys],
        axis=1) for x in (stops, starts))
    met = begun > ended
    low = flat[xp.minimum(ended, flat.size - 1)] % n_slots
    high = flat[xp.maximum(begun, 1) - 1] % n_slots + 1
    filled = count_before(some.reshape(n_lines, n_slots))
    holes = xp.take_along_axis(filled, high, axis=1) - xp.take_along_axis(filled, low, axis=1) != high - low
    if (met & holes).any():
        return None
    return _exchanged(part, *(xp.where(met, x, 0).reshape(batch, n_heads, n_keys) for x in (low, high)))


def _exchanged(part, starts, stops):
    """The ranges of query slots `starts` to `stops`, by key slot, of a part."""
    starts, stops = _without_nobody(part.k_order, *canonical(starts, stops))
    size = part.block_size and part.block_size[::-1]
    return replace(part, shape=part.shape[::-1], starts=starts, stops=stops, q_order=part.k_order, k_order=part.q_order,
                   block_size=size)


def _without_nobody(order, starts, stops):
    """Empty ranges at slots of nobody."""
    if order is None or order.is_full:
        return starts, stops
    live, where = order.listing() >= 0, namespace(starts).where
    return where(live, starts, 0), where(live, stops, 0)
