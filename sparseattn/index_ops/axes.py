"""Batch and head axes: bring parts that are shared, per head or about some heads to common axes."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.cells import pointers
from sparseattn.structure import Order, Ranges


def align(a, b, n_heads, operation):
    """`a` and `b` over the same heads: their union for "or", intersection for "and", those of `a` for "sub".

    n_heads: heads of the patterns they come from. Returned parts have axes of 1 or a common size, and equal `heads`.
    """
    batch = max(a.lead[0], b.lead[0])
    if a.heads is None and b.heads is None:
        heads, width = None, int(np.lcm(a.lead[1], b.lead[1]))
        maps = [np.arange(width) * x.lead[1] // width for x in (a, b)]
    else:
        sets = [np.arange(n_heads) if x.heads is None else x.heads for x in (a, b)]
        heads = {"or": np.union1d, "and": np.intersect1d, "sub": lambda x, y: x}[operation](*sets).astype(np.int32)
        maps = [places(x, heads, n_heads) for x in (a, b)]
        if heads.size == n_heads:
            heads = None
    chosen = [select(x, np.arange(batch) * x.lead[0] // batch, m) for x, m in zip((a, b), maps)]
    return tuple(x if x.heads is heads else replace(x, heads=heads) for x in chosen)


def places(part, heads, n_heads):
    """Where on the head axis of `part` each of these heads stands; -1: it is not about that head."""
    if part.heads is None:
        return np.asarray(heads) * part.lead[1] // n_heads
    at = np.searchsorted(part.heads, heads)
    at = np.minimum(at, part.heads.size - 1)
    found = part.heads[at] == heads
    return np.where(found, 0 if part.lead[1] == 1 else at, -1)


def select(part, batches, heads):
    """A part with these entries of its batch and head axes; -1: no pairs there. Shared axes stay shared where they
    can."""
    batches, heads = np.asarray(batches), np.asarray(heads)
    absent = (batches < 0)[:, None] | (heads < 0)[None, :]
    batches, heads = np.maximum(batches, 0), np.maximum(heads, 0)
    if not absent.any() and _unchanged(batches, part.lead[0]) and _unchanged(heads, part.lead[1]):
        return part
    orders = {name: _select_order(getattr(part, name), batches, heads) for name in ("q_order", "k_order")}
    if isinstance(part, Ranges):
        starts, stops = (_emptied(_take(x, batches, heads), absent, x.dtype.type(0)) for x in (part.starts, part.stops))
        return replace(part, starts=starts, stops=stops, **orders)
    starts = _take(part.indptr[..., :-1], batches, heads)
    counts = _emptied(_take(np.diff(part.indptr, axis=2), batches, heads), absent, np.int64(0))
    indptr, at = gathered(np.broadcast_to(starts, counts.shape), counts)
    ids = None if part.mask_ids is None else part.mask_ids[at]
    return replace(part, indptr=indptr, indices=part.indices[at], mask_ids=ids, **orders)


def _unchanged(picks, size):
    return size == 1 or (len(picks) == size and np.array_equal(picks, np.arange(size)))


def _take(x, batches, heads):
    """x (1 | batch, 1 | heads, ...) at these entries; axes of 1 stay."""
    x = x[batches] if x.shape[0] > 1 else x
    return x[:, heads] if x.shape[1] > 1 else x


def _emptied(x, absent, nothing):
    """x with `nothing` where absent (batch, heads); axes of 1 are written out only if they must."""
    if not absent.any():
        return x
    rows, cols = absent.all(axis=1, keepdims=True), absent.all(axis=0, keepdims=True)
    if not (absent & ~cols).any():
        absent = cols
    elif not (absent & ~rows).any():
        absent = rows
    return np.where(absent[:, :, None], nothing, x)


def _select_order(order, batches, heads):
    if order is None or order.lead == (1, 1):
        return order
    return Order.listed(_take(order.tokens, batches, heads), order.n_tokens)


def gathered(starts, counts):
    """indptr for rows of `counts` entries (batch, heads, n_rows), and where those entries lie, row after row."""
    flat = counts.ravel()
    at = np.repeat(starts.ravel() - (np.cumsum(flat) - flat), flat)
    return pointers(counts), at + np.arange(at.size)


def spread(part, batch, n_heads):
    """The part over the axes of a pattern of `batch` and `n_heads`: heads=None, each axis 1 or whole."""
    chosen = select(part, np.arange(batch) * part.lead[0] // batch, places(part, np.arange(n_heads), n_heads))
    return chosen if chosen.heads is None else replace(chosen, heads=None)


def widened(part, n_heads, wider):
    """A part of a pattern of `n_heads` heads as one of a pattern of `wider`, a multiple: each head becomes several."""
    if part.heads is None or wider == n_heads:
        return part
    each = wider // n_heads
    heads = (part.heads[:, None] * each + np.arange(each)).ravel().astype(np.int32)
    chosen = select(part, np.arange(part.lead[0]), np.arange(heads.size) // each)
    return replace(chosen, heads=None if heads.size == wider else heads)


def placed(part, offsets, width):
    """A part of a pattern of `width` heads as one of a larger pattern, in which they stand at each of `offsets`."""
    own = np.arange(width) if part.heads is None else part.heads
    heads = np.add.outer(offsets, own).ravel().astype(np.int32)
    chosen = select(part, np.arange(part.lead[0]), np.tile(places(part, own, width), len(offsets)))
    return replace(chosen, heads=heads)
