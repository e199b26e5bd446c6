"""How many pairs a part holds, and the pairs of a small one as booleans."""

import numpy as np

from sparseattn.index_ops.algebra import as_blocks
from sparseattn.index_ops.axes import spread
from sparseattn.index_ops.cells import live_kinds, to_cells
from sparseattn.index_ops.masks import count_bits
from sparseattn.index_ops.pairs import pairs
from sparseattn.index_ops.ranges import count_before, take_slots
from sparseattn.structure import Ranges


def count_pairs(part, batch, n_heads):
    """Pairs of a part over the axes of a pattern of `batch` and `n_heads`; shared axes count for each."""
    lead = part.lead
    per_entry = _pairs_of_ranges(part) if isinstance(part, Ranges) else _pairs_of_blocks(part)
    heads = n_heads if part.heads is None else part.heads.size
    return int(per_entry) * (batch // lead[0]) * (heads // lead[1])


def _pairs_of_ranges(part):
    starts, stops = part.starts, part.stops
    if part.k_order is not None:
        live = part.k_order.listing() >= 0
        if not live.all():
            before = count_before(live)
            starts, stops = take_slots(before, starts), take_slots(before, stops)
    total = (stops.astype(np.int64) - starts).sum()
    return total * (part.lead[0] * part.lead[1] // (stops.shape[0] * stops.shape[1]))


def _pairs_of_blocks(part):
    _, which, kinds = live_kinds(to_cells(part))
    counts = [count_bits(wanted) for wanted, _ in kinds]
    return (np.concatenate(counts) * np.bincount(which)).sum() if counts else 0


def count_by_head(part, n_heads):
    """(attended, stored) pairs of a BlockCSR in each head of a pattern of `n_heads`, the mean over batch items:
    float64 (2, n_heads)."""
    stored = (part.indptr[..., -1] - part.indptr[..., 0]).mean(axis=0) * (part.block_size[0] * part.block_size[1])
    kept = stored if part.block_size == (1, 1) else _attended_by_head(part)
    heads = np.arange(n_heads) if part.heads is None else part.heads
    found = np.zeros((2, n_heads))
    for row, counts in zip(found, (kept, stored)):
        row[heads] = np.repeat(counts, heads.size // counts.size)
    return found


def _attended_by_head(part):
    cells = to_cells(part)
    _, which, kinds = live_kinds(cells)
    counts = np.concatenate([np.zeros(0), *(count_bits(wanted) for wanted, _ in kinds)])
    return np.bincount(cells.coordinates()[1], counts[which], cells.lead[1]) / cells.lead[0]


def write_dense(dense, part):
    """Set the pairs of a part in bool (batch, n_heads, n_queries, n_keys)."""
    part = spread(as_blocks(part), *dense.shape[:2])
    for b, h, q, k in pairs(part, dense.shape[:2]):
        dense[b, h, q, k] = True


def write_reached(reached, part):
    """Set the queries that have keys in a part, in bool (batch, n_heads, n_queries). O(blocks)."""
    part = spread(part, *reached.shape[:2])
    slots = _slots_of_ranges(part) if isinstance(part, Ranges) else _slots_of_blocks(part)
    heads = np.arange(reached.shape[1]) if part.heads is None else part.heads
    tokens = np.arange(part.n_q_slots) if part.q_order is None else part.q_order.listing()
    lead = np.broadcast_shapes(slots.shape[:2], tokens.shape[:-1] if tokens.ndim == 3 else (1, 1))
    slots, tokens = (np.broadcast_to(x, lead + x.shape[-1:]) for x in (slots, tokens))
    for b, h in np.ndindex(reached.shape[0], heads.size):
        at = b % lead[0], h * lead[1] // heads.size
        reached[b, heads[h], tokens[at][slots[at] & (tokens[at] >= 0)]] = True


def _slots_of_ranges(part):
    """Which query slots have keys, bool (1 | batch, 1 | heads, n_q_slots)."""
    starts, stops = part.starts, part.stops
    if part.k_order is not None:
        before = count_before(part.k_order.listing() >= 0)
        starts, stops = take_slots(before, starts), take_slots(before, stops)
    return stops > starts


def _slots_of_blocks(part):
    cells = to_cells(part)
    some, which, kinds = live_kinds(cells)
    rows = [wanted.any(axis=2) for wanted, _ in kinds]
    b, h, row, _ = (x[some] for x in cells.coordinates())
    found = np.zeros((*cells.lead, cells.grid[0], part.block_size[0]), bool)
    if rows:
        np.logical_or.at(found, (b, h, row), np.concatenate(rows)[which])
    return found.reshape(*cells.lead, -1)[..., : part.n_q_slots]
