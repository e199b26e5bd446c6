"""Parts with queries and keys exchanged."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.algebra import as_blocks, is_empty
from sparseattn.index_ops.blocks import transpose_blocks
from sparseattn.index_ops.pairs import without_repeats
from sparseattn.index_ops.ranges import canonical, count_before, repeats
from sparseattn.structure import Ranges


def transposed(part):
    """The part as parts of (key, query) pairs; several where a key repeats in its order."""
    if isinstance(part, Ranges) and not repeats(part):
        turned = _transpose_ranges(part)
        if turned is not None:
            return [turned]
    pieces = [transpose_blocks(p) for p in without_repeats(as_blocks(part))]
    return [p for p in pieces if not is_empty(p)]


def _transpose_ranges(part):
    """Ranges of query slots for each key slot; None where they are not ranges."""
    n_keys, n_slots = part.n_k_slots, part.n_q_slots
    lead = part.starts.shape[:2]
    starts, stops = np.zeros(lead + (n_keys,), np.int32), np.zeros(lead + (n_keys,), np.int32)
    slots = np.arange(n_keys)
    for at in np.ndindex(lead):
        s, e = part.starts[at], part.stops[at]
        some = np.flatnonzero(e > s)
        if (np.diff(s[some]) < 0).any() or (np.diff(e[some]) < 0).any():
            return None
        first = np.searchsorted(e[some], slots, side="right")
        last = np.searchsorted(s[some], slots, side="right")
        if not some.size:
            continue
        met = last > first
        low, high = some[np.minimum(first, some.size - 1)], some[np.maximum(last, 1) - 1] + 1
        filled = count_before(np.isin(np.arange(n_slots), some, assume_unique=True))
        if (met & (filled[high] - filled[low] != high - low)).any():
            return None
        starts[at], stops[at] = np.where(met, low, 0), np.where(met, high, 0)
    starts, stops = _without_nobody(part.k_order, *canonical(starts, stops))
    size = part.block_size and part.block_size[::-1]
    return replace(part, shape=part.shape[::-1], starts=starts, stops=stops, q_order=part.k_order, k_order=part.q_order,
                   block_size=size)


def _without_nobody(order, starts, stops):
    """Empty ranges at slots of nobody."""
    if order is None:
        return starts, stops
    live = order.listing() >= 0
    return np.where(live, starts, 0), np.where(live, stops, 0)
