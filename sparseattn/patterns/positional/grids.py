"""What families over grids share: lengths, axes, a value for each axis, and runs of slots that attend themselves."""

import math
from collections.abc import Sequence

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import positive, ranges_pattern
from sparseattn.structure import Order

WIDE = 64  # slots of a tile at most
NARROW = 16  # slots that short runs share a tile up to
LONG = 1024  # tokens of a run that lies in the natural order and is left there, whatever its tiles


def lengths(shape):
    """The axes of a grid as a tuple of whole numbers from 1."""
    if not _is_sequence(shape) or not len(shape):
        raise TypeError(f"shape is {shape!r}; expected the lengths of the grid's axes, such as (rows, columns)")
    shape = tuple(positive(length, f"shape[{axis}]") for axis, length in enumerate(shape))
    if math.prod(shape) >= 2**31:
        raise ValueError(f"shape {shape} has {math.prod(shape)} tokens; expected fewer than 2**31")
    return shape


def axes_of(axes, n_axes, name):
    """Axes as a tuple of numbers from 0, each once."""
    found = tuple(axes) if _is_sequence(axes) else (axes,)
    if any(isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) for axis in found):
        raise TypeError(f"{name} is {axes!r}; expected an axis of the grid, or a list of axes")
    for axis in found:
        if not -n_axes <= axis < n_axes:
            raise ValueError(f"{name} holds {axis}; expected axes from 0 to {n_axes - 1} of a grid with {n_axes}")
    axes = tuple(int(axis) % n_axes for axis in found)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name} {found} names an axis twice; list each once")
    return axes


def per_axis(value, n_axes, name, read):
    """One value for each axis, each as `read(value, name)` gives it; a single one is for all."""
    if not _is_sequence(value):
        return (read(value, name),) * n_axes
    if len(value) != n_axes:
        raise ValueError(f"{name} has {len(value)} values but the grid {n_axes} axes; give one for each, or one for "
                         "all")
    return tuple(read(x, f"{name}[{axis}]") for axis, x in enumerate(value))


def _is_sequence(x):
    return isinstance(x, Sequence) and not isinstance(x, str) or isinstance(x, np.ndarray) and x.ndim == 1


def runs(n_tokens, length, order, block_size=None, causal=False) -> Pattern:
    """Each run of `length` slots of an order attends itself, or its own slots up to the query."""
    size = None
    if block_size is None and (order is not None or length < LONG):
        size = tile(length, WIDE // 2 if causal else WIDE)  # smaller ones waste less on a diagonal
    tokens, starts, stops = spaced(np.arange(n_tokens) if order is None else order.listing()[0, 0], length, size)
    if tokens.size > n_tokens:
        order = Order.listed(tokens, n_tokens)
    if causal:
        stops = np.where(tokens >= 0, np.arange(1, tokens.size + 1), 0)
    return ranges_pattern(starts[None, None], stops[None, None], (n_tokens, n_tokens), block_size or size, order, order)


def spaced(tokens, length, size):
    """Runs of `length` tokens, each filled up with nobody (-1) to whole tiles of `size`: tokens, starts, stops of the
    slots. None: not filled up."""
    room = length if size is None or size % length == 0 else -(-length // size) * size
    filled = np.full((tokens.size // length, room), -1, np.int32)
    filled[:, :length] = tokens.reshape(-1, length)
    starts = np.repeat(np.arange(0, filled.size, room), room)
    there = filled.ravel() >= 0
    return filled.ravel(), np.where(there, starts, 0), np.where(there, starts + length, 0)


def tile(length, wide=WIDE):
    """Side of tiles for runs of `length` slots: an equal share of a run, rounded up, or some short runs together."""
    return NARROW // length * length if length <= NARROW else -(-length // -(-length // wide))
