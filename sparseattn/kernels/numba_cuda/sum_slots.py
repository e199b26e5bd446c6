"""Rows of gradients that several work items computed in pieces: their float32 sums, added in the order of the pieces,
so that results have equal bits every run.

Grid: (most groups of a place, places). A group is one stationary tile: {row, first slot, number of slots, 0}.
BY_HEADS = 1: row r of a tile is head x_head + r of the token at slot `row`; 0: the token at slot row * rows + r of
head x_head.
"""

from __future__ import annotations

import functools

from sparseattn.kernels.numba_cuda.shapes import THREADS, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import ZERO, narrowed, token_at


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    by_heads, narrow = c.BY_HEADS, narrowed(32 if c.OUT32 else c.BITS, c.FP16)

    def sum_slots(groups, group_at, places, x_order, width, n_x, rows, adds, n_slots, out, carry, part, first_place):
        number, place, thread = cuda.blockIdx.x, first_place + cuda.blockIdx.y, cuda.threadIdx.x
        if number >= group_at[place, 1]:
            return
        group = group_at[place, 0] + number
        row, n_pieces = groups[group, 0], groups[group, 2]
        first = place * n_slots + groups[group, 1]
        batch, x_head = places[place, 0], places[place, 1]
        used = places[place, 3] if by_heads else rows
        for i in range(thread, used * width, THREADS):
            r, column = i // width, i % width
            token = token_at(x_order, places[place, 6], row if by_heads else row * rows + r, n_x)
            if token >= 0:
                head = x_head + r if by_heads else x_head
                x = ZERO
                for piece in range(n_pieces):
                    x += part[first + piece, r, column]
                if adds:
                    x += carry[batch, head, token, column]
                out[batch, head, token, column] = narrow(x)

    return compiled(sum_slots)
