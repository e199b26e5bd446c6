"""The gradient of a bias that is an array whose values batch items or heads share, of a structure in tiles: of each
value the sum of dS = P (dP - delta) over its pairs, P = exp(q k^T scale + bias - lse), dP = dout v^T. A third walk of
the backward, after the two of tile_backward.py and after deltas.py, whose delta has not the rounding of `out`.

Places (a batch item, a query head) whose pairs have the same values, and the same structure and orders, are a group. A
thread block goes through the places of its group, so a pair's value is added to once, not once a place. Within a thread
sums are of float32, in the order of places; what blocks add is whole numbers. So equal calls give equal bits.

Grid: (most items of a group, groups); a thread block takes one item: 64 queries and one or two blocks of 64 keys.
Shared memory holds two tiles: slices of q and k, then of dout and v.
"""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.numba_cuda import gradients, steps, tiles
from sparseattn.kernels.numba_cuda.gradients import whole
from sparseattn.kernels.numba_cuda.shapes import ACROSS, AT_ONCE, BLOCK_Y, COLUMNS, PITCH, REGISTERS, THREADS, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import POS_INF, ZERO, token_at

F32, I32 = np.float32, np.int32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    n_rows, own, width, stored = c.ROWS, c.own_rows, c.width, (c.BITS, c.FP16)
    load_x, load_y = tiles.load_tile(n_rows, width, *stored), tiles.load_tile(BLOCK_Y, width, *stored)
    clear, scores, attended = tiles.clear(own), tiles.scores(own, width), steps.attended(own)
    weigh, place_of = gradients.weigh(own, 0, c.SHAPED, c.BIAS, c.DROPOUT), steps.place_of(c.BIAS)
    left_shape, right_shape, scores_shape = (n_rows, PITCH), (BLOCK_Y, PITCH), (own, COLUMNS)

    def tile_values(q, dout, k, v, stats, x_order, y_order, groups, places, items, indices, mask_ids, masks, live,
                    head_dim, v_dim, n_heads, n_x, n_y, scale, softcap, values, value_at, labels, x_codes, y_codes,
                    low, high, x_step, y_step, limit, kept, word, dvalues, grain, first_group):
        number, group, thread = cuda.blockIdx.x, first_group + cuda.blockIdx.y, cuda.threadIdx.x
        if number >= groups[group, 5]:
            return
        first_place, n_places = groups[group, 0], groups[group, 1]
        x_at, y_at, item = groups[group, 2], groups[group, 3], groups[group, 4] + number
        first_slot, first, count = items[item, 0] * n_rows, items[item, 1], items[item, 2]
        row, col = thread // ACROSS * own, thread % ACROSS
        qk_slices, v_slices = (head_dim + width - 1) // width, (v_dim + width - 1) // width
        bias = values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step
        draws = limit, kept, word

        left = cuda.shared.array(left_shape, F32)
        right = cuda.shared.array(right_shape, F32)
        x_tokens = cuda.shared.array(n_rows, I32)
        y_tokens = cuda.shared.array(BLOCK_Y, I32)
        heads = cuda.shared.array(n_rows, I32)
        lse = cuda.shared.array(n_rows, F32)
        delta = cuda.shared.array(n_rows, F32)
        ahead = cuda.local.array(AT_ONCE, F32)
        s = cuda.local.array(scores_shape, F32)
        d = cuda.local.array(scores_shape, F32)
        slopes = cuda.local.array(scores_shape, F32)
        sums = cuda.local.array(scores_shape, F32)
        bits = cuda.local.array(own, I32)

        for r in range(thread, n_rows, THREADS):
            x_tokens[r] = token_at(x_order, x_at, first_slot + r, n_x)
        for entry in range(first, first + count):
            block, mask = indices[entry], mask_ids[entry]
            cuda.syncthreads()  # all are done with the entry before
            if thread < BLOCK_Y:
                token = token_at(y_order, y_at, block * BLOCK_Y + thread, n_y)
                if np.int64(live[mask, thread // 32]) >> (thread % 32) & 1 == 0:
                    token = -1
                y_tokens[thread] = token
            cuda.syncthreads()
            attended(bits, masks, mask, x_tokens, y_tokens, row, col)
            clear(sums)
            for place in range(first_place, first_place + n_places):
                batch, x_head, y_head = places[place, 0], places[place, 1], places[place, 2]
                cuda.syncthreads()  # all are done with the place before
                for r in range(thread, n_rows, THREADS):
                    token = x_tokens[r]
                    heads[r], lse[r], delta[r] = x_head, POS_INF, ZERO
                    if token >= 0:
                        lse[r], delta[r] = stats[batch, x_head, token, 0], stats[batch, x_head, token, 1]
                clear(s)
                clear(d)
                for a in range(qk_slices):
                    load_x(left, q[batch, x_head], x_tokens, a * width, head_dim, thread, ahead)
                    load_y(right, k[batch, y_head], y_tokens, a * width, head_dim, thread, ahead)
                    cuda.syncthreads()
                    scores(s, left, right, row, col)
                    cuda.syncthreads()
                for a in range(v_slices):
                    load_x(left, dout[batch, x_head], x_tokens, a * width, v_dim, thread, ahead)
                    load_y(right, v[batch, y_head], y_tokens, a * width, v_dim, thread, ahead)
                    cuda.syncthreads()
                    scores(d, left, right, row, col)
                    cuda.syncthreads()
                weigh(s, d, slopes, bits, heads, x_tokens, y_tokens, lse, delta, batch, row, col, scale, softcap, bias,
                      draws)
                for i in range(own):
                    for j in range(COLUMNS):
                        sums[i, j] += d[i, j]
            batch, x_head = places[first_place, 0], places[first_place, 1]  # of the others values begin there too
            for i in range(own):
                for j in range(COLUMNS):
                    if bits[i] >> j & 1:
                        at = place_of(bias, batch, x_head, x_tokens[row + i], y_tokens[col + ACROSS * j])
                        cuda.atomic.add(dvalues, at, whole(sums[i, j], grain))

    return compiled(tile_values, REGISTERS)
