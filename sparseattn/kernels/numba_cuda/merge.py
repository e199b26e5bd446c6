"""Rows that several work items computed in pieces: out = sum of exp(lse_i - lse) out_i with lse = log sum exp(lse_i),
in the order of the pieces, so that results have equal bits every run.

Grid: (most groups of a place, places). A group is one stationary tile: {row, first slot, number of slots, 0}.
BY_HEADS = 1: row r of a tile is head x_head + r of the token at slot `row`; 0: the token at slot row * rows + r of
head x_head.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import ROWS, THREADS, Constants
from sparseattn.kernels.numba_cuda.steps import ONLY_KEPT, exp_of, join
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import NEG_INF, ONE, ZERO, narrowed, token_at

F32, I32 = np.float32, np.int32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    by_heads, narrow = c.BY_HEADS, narrowed(c.BITS, c.FP16)

    def merge(groups, group_at, places, x_order, v_dim, n_heads, n_x, rows, resumes, keeps, n_slots, out, carry, lse,
              part_out, part_lse, first_place):
        number, place, thread = cuda.blockIdx.x, first_place + cuda.blockIdx.y, cuda.threadIdx.x
        if number >= group_at[place, 1]:
            return
        group = group_at[place, 0] + number
        row, n_pieces = groups[group, 0], groups[group, 2]
        first = place * n_slots + groups[group, 1]
        batch, x_head = places[place, 0], places[place, 1]
        used = places[place, 3] if by_heads else rows

        tokens = cuda.shared.array(ROWS, I32)
        shifts = cuda.shared.array(ROWS, F32)
        factors = cuda.shared.array(ROWS, F32)  # of the pieces' sum
        olds = cuda.shared.array(ROWS, F32)  # of what was there before

        if thread < used:
            token = token_at(x_order, places[place, 6], row if by_heads else row * rows + thread, n_x)
            head = x_head + thread if by_heads else x_head
            tokens[thread] = token
            top, total = NEG_INF, ZERO
            for piece in range(n_pieces):
                top = max(top, part_lse[first + piece, thread])
            shift = ZERO if top == NEG_INF else top
            for piece in range(n_pieces):
                total += exp_of(part_lse[first + piece, thread] - shift)
            factor, found, before = ZERO, NEG_INF, NEG_INF
            if total != ZERO:
                factor, found = ONE / total, shift + F32(math.log(total))
            if token >= 0:
                if resumes != 0:
                    before = lse[batch, head, token]
                joint, share, old = join(before, found)
                lse[batch, head, token] = joint
                shifts[thread], factors[thread], olds[thread] = shift, factor * share, old
        cuda.syncthreads()
        for i in range(thread, used * v_dim, THREADS):
            r, column = i // v_dim, i % v_dim
            token = tokens[r]
            if token >= 0:
                head = x_head + r if by_heads else x_head
                x = ZERO
                for piece in range(n_pieces):
                    weight = exp_of(part_lse[first + piece, r] - shifts[r])
                    x += weight * part_out[first + piece, r, column]
                x *= factors[r]
                if resumes == 1 and olds[r] != ZERO:
                    x += olds[r] * carry[batch, head, token, column]
                if keeps != ONLY_KEPT:
                    out[batch, head, token, column] = narrow(x)
                if keeps:
                    carry[batch, head, token, column] = x

    return compiled(merge)
