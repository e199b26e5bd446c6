"""From ranges to blocks, and blocks clipped by ranges: whole blocks by their corners, only the rest pair by pair."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.cells import Cells, common_lead, from_cells, refuse_too_many_masks, to_cells
from sparseattn.index_ops.few import cut_few
from sparseattn.index_ops.masks import between, distinct, full_mask, pack, shared
from sparseattn.index_ops.ranges import at_queries, composed
from sparseattn.index_ops.sorting import repeated
from sparseattn.xp import library, namespace

CHUNK = {"numpy": 1 << 22, "cupy": 1 << 26}  # pairs written out at a time
FAR = np.iinfo(np.int32).max


def cut(ranges, block_size):
    """Ranges as a BlockCSR in their order. O(rows of blocks + blocks touched). Of either library."""
    whole = cut_few(ranges, block_size) if library(ranges.starts) == "numpy" else None
    return from_cells(cells_of(ranges, block_size)) if whole is None else whole


def cells_of(ranges, block_size):
    """The blocks that ranges touch, all rows at once; empty ones may be among them."""
    starts, stops, first, counts = _touched(ranges, tuple(block_size))
    cells = Cells(ranges.shape, tuple(block_size), ranges.lead, None, None, None, ranges.q_order, ranges.k_order,
                  ranges.heads)
    xp, line = namespace(counts), repeated(counts)
    col = xp.arange(line.size) - (xp.cumsum(counts) - counts - first)[line]
    cells.numbers = line * cells.grid[1] + col
    whole = _whole(ranges, starts, stops, line, col, block_size)
    cells.ids, cells.masks = _masks_of_ranges(starts, stops, line, col, block_size, whole)
    return cells


def count_cut(ranges, block_size):
    """How many blocks `cut` gives, at most: those between a row's first and last. O(query slots)."""
    return int(_touched(ranges, tuple(block_size))[3].sum())


def _touched(ranges, block_size):
    """Starts and stops by row of blocks, (lead * n_rows, block_q), and the first block and the number of blocks of each
    row. Kept on a GPU, where a structure's size is first counted and then cut."""
    if library(ranges.starts) == "cupy":
        return ranges.memo.get(("touched", block_size), lambda: _find_touched(ranges, block_size))
    return _find_touched(ranges, block_size)


def _find_touched(ranges, block_size):
    block_q, block_k = block_size
    xp = namespace(ranges.starts)
    starts, stops = (xp.broadcast_to(x, ranges.lead + x.shape[2:]) for x in (ranges.starts, ranges.stops))
    starts, stops = _by_row(starts, block_q), _by_row(stops, block_q)
    if not len(starts):
        return starts, stops, xp.zeros(0, np.int32), xp.zeros(0, np.int32)
    first = xp.where(stops > starts, starts, FAR).min(axis=1) // block_k
    return starts, stops, first, xp.maximum(-(-stops.max(axis=1) // block_k) - first, 0)


def _by_row(x, block_q):
    """(lead, n_q_slots) to (lead * n_rows, block_q), the last row padded with 0."""
    n_rows = -(-x.shape[2] // block_q)
    if x.shape[2] == n_rows * block_q:
        return x.reshape(-1, block_q)
    padded = namespace(x).zeros(x.shape[:2] + (n_rows * block_q,), x.dtype)
    padded[..., : x.shape[2]] = x
    return padded.reshape(-1, block_q)


def _live_by_row(q_order, shape, block_q, xp=np):
    """Which slots of each row of blocks hold a query, bool (lead * n_rows, block_q), in the library `xp`."""
    live = xp.ones((1, 1, 1), bool) if q_order is None else q_order.listing() >= 0
    return _by_row(xp.broadcast_to(live, shape), block_q)


def _whole(ranges, starts, stops, line, col, block_size):
    """Which cells every query of the row covers; queries beyond the end or of nobody do not count."""
    xp = namespace(col)
    if not col.size:
        return xp.zeros(0, bool)
    if ranges.n_q_slots % block_size[0] or not (ranges.q_order is None or ranges.q_order.is_full):
        live = _live_by_row(ranges.q_order, ranges.lead + ranges.starts.shape[2:], block_size[0], xp)
        starts, stops = xp.where(live, starts, 0), xp.where(live, stops, FAR)
    latest, soonest = starts.max(axis=1), stops.min(axis=1)
    end = xp.minimum((col + 1) * block_size[1], ranges.n_k_slots)
    return (latest[line] <= col * block_size[1]) & (soonest[line] >= end)


def _masks_of_ranges(starts, stops, line, col, block_size, whole):
    """ids (0 = full) and distinct masks of cells, each from its queries' ranges relative to the block."""
    (block_q, block_k), xp, chunk = block_size, namespace(line), CHUNK[library(line)]
    ids, edges, count = xp.zeros(line.size, np.int64), [], 1
    small = np.uint8 if block_k < 256 else np.uint16 if block_k < 65536 else np.int32
    partial = xp.flatnonzero(~whole)
    step = max(chunk // (2 * block_q), 1)
    for at in range(0, partial.size, step):
        piece = partial[at : at + step]
        left = (col[piece] * block_k)[:, None]
        edge = [xp.clip(x[line[piece]] - left, 0, block_k).astype(small) for x in (starts, stops)]
        edge = xp.concatenate(edge, axis=1)
        first, which = shared(edge)
        edges.append(edge[first])
        ids[piece] = count + which
        count += first.size
    if not edges:
        return ids, full_mask(block_size, xp)
    edges = edges[0] if len(edges) == 1 else xp.concatenate(edges)
    first, same = shared(edges)
    ids[partial] = 1 + same[ids[partial] - 1]
    refuse_too_many_masks(first.size, block_size)
    masks, step = [full_mask(block_size, xp)], max(chunk // (block_q * block_k), 1)
    for at in range(0, first.size, step):
        edge = edges[first[at : at + step]].astype(np.int32)
        masks.append(between(edge[:, :block_q], edge[:, block_q:], -(-block_k // 32)))
    return ids, xp.concatenate(masks)


def clip(part, ranges, inside=True):
    """The pairs of a BlockCSR that lie in aligned `ranges`, or with inside=False those that do not. O(blocks +
    slots)."""
    cells = to_cells(part, common_lead(part, ranges))
    bounds, keys = _Bounds(part, ranges), _Keys(part, ranges)
    b, h, row, col = cells.coordinates()
    lead_q = (b % bounds.lead[0]) * bounds.lead[1] + h % bounds.lead[1]
    lead_k = (b % keys.lead[0]) * keys.lead[1] + h % keys.lead[1]
    line, column = lead_q * bounds.n_rows + row, lead_k * keys.n_cols + col
    out = (keys.highest[column] < bounds.first[line]) | (keys.lowest[column] >= bounds.last[line])
    whole = (keys.least[column] >= bounds.latest[line]) & (keys.highest[column] < bounds.soonest[line])
    unsure = np.flatnonzero(~out & ~whole)
    # the corners of scattered keys lie far apart: look at each key before looking at each pair
    for at in range(0, unsure.size, max(CHUNK["numpy"] // part.block_size[1], 1)):
        piece = unsure[at : at + max(CHUNK["numpy"] // part.block_size[1], 1)]
        k = keys.slots[column[piece]]
        out[piece] = ~((k >= bounds.first[line[piece], None]) & (k < bounds.last[line[piece], None])).any(axis=1)
    unsure = unsure[~out[unsure]]
    keep = whole if inside else out
    keep[unsure] = True
    ids, masks = _clipped_masks(cells, bounds, keys, line, column, unsure, inside)
    return from_cells(replace(cells, numbers=cells.numbers[keep], ids=ids[keep], masks=masks))


class _Bounds:
    """Ranges at the query slots of a part, by row of blocks: each query's own, and what all or some of a row cover."""

    def __init__(self, part, ranges):
        starts, stops = at_queries(ranges, part.q_order)
        self.lead = starts.shape[:2] if part.q_order is None else tuple(np.maximum(starts.shape[:2], part.q_order.lead))
        starts, stops = (np.broadcast_to(x, self.lead + x.shape[2:]) for x in (starts, stops))
        block_q = part.block_size[0]
        self.starts, self.stops = _by_row(starts, block_q), _by_row(stops, block_q)
        self.n_rows = -(-starts.shape[2] // block_q)
        some = self.stops > self.starts
        self.first = np.where(some, self.starts, FAR).min(axis=1, initial=FAR)
        self.last = self.stops.max(axis=1, initial=0)
        live = _live_by_row(part.q_order, starts.shape, block_q)
        self.latest = np.where(live, np.where(some, self.starts, FAR), 0).max(axis=1, initial=0)
        self.soonest = np.where(live, self.stops, FAR).min(axis=1, initial=FAR)


class _Keys:
    """Slots in the ranges' order of a part's keys, by column of blocks; -1: a key that the ranges do not have."""

    def __init__(self, part, ranges):
        slots = composed(part.k_order, ranges.k_order)
        if slots is None:
            slots = np.arange(part.n_k_slots, dtype=np.int32).reshape(1, 1, -1)
        live = np.True_ if part.k_order is None else part.k_order.listing() >= 0
        self.lead = slots.shape[:2] if part.k_order is None else tuple(np.maximum(slots.shape[:2], part.k_order.lead))
        shape = self.lead + slots.shape[2:]
        self.n_cols = -(-slots.shape[2] // part.block_size[1])
        self.slots = self._by_column(np.broadcast_to(slots, shape), part.block_size[1], -1)
        dead = ~self._by_column(np.broadcast_to(live, shape), part.block_size[1], False)
        self.highest = self.slots.max(axis=1, initial=-1)
        self.lowest = np.where(self.slots >= 0, self.slots, FAR).min(axis=1, initial=FAR)
        # of live keys, an absent one counting as -1: below every range
        self.least = np.where(dead, FAR, self.slots).min(axis=1, initial=FAR)

    @staticmethod
    def _by_column(x, block_k, filler):
        """(lead, n_k_slots) to (lead * n_cols, block_k)."""
        n_cols = -(-x.shape[2] // block_k)
        padded = np.full(x.shape[:2] + (n_cols * block_k,), filler, x.dtype)
        padded[..., : x.shape[2]] = x
        return padded.reshape(-1, block_k)


def _clipped_masks(cells, bounds, keys, line, column, unsure, inside):
    """ids and masks in which the unsure cells have theirs narrowed, pair by pair."""
    (block_q, block_k), ids = cells.block_size, cells.ids.astype(np.int64)
    masks, count = [cells.masks], len(cells.masks)
    step = max(CHUNK["numpy"] // (block_q * block_k), 1)
    for at in range(0, unsure.size, step):
        piece = unsure[at : at + step]
        k = keys.slots[column[piece]][:, None, :]
        hit = (k >= bounds.starts[line[piece]][:, :, None]) & (k < bounds.stops[line[piece]][:, :, None])
        narrowed = cells.masks[cells.ids[piece]] & pack(hit if inside else ~hit)
        first, which = distinct(narrowed)
        masks.append(narrowed[first])
        ids[piece] = count + which
        count += first.size
        refuse_too_many_masks(count, cells.block_size)
    return ids, np.concatenate(masks)
