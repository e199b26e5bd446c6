"""Slices of patterns and patterns side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.algebra import compact, is_empty, stacked
from sparseattn.index_ops.assemble import Place, assembled, by_kind
from sparseattn.index_ops.axes import placed, places, select
from sparseattn.index_ops.cells import from_cells, to_cells
from sparseattn.index_ops.relocate import Window, relocate
from sparseattn.pattern.devices import structural
from sparseattn.structure import Order, Ranges

AXES = ("batch", "heads", "queries", "keys")


def sliced(pattern, key):
    """``pattern[batch, heads, queries, keys]``."""
    keys = key if isinstance(key, tuple) else (key,)
    keys = _expanded(keys)
    sizes = (pattern.batch, pattern.n_heads) + pattern.shape
    windows = [_window(k, n, axis) for k, n, axis in zip(keys, sizes, AXES)]
    parts = [_entries(p, pattern, windows[0], windows[1]) for p in pattern.parts]
    parts = [relocate(p, windows[2], windows[3]) for p in parts if p is not None]
    shape = (windows[2].size, windows[3].size)
    batch, n_heads = windows[0].size, windows[1].size
    return type(pattern)(tuple(p for p in parts if not is_empty(p)), shape, batch, n_heads)


def _expanded(keys):
    """Four keys from at most four, an Ellipsis standing for the missing ones."""
    if sum(k is Ellipsis for k in keys) > 1 or len([k for k in keys if k is not Ellipsis]) > 4:
        raise IndexError(f"pattern[...] takes at most four slices (batch, heads, queries, keys), got {len(keys)}")
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        return keys[:at] + (slice(None),) * (5 - len(keys)) + keys[at + 1 :]
    return keys + (slice(None),) * (4 - len(keys))


def _window(key, n, axis):
    """A slice of an axis as a Window; a whole number counts as a slice of one."""
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not -n <= key < n:
            raise IndexError(f"{axis} index {key} is out of range for a pattern with {n}")
        return Window(int(key) % n, 1, 1)
    if not isinstance(key, slice):
        raise TypeError(f"{axis} of a pattern are indexed by slices or whole numbers, got {type(key).__name__}; for "
                        "a list of tokens combine patterns instead")
    start, stop, step = key.indices(n)
    if step < 1:
        raise ValueError(f"{axis} slice has step {step}; a pattern's slices need a positive step")
    size = len(range(start, stop, step))
    if axis in AXES[:2] and size == 0:
        raise ValueError(f"{axis} slice {key.start}:{key.stop} of {n} is empty; keep at least one")
    return Window(start, step, size)


def _entries(part, pattern, batch, heads):
    """The part at some batch items and heads of its pattern; None where it is about none of them."""
    if batch.is_whole(pattern.batch) and heads.is_whole(pattern.n_heads):
        return part
    picks = batch.start + batch.step * np.arange(batch.size)
    wanted = heads.start + heads.step * np.arange(heads.size)
    at = places(part, wanted, pattern.n_heads)
    there = np.flatnonzero(at >= 0)
    if there.size == 0:
        return None
    chosen = select(part, picks * part.lead[0] // pattern.batch, at[there])
    if not isinstance(chosen, Ranges) and chosen is not part:
        chosen = from_cells(to_cells(chosen))  # drop masks that went with the other entries
    about = None if there.size == wanted.size else there.astype(np.int32)
    return chosen if chosen.heads is about else replace(chosen, heads=about)


@structural
def concatenate(patterns, axis):
    """Patterns side by side along 0 batch, 1 heads, 2 queries or 3 keys."""
    patterns = list(patterns)
    if not isinstance(axis, (int, np.integer)) or not -4 <= axis < 4:
        raise ValueError(f"axis {axis!r}: expected 0 (batch), 1 (heads), 2 (queries) or 3 (keys)")
    axis = axis % 4
    check_alike(patterns, (axis,))
    first = patterns[0]
    if axis < 2:
        return _beside(patterns, axis)
    total = sum(p.shape[axis - 2] for p in patterns)
    batch, n_heads = max(p.batch for p in patterns), max(p.n_heads for p in patterns)
    shape = (total, first.shape[1]) if axis == 2 else (first.shape[0], total)
    at, parts = 0, []
    for pattern in patterns:
        windows = [Window(0, 1, n) for n in shape]
        windows[axis - 2] = Window(-at, 1, total)
        parts += [relocate(p, *windows) for p in pattern.parts_over(n_heads)]
        at += pattern.shape[axis - 2]
    return type(first)(tuple(compact(parts, n_heads)), shape, batch, n_heads)


def _beside(patterns, axis):
    """Patterns as batch items or heads of one."""
    widths = [p.n_heads if axis else p.batch for p in patterns]
    size = sum(widths)
    if size == len(patterns) and all(p == patterns[0] for p in patterns):
        shared = patterns[0]
        return replace(shared, n_heads=size) if axis else replace(shared, batch=size)
    batch = max(p.batch for p in patterns) if axis else size
    n_heads = size if axis else max(p.n_heads for p in patterns)
    parts = _heads_beside(patterns, widths, size) if axis else _items_beside(patterns, widths, size, n_heads)
    return type(patterns[0])(tuple(parts), patterns[0].shape, batch, n_heads)


def _heads_beside(patterns, widths, n_heads):
    """Parts that name their heads, where these differ; other heads cost them nothing."""
    offsets = {}
    for pattern, offset in zip(patterns, np.cumsum(widths) - widths):
        offsets.setdefault(id(pattern), (pattern, []))[1].append(offset)
    parts = [placed(part, at, pattern.n_heads) for pattern, at in offsets.values() for part in pattern.parts]
    return stacked(parts, n_heads)


def _items_beside(patterns, widths, batch, n_heads):
    """Parts over all batch items, those of one kind as one, with an order for each item where they differ."""
    begins = np.cumsum(widths) - widths
    parts = []
    for group in by_kind(p.parts_over(n_heads) for p in patterns):
        pieces = [Place(part, begins[number], widths[number], 0, 0) for number, part in group]
        orders = [_order_of_items(pieces, batch, name) for name in ("q_order", "k_order")]
        parts.append(assembled(pieces, patterns[0].shape, batch, *orders))
    return parts


def _order_of_items(pieces, batch, name):
    """The order that the parts share, or their orders as a list for each batch item, nobody behind shorter ones."""
    orders = [getattr(p.part, name) for p in pieces]
    if orders[0] is None or (len(set(orders)) == 1 and orders[0].lead[0] == 1):
        return orders[0]
    n_heads, n_slots = (max(n) for n in zip(*[(o.lead[1], o.n_slots) for o in orders]))
    tokens = np.full((batch, n_heads, n_slots), -1, np.int32)
    for p, order in zip(pieces, orders):
        tokens[p.item : p.item + p.n_items, :, : order.n_slots] = order.listing()
    return Order.listed(tokens, orders[0].n_tokens)


def check_alike(patterns, along):
    """Refuse what are no patterns, or differ in axes other than those `along` which they are put together."""
    if not patterns:
        raise ValueError("no patterns to put together; give at least one")
    for p in patterns:
        if not isinstance(p, type(patterns[0])) or not hasattr(p, "parts"):
            raise TypeError(f"expected patterns, got {type(p).__name__}")
    sizes = [(p.batch, p.n_heads) + p.shape for p in patterns]
    for other in range(4):
        seen = {s[other] for s in sizes}
        fits = len(seen - {1}) <= 1 if other != 1 else all(max(seen) % n == 0 for n in seen)
        free = other in along or (other < 2 and fits)
        if len(seen) > 1 and not free:
            raise ValueError(f"patterns have {sorted(seen)} {AXES[other]}; they must agree on every axis but the one "
                             "they are put together along")
