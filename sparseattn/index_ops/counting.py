"""How many pairs a part holds, and the pairs of a small one as booleans."""

import numpy as np

from sparseattn.index_ops.algebra import as_blocks
from sparseattn.index_ops.axes import spread
from sparseattn.index_ops.cells import live_slots, to_cells
from sparseattn.index_ops.masks import count_bits, pack
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
    cells = to_cells(part)
    (q_ids, q_table), (k_ids, k_table) = (
        live_slots(order, n, block)
        for order, n, block in zip((part.q_order, part.k_order), (part.n_q_slots, part.n_k_slots), part.block_size)
    )
    b, h, row, col = cells.coordinates()
    q_live = q_ids[b % q_ids.shape[0], h % q_ids.shape[1], row]
    k_live = k_ids[b % k_ids.shape[0], h % k_ids.shape[1], col]
    code = (cells.ids.astype(np.int64) * len(q_table) + q_live) * len(k_table) + k_live
    kinds, counts = np.unique(code, return_counts=True)
    rest, k_kind = np.divmod(kinds, len(k_table))
    mask, q_kind = np.divmod(rest, len(q_table))
    total = 0
    for at in range(0, kinds.size, 1 << 12):
        piece = slice(at, at + (1 << 12))
        live = pack(q_table[q_kind[piece]][:, :, None] & k_table[k_kind[piece]][:, None, :])
        total += (count_bits(cells.masks[mask[piece]] & live) * counts[piece]).sum()
    return total


def write_dense(dense, part):
    """Set the pairs of a part in bool (batch, n_heads, n_queries, n_keys)."""
    part = spread(as_blocks(part), *dense.shape[:2])
    for b, h, q, k in pairs(part, dense.shape[:2]):
        dense[b, h, q, k] = True
