"""Gradients of block-sparse softmax attention, one walk seen twice (KV picks the face):
  KV = 0: stationary x1 x2 = q dout, moving y1 y2 = k v.                                       out1 = dq
  KV = 1: stationary x1 x2 = k v, moving y1 y2 = q dout, over the transposed structure.        out1 = dk, out2 = dv
P = exp(scores - lse), dP = dout v^T, dS = P (dP - delta): dq = scale dS k, dk = scale dS^T q, dv = P^T dout (Dao et
al., FlashAttention, arXiv:2205.14135). Nothing is added by several thread blocks, so results have equal bits every run.

Grid: (most items of a place, places); a thread block takes one item: 64 stationary rows and `count` blocks of 64
moving rows, for dk and dv once for each of `repeat` query heads. Shared memory holds two tiles: slices of x and y, then
weights or gradients of scores and slices of y.
"""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.gpu.terms import BY_SUM, OWN_VALUE
from sparseattn.kernels.numba_cuda import gradients, steps, tiles
from sparseattn.kernels.numba_cuda.gradients import whole
from sparseattn.kernels.numba_cuda.shapes import ACROSS, AT_ONCE, BLOCK_Y, COLUMNS, PITCH, REGISTERS, THREADS, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import ONE, POS_INF, ZERO, token_at

F32, I32 = np.float32, np.int32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    n_rows, own, width, stored = c.ROWS, c.own_rows, c.width, (c.BITS, c.FP16)
    kv, shaped, gradient, row_summed = c.KV, c.SHAPED, c.BIAS_GRAD, c.ROW_SUMS
    load_x, load_y = tiles.load_tile(n_rows, width, *stored), tiles.load_tile(BLOCK_Y, width, *stored)
    clear, scores, store_tile, accumulate = (tiles.clear(own), tiles.scores(own, width), tiles.store_tile(own),
                                             tiles.accumulate(own, width))
    attended = steps.attended(own)
    weigh, apply_slopes = gradients.weigh(own, kv, shaped, c.BIAS, c.DROPOUT), gradients.apply_slopes(own)
    place_of, begin_sums = steps.place_of(c.BIAS, gradient == BY_SUM), tiles.begin_sums(c.sums)
    add_slice = tiles.add_slice(c.sums)
    write_gradient = gradients.write_gradient(c.sums, 32 if c.OUT32 else c.BITS, c.FP16)
    left_shape, right_shape = (n_rows, PITCH), (BLOCK_Y, PITCH)
    sums_shape, second_shape, scores_shape = c.sums, c.sums if kv else (1, 1, 1), (own, COLUMNS)

    def tile_backward(x1, x2, y1, y2, stats, x_order, y_order, places, items, indices, mask_ids, masks, live,
                      head_dim, v_dim, n_heads, n_x, n_y, scale, softcap, values, value_at, labels, x_codes, y_codes,
                      low, high, x_step, y_step, limit, kept, word, dvalues, row_sums, grain, adds, n_slots,
                      out1, out2, carry1, carry2, part1, part2, together, apart, first_place):
        place, number = steps.turn_of(cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.x, cuda.gridDim.y, together, apart)
        place, thread = first_place + place, cuda.threadIdx.x
        if number >= places[place, 5]:
            return
        batch, x_head = places[place, 0], places[place, 1]
        x_at, y_at = places[place, 6], places[place, 7]
        item = places[place, 4] + number
        first_slot, first, count, slot = items[item, 0] * n_rows, items[item, 1], items[item, 2], items[item, 3]
        row, col = thread // ACROSS * own, thread % ACROSS
        qk_slices, v_slices = (head_dim + width - 1) // width, (v_dim + width - 1) // width
        bias = values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step
        draws = limit, kept, word

        left = cuda.shared.array(left_shape, F32)
        right = cuda.shared.array(right_shape, F32)
        x_heads = cuda.shared.array(n_rows, I32)
        x_tokens = cuda.shared.array(n_rows, I32)
        y_tokens = cuda.shared.array(BLOCK_Y, I32)
        heads = cuda.shared.array(BLOCK_Y, I32)  # these three by query: by moving or by stationary row
        lse = cuda.shared.array(BLOCK_Y, F32)
        delta = cuda.shared.array(BLOCK_Y, F32)
        ahead = cuda.local.array(AT_ONCE, F32)
        s = cuda.local.array(scores_shape, F32)
        d = cuda.local.array(scores_shape, F32)
        slopes = cuda.local.array(scores_shape, F32)
        sums1 = cuda.local.array(sums_shape, F32)
        sums2 = cuda.local.array(second_shape, F32)
        f = cuda.local.array(own, F32)
        bits = cuda.local.array(own, I32)

        for r in range(thread, n_rows, THREADS):
            token = token_at(x_order, x_at, first_slot + r, n_x)
            x_heads[r], x_tokens[r] = x_head, token
            if not kv:
                heads[r], lse[r], delta[r] = x_head, POS_INF, ZERO
                if token >= 0:
                    lse[r], delta[r] = stats[batch, x_head, token, 0], stats[batch, x_head, token, 1]
        for i in range(own):
            f[i] = ONE
        begin_sums(sums1)
        if kv:
            begin_sums(sums2)
        for step in range(count * (places[place, 3] if kv else 1)):
            y_head = places[place, 2] + step // count
            block, mask = indices[first + step % count], mask_ids[first + step % count]
            cuda.syncthreads()  # all are done with the step before
            if thread < BLOCK_Y:
                token = token_at(y_order, y_at, block * BLOCK_Y + thread, n_y)
                if np.int64(live[mask, thread // 32]) >> (thread % 32) & 1 == 0:
                    token = -1
                y_tokens[thread] = token
                if kv:
                    heads[thread], lse[thread], delta[thread] = y_head, POS_INF, ZERO
                    if token >= 0:
                        lse[thread], delta[thread] = stats[batch, y_head, token, 0], stats[batch, y_head, token, 1]
            clear(s)
            clear(d)
            cuda.syncthreads()
            for a in range(qk_slices):
                load_x(left, x1[batch, x_head], x_tokens, a * width, head_dim, thread, ahead)
                load_y(right, y1[batch, y_head], y_tokens, a * width, head_dim, thread, ahead)
                cuda.syncthreads()
                scores(s, left, right, row, col)
                cuda.syncthreads()
            for a in range(v_slices):
                load_x(left, x2[batch, x_head], x_tokens, a * width, v_dim, thread, ahead)
                load_y(right, y2[batch, y_head], y_tokens, a * width, v_dim, thread, ahead)
                cuda.syncthreads()
                scores(d, left, right, row, col)
                cuda.syncthreads()
            attended(bits, masks, mask, x_tokens, y_tokens, row, col)
            weigh(s, d, slopes, bits, heads, x_tokens, y_tokens, lse, delta, batch, row, col, scale, softcap, bias,
                  draws)
            if gradient:
                for i in range(own):
                    for j in range(COLUMNS):
                        if bits[i] >> j & 1:
                            x, y = x_tokens[row + i], y_tokens[col + ACROSS * j]
                            at = place_of(bias, batch, heads[col + ACROSS * j if kv else row + i], x, y)
                            if gradient == OWN_VALUE:
                                dvalues[at] = d[i, j]
                            else:
                                cuda.atomic.add(dvalues, at, whole(d[i, j], grain))
            if row_summed:  # here, since the simulator knows `cuda.atomic` in kernels alone
                for i in range(own):
                    row_sum, x = ZERO, x_tokens[row + i]
                    for j in range(COLUMNS):
                        row_sum += d[i, j]
                    if x >= 0:
                        cuda.atomic.add(row_sums, (batch, heads[row + i], x), whole(row_sum, grain))
            if shaped:
                apply_slopes(d, slopes)
            if kv:
                store_tile(left, s, row, col)
                for a in range(v_slices):
                    load_y(right, y2[batch, y_head], y_tokens, a * width, v_dim, thread, ahead)
                    clear(s)
                    cuda.syncthreads()
                    accumulate(s, left, right, row, col)
                    add_slice(sums2, a, f, s)
                    cuda.syncthreads()
            store_tile(left, d, row, col)
            for a in range(qk_slices):
                load_y(right, y1[batch, y_head], y_tokens, a * width, head_dim, thread, ahead)
                clear(s)
                cuda.syncthreads()
                accumulate(s, left, right, row, col)
                add_slice(sums1, a, f, s)
                cuda.syncthreads()

        cuda.syncthreads()
        at = place * n_slots + slot if slot >= 0 else -1
        write_gradient(sums1, scale, x_heads, x_tokens, row, col, head_dim, batch, adds, out1, carry1, at, part1)
        if kv:
            write_gradient(sums2, ONE, x_heads, x_tokens, row, col, v_dim, batch, adds, out2, carry2, at, part2)

    return compiled(tile_backward, REGISTERS)
