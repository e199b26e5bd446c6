"""What families share in reading their arguments: counts, offsets, ranges of all queries."""

import numpy as np

from sparseattn.index_ops.ranges import canonical
from sparseattn.pattern import Pattern, checking
from sparseattn.structure import Ranges


def positive(n, name):
    """A whole number from 1."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} is {type(n).__name__}; expected a whole number")
    if n < 1:
        raise ValueError(f"{name} is {n}; expected at least 1")
    return int(n)


def reach(n, name):
    """Tokens on one side of a window: a whole number from 0, or None for no limit."""
    if n is None:
        return None
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} is {type(n).__name__}; expected a whole number of tokens, or None for no limit")
    if n < 0:
        raise ValueError(f"{name} is {n}; expected at least 0, or None for no limit")
    return int(n)


def sizes(n_queries, n_keys):
    """(n_queries, n_keys), the second the first where it is None."""
    n_queries = checking.count(n_queries, "n_queries")
    return n_queries, n_queries if n_keys is None else checking.count(n_keys, "n_keys")


def offsets(offset, n_queries, n_keys):
    """Where query 0 sits among the keys, int64 (1 | batch, 1, 1)."""
    if offset is None:
        return np.full((1, 1, 1), n_keys - n_queries)
    offset = np.asarray(offset)
    if not np.issubdtype(offset.dtype, np.integer) or offset.ndim > 1 or offset.size == 0:
        raise TypeError(f"offset is an array of {offset.dtype} with {offset.ndim} axes; expected a whole number, or "
                        "one per batch item")
    return offset.astype(np.int64).reshape(-1, 1, 1)


def tiles(block_size):
    """A block size as (block_q, block_k), or None."""
    return None if block_size is None else checking.block_size(block_size)


def ranges_pattern(starts, stops, shape, block_size=None, q_order=None, k_order=None, batch=None):
    """A Pattern of one Ranges part; bounds are clipped to the key slots and broadcast to (1 | batch, 1, n_q_slots)."""
    n_q = shape[0] if q_order is None else q_order.n_slots
    n_k = shape[1] if k_order is None else k_order.n_slots
    starts, stops = (np.clip(x, 0, n_k).astype(np.int32, copy=False) for x in (starts, stops))
    if (stops <= starts).any():
        starts, stops = canonical(*np.broadcast_arrays(starts, stops))
    lead = np.broadcast_shapes(starts.shape, stops.shape)[:2]
    starts, stops = (np.broadcast_to(x, lead + (n_q,)) for x in (starts, stops))
    part = Ranges(shape, starts, stops, q_order, k_order, block_size=tiles(block_size))
    return Pattern.from_parts([part], shape, batch or lead[0])
