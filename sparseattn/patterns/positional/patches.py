"""Neighborhoods along one axis of a grid, and patches of a grid whose neighborhoods fill few tiles."""

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sparseattn.structure import Order, Ranges

SIDES = 1, 2, 4, 8, 16, 32, 64  # of a patch, tried besides multiples of the stride
QUERIES, KEYS = (16, 64), (8, 64)  # slots of a patch that are tried: more than half the first, up to the second
LANES = 16  # a tile computes whole registers
READING = 12  # a token costs a tile as much to read as so many more slots to compute with (measured in float32)
SPAN = 256  # places looked at beyond a window, itself cut down to twice as many: what is met repeats with the sides


class Axis(NamedTuple):
    """Neighborhood attention along one axis."""

    length: int
    kernel: int
    stride: int
    dilation: int
    causal: bool

    @property
    def places(self):
        """Places of the longest dilation group."""
        return -(-self.length // self.dilation)

    def windows(self, n_places):
        """First key and key after the last, as places in the query's group, (dilation, n_places); 0, 0 for nobody."""
        group, x = np.arange(self.dilation)[:, None], np.arange(n_places)
        last = -(-(self.length - group) // self.dilation) - 1
        first_of_stride = x // self.stride * self.stride
        if self.causal:
            lead = np.minimum(first_of_stride + self.stride - 1, last)
            starts, stops = np.maximum(lead - self.kernel + 1, 0), x + 1
        else:
            lead = np.minimum(first_of_stride + self.stride // 2, last)
            starts = np.clip(lead - self.kernel // 2, 0, last + 1 - self.kernel)
            stops = starts + self.kernel
        return np.where(x <= last, starts, 0), np.where(x <= last, stops, 0)

    def patches(self, side, shift=0):
        """Patches of `side` places that hold a group, the first of them begun at place -shift."""
        return -(-(self.places + shift) // side)

    def ranges(self, q_side=1, k_side=1, shift=0, block_size=None) -> Ranges:
        """The pairs of the axis by dilation group, each group in whole patches; those of keys begin at place -shift."""
        starts, stops = self.windows(self.patches(q_side) * q_side)
        group = np.arange(self.dilation)[:, None] * (self.patches(k_side, shift) * k_side) + shift
        starts, stops = (np.where(stops > starts, x + group, 0).astype(np.int32).reshape(1, 1, -1)
                         for x in (starts, stops))
        return Ranges((self.length, self.length), starts, stops, order([self], [q_side], [0]),
                      order([self], [k_side], [shift]), block_size=block_size)


def order(axes, sides, shifts) -> Order | None:
    """Tokens of a grid by dilation group and patch, axis by axis, and last by their place in the patch."""
    digits = []
    for number, (axis, side, shift) in enumerate(zip(axes, sides, shifts)):
        digits += [(number, axis.dilation, 1), (number, axis.patches(side, shift), side * axis.dilation)]
    digits += [(number, side, axis.dilation) for number, (axis, side) in enumerate(zip(axes, sides))]
    if len(axes) == 1 and axes[0].dilation == 1 and shifts[0] == 0 and axes[0].length % sides[0] == 0:
        return None
    return Order.affine([axis.length for axis in axes], [digit for digit in digits if digit[1] > 1] or digits[:1],
                        [-shift * axis.dilation for axis, shift in zip(axes, shifts)])


@lru_cache(maxsize=64)
def chosen(axes, block_size=None):
    """Sides of query patches, sides of key patches, and where the latter begin on each axis: the cheapest to compute.

    `block_size`: a patch has at most so many slots, and more than half of them.
    """
    q_bounds, k_bounds = (QUERIES, KEYS) if block_size is None else [(b, b) for b in block_size]
    sides = [tuple(sorted({*SIDES, *(axis.stride * m for m in (1, 2, 4) if axis.stride * m <= SIDES[-1])}))
             for axis in axes]
    touched = [_touched(axis, along) for axis, along in zip(axes, sides)]
    q_sides, k_sides = _patches(sides, q_bounds), _patches(sides, k_bounds)
    blocks = np.ones((len(q_sides), len(k_sides)))
    for number, (counts, _) in enumerate(touched):
        q_at, k_at = (np.searchsorted(sides[number], [patch[number] for patch in patches])
                      for patches in (q_sides, k_sides))
        blocks *= counts[np.ix_(q_at, k_at)]
    q_slots, k_slots = (np.array([math.prod(patch) for patch in patches]) for patches in (q_sides, k_sides))
    # forward: queries in lanes, keys read; backward: the other way round
    cost = blocks * (_lanes(q_slots)[:, None] * k_slots + q_slots[:, None] * _lanes(k_slots))
    q, k = np.unravel_index(cost.argmin(), cost.shape)
    shifts = tuple(int(shift[along.index(q_side), along.index(k_side)])
                   for (_, shift), along, q_side, k_side in zip(touched, sides, q_sides[q], k_sides[k]))
    return q_sides[q], k_sides[k], shifts


def _patches(sides, bounds):
    """All patches of these sides whose slots are within the bounds."""
    return [patch for patch in itertools.product(*sides) if bounds[0] < 2 * math.prod(patch) <= 2 * bounds[1]]


def _lanes(slots):
    """What a token costs that meets so many slots of a tile."""
    return READING + -(-slots // LANES) * LANES


def _touched(axis, sides):
    """For each pair of sides: key patches that all query patches of a group touch, and the shift with the fewest."""
    kernel = axis.kernel if axis.kernel < 2 * SPAN else SPAN + axis.kernel % SPAN
    axis = axis._replace(kernel=kernel, length=min(axis.length, (kernel + SPAN) * axis.dilation))
    starts, stops = (bounds[0] for bounds in axis.windows(axis.places))
    counts, shifts = np.empty((2, len(sides), len(sides)), np.int64)
    for q, q_side in enumerate(sides):
        first, last = starts[::q_side], stops[np.minimum(np.arange(q_side, axis.places + q_side, q_side),
                                                         axis.places) - 1] - 1
        for k, k_side in enumerate(sides):
            shift = np.arange(k_side)[:, None]
            met = ((last + shift) // k_side - (first + shift) // k_side + 1).sum(axis=1)
            counts[q, k], shifts[q, k] = met.min(), met.argmin()
    return counts, shifts
