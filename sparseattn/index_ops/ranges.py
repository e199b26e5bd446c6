"""Intervals: intersect, subtract and unite ranges of key slots, also between different orders, in O(slots log slots).

The one question behind all of it: which slots of a range of `a` hold keys that lie in a range of `b`? In another order
the keys of `b` are a sorted run of `a`'s slots as long as `a`'s order rises along `b`'s; then the answer is again a
range.
"""

from dataclasses import replace

import numpy as np

from sparseattn.structure import Order
from sparseattn.xp import namespace

CHUNK = 1 << 17  # queries searched for at a time


def composed(from_order, to_order):
    """For each slot of one order the slot of its token in the other, -1 where there is none; None: the same slots.

    int32 (1 | batch, 1 | heads, n_slots); `to_order` is without repeats.
    """
    if from_order == to_order:
        return None
    if to_order is None:
        return from_order.listing()
    inverse = to_order.inverse()
    if from_order is None:
        return inverse
    tokens = from_order.listing()
    lead = tuple(np.maximum(inverse.shape[:2], tokens.shape[:2]))
    tokens = np.broadcast_to(tokens, lead + tokens.shape[2:])
    found = np.take_along_axis(np.broadcast_to(inverse, lead + inverse.shape[2:]), np.maximum(tokens, 0), axis=2)
    return np.where(tokens >= 0, found, -1)


def at_queries(ranges, q_order):
    """`ranges.starts, ranges.stops` at the query slots of another order; (0, 0) for a query they do not have."""
    slots = composed(q_order, ranges.q_order)
    if slots is None:
        return ranges.starts, ranges.stops
    lead = tuple(np.maximum(slots.shape[:2], ranges.starts.shape[:2]))
    slots = np.broadcast_to(slots, lead + slots.shape[2:])
    there, at = slots >= 0, np.maximum(slots, 0)
    return tuple(
        np.where(there, np.take_along_axis(np.broadcast_to(x, lead + x.shape[2:]), at, axis=2), 0) if x.shape[2] else
        np.zeros(slots.shape, np.int32)
        for x in (ranges.starts, ranges.stops)
    )


def count_before(flags):
    """How many flags are set before each slot, int32 (..., n_slots + 1). Of either library."""
    xp = namespace(flags)
    total = xp.zeros(flags.shape[:-1] + (flags.shape[-1] + 1,), np.int32)
    total[..., 1:] = xp.cumsum(flags, axis=-1, dtype=np.int32)
    return total


def take_slots(table, slots):
    """table[b, h, slots[b, h, i]] with broadcast leading axes."""
    lead = tuple(np.maximum(table.shape[:2], slots.shape[:2]))
    if table.shape[:2] == (1, 1):
        return table[0, 0][slots]
    return np.take_along_axis(np.broadcast_to(table, lead + table.shape[2:]),
                              np.broadcast_to(slots, lead + slots.shape[2:]), axis=2)


def canonical(starts, stops):
    """int32 ranges, every empty one written (0, 0). Of either library."""
    some, xp = stops > starts, namespace(starts)
    if starts.shape != stops.shape or not some.all():
        starts, stops = xp.where(some, starts, 0), xp.where(some, stops, 0)
    return starts.astype(np.int32, copy=False), stops.astype(np.int32, copy=False)


def intersect(a, b):
    """`a & b` of aligned Ranges as one Ranges in the order of `a` or `b`; None where it is not made of ranges."""
    for x, y in ((a, b), (b, a)):
        if not has_holes(x, y):
            bounds = locate(x, y)
            if bounds is not None:
                return replace(x, starts=bounds[0], stops=bounds[1])
    if repeats(b):
        return None
    inside = keep_keys(a, composed(a.k_order, b.k_order) >= 0)
    bounds = locate(inside, b)
    return None if bounds is None else replace(inside, starts=bounds[0], stops=bounds[1])


def subtract(a, b):
    """`a - b` of aligned Ranges as a list of disjoint Ranges; None where it is not made of ranges."""
    if repeats(b):
        return None
    pieces, inside = [], a
    if has_holes(a, b):
        known = composed(a.k_order, b.k_order) >= 0
        pieces, inside = [keep_keys(a, ~known)], keep_keys(a, known)
    bounds = locate(inside, b)
    if bounds is None:
        return None
    lo, hi = bounds
    met = hi > lo
    if not met.any():
        return [a]
    before = canonical(inside.starts, np.where(met, lo, inside.stops))
    after = canonical(np.where(met, hi, 0), np.where(met, inside.stops, 0))
    pieces += [replace(inside, starts=s, stops=e) for s, e in (before, after)]
    return [p for p in pieces if (p.stops > p.starts).any()]


def unite(a, b):
    """`a | b` of disjoint aligned Ranges in one space as one Ranges; None where some query would need two ranges."""
    apart = (a.starts != b.stops) & (b.starts != a.stops) & (a.stops > a.starts) & (b.stops > b.starts)
    if apart.any():
        return None
    empty_a, empty_b = a.stops <= a.starts, b.stops <= b.starts
    starts = np.where(empty_a, b.starts, np.where(empty_b, a.starts, np.minimum(a.starts, b.starts)))
    return replace(a, starts=starts, stops=np.maximum(a.stops, b.stops))


def repeats(part):
    """Whether some key of the part sits at several slots, so that its order has no inverse."""
    return part.k_order is not None and part.k_order.repeats


def has_holes(a, b):
    """Whether a range of `a` holds a slot whose key is at no slot of `b` (or is nobody)."""
    if repeats(b):
        return True
    c = composed(a.k_order, b.k_order)
    if c is None or not (c < 0).any():
        return False
    before = count_before(c < 0)
    return bool((take_slots(before, a.stops) > take_slots(before, a.starts)).any())


def locate(a, b):
    """Bounds (starts, stops) in slots of `a` of the keys that `b` also gives each query; None where they are no
    range."""
    s, e = at_queries(b, a.q_order)
    c = composed(a.k_order, b.k_order)
    if c is None:
        return canonical(np.maximum(a.starts, s), np.minimum(a.stops, e))
    if c.shape[2] == 0:
        return a.starts, a.stops
    lead = tuple(np.max([c.shape[:2], a.starts.shape[:2], s.shape[:2]], axis=0))
    n = a.starts.shape[2]
    starts, stops, s, e = (np.broadcast_to(x, lead + (n,)) for x in (a.starts, a.stops, s, e))
    low, high = np.empty(lead + (n,), np.int32), np.empty(lead + (n,), np.int32)
    for at in np.ndindex(lead):
        runs = _Runs(c[at[0] % c.shape[0], at[1] % c.shape[1]])
        for first in range(0, n, CHUNK):
            piece = (*at, slice(first, first + CHUNK))
            found = runs.bounds(starts[piece], stops[piece], s[piece], e[piece])
            if found is None:
                return None
            low[piece], high[piece] = found
    return canonical(low, high)


class _Runs:
    """The runs along which a sequence rises, as one rising sequence of numbers to search in."""

    def __init__(self, c):
        self.run = np.zeros(c.size, np.int64)
        np.cumsum(c[1:] <= c[:-1], out=self.run[1:])
        self.span = int(c.max()) + 2
        self.key = self.run * self.span + c

    def bounds(self, starts, stops, s, e):
        """Within [starts, stops) the slots whose number lies in [s, e); None where such a range leaves its run."""
        first, last = np.minimum(starts, self.key.size - 1), np.maximum(stops - 1, 0)
        run = self.run[first]
        if ((stops > starts) & (run != self.run[last])).any():
            return None
        low, high = (np.searchsorted(self.key, run * self.span + np.minimum(x, self.span - 1)) for x in (s, e))
        return np.clip(low, starts, stops), np.clip(high, starts, stops)


def keep_keys(part, wanted):
    """The part in a key order of the slots where `wanted`, bool (1 | batch, 1 | heads, n_k_slots), holds."""
    n_slots = part.n_k_slots
    tokens = np.arange(n_slots, dtype=np.int32).reshape(1, 1, -1) if part.k_order is None else part.k_order.listing()
    lead = tuple(np.maximum(tokens.shape[:2], wanted.shape[:2]))
    before = count_before(wanted)
    size = int(before[..., -1].max(initial=0))
    kept = np.full(lead + (size,), -1, np.int32)
    for at in np.ndindex(lead):
        chosen = tokens[at[0] % tokens.shape[0], at[1] % tokens.shape[1]]
        chosen = chosen[wanted[at[0] % wanted.shape[0], at[1] % wanted.shape[1]]]
        kept[at + (slice(chosen.size),)] = chosen
    starts, stops = canonical(take_slots(before, part.starts), take_slots(before, part.stops))
    return replace(part, starts=starts, stops=stops, k_order=Order.listed(kept, part.shape[1]))
