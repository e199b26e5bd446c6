"""Gradients of softmax attention in blocks of one query by b keys, one walk seen twice (KV picks the face), with the
formulas of tile_backward.py:
  KV = 0: stationary x1 x2 = q dout: the query heads that share a row (at most 16) are the tile's rows;
          moving y1 y2 = k v: `count` blocks of block_y keys.                                  out1 = dq
  KV = 1: stationary x1 x2 = k v: block_x keys; moving y1 y2 = q dout: `count` queries times their `repeat` heads,
          over the transposed structure.                                        out1 = dk, out2 = dv
Nothing is added by several thread blocks, so results have equal bits every run.

Grid: (most items of a place, places); a thread block takes one item, in steps of 64 moving rows. A moving row that is
masked for all, nobody or past the end does not exist: it is never read.
"""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.gpu.terms import BY_SUM, OWN_VALUE
from sparseattn.kernels.numba_cuda import gradients, steps, tiles
from sparseattn.kernels.numba_cuda.gradients import whole
from sparseattn.kernels.numba_cuda.shapes import ACROSS, AT_ONCE, BLOCK_Y, COLUMNS, PITCH, REGISTERS, THREADS, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import ONE, POS_INF, ZERO, find_key, token_at

F32, I32 = np.float32, np.int32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    n_rows, own, width, stored = c.ROWS, c.own_rows, c.width, (c.BITS, c.FP16)
    kv, shaped, gradient, row_summed = c.KV, c.SHAPED, c.BIAS_GRAD, c.ROW_SUMS
    load_x, load_y = tiles.load_rows(n_rows, width, *stored), tiles.load_rows(BLOCK_Y, width, *stored)
    clear, scores, store_tile, accumulate = (tiles.clear(own), tiles.scores(own, width), tiles.store_tile(own),
                                             tiles.accumulate(own, width))
    attended_tokens, attended_keys = steps.attended_tokens(own), steps.attended_keys(own)
    weigh, apply_slopes = gradients.weigh(own, kv, shaped, c.BIAS, c.DROPOUT), gradients.apply_slopes(own)
    place_of, begin_sums = steps.place_of(c.BIAS, gradient == BY_SUM), tiles.begin_sums(c.sums)
    add_slice = tiles.add_slice(c.sums)
    write_gradient = gradients.write_gradient(c.sums, 32 if c.OUT32 else c.BITS, c.FP16)
    left_shape, right_shape = (n_rows, PITCH), (BLOCK_Y, PITCH)
    sums_shape, second_shape, scores_shape = c.sums, c.sums if kv else (1, 1, 1), (own, COLUMNS)

    def row_backward(x1, x2, y1, y2, stats, x_order, y_order, places, items, indices, mask_ids, masks, block_x, block_y,
                     n_x_slots, n_y_slots, head_dim, v_dim, n_heads, n_x, n_y, scale, softcap, values, value_at, labels,
                     x_codes, y_codes, low, high, x_step, y_step, limit, kept, word, dvalues, row_sums, grain, adds,
                     n_slots, out1, out2, carry1, carry2, part1, part2, first_place):
        number, place, thread = cuda.blockIdx.x, first_place + cuda.blockIdx.y, cuda.threadIdx.x
        if number >= places[place, 5]:
            return
        batch, x_head, y_head, repeat = places[place, 0], places[place, 1], places[place, 2], places[place, 3]
        x_at, y_at = places[place, 6], places[place, 7]
        item = places[place, 4] + number
        first, slot = items[item, 1], items[item, 3]
        used = block_x if kv else repeat  # stationary rows
        parts = repeat if kv else block_y  # moving rows of an entry
        total = items[item, 2] * parts
        row, col = thread // ACROSS * own, thread % ACROSS
        qk_slices, v_slices = (head_dim + width - 1) // width, (v_dim + width - 1) // width
        bias = values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step
        draws = limit, kept, word

        left = cuda.shared.array(left_shape, F32)
        right = cuda.shared.array(right_shape, F32)
        x_heads = cuda.shared.array(n_rows, I32)
        x_tokens = cuda.shared.array(n_rows, I32)
        y_heads = cuda.shared.array(BLOCK_Y, I32)
        y_tokens = cuda.shared.array(BLOCK_Y, I32)
        y_masks = cuda.shared.array(BLOCK_Y, I32)
        lse = cuda.shared.array(BLOCK_Y, F32)  # these two by query: by moving or by stationary row
        delta = cuda.shared.array(BLOCK_Y, F32)
        ahead = cuda.local.array(AT_ONCE, F32)
        s = cuda.local.array(scores_shape, F32)
        d = cuda.local.array(scores_shape, F32)
        slopes = cuda.local.array(scores_shape, F32)
        sums1 = cuda.local.array(sums_shape, F32)
        sums2 = cuda.local.array(second_shape, F32)
        f = cuda.local.array(own, F32)
        bits = cuda.local.array(own, I32)
        heads = y_heads if kv else x_heads  # by query

        for r in range(thread, n_rows, THREADS):
            head = x_head if kv else x_head + min(r, repeat - 1)
            x_slot = items[item, 0] * block_x + r if kv else items[item, 0]
            token = token_at(x_order, x_at, x_slot, n_x) if r < used and x_slot < n_x_slots else -1
            x_heads[r], x_tokens[r] = head, token
            if not kv:
                lse[r], delta[r] = POS_INF, ZERO
                if token >= 0:
                    lse[r], delta[r] = stats[batch, head, token, 0], stats[batch, head, token, 1]
        for i in range(own):
            f[i] = ONE
        begin_sums(sums1)
        if kv:
            begin_sums(sums2)
        for begin in range(0, total, BLOCK_Y):
            cuda.syncthreads()  # all are done with the step before
            if thread < BLOCK_Y:
                there = begin + thread < total
                entry = first + (begin + thread) // parts if there else first
                part = (begin + thread) % parts
                block, mask = indices[entry], mask_ids[entry]
                token = np.int64(-1)
                y_heads[thread], y_masks[thread] = y_head, mask
                if kv:
                    lse[thread], delta[thread] = POS_INF, ZERO
                    if there and block < n_y_slots:
                        token = token_at(y_order, y_at, block, n_y)
                    if token >= 0:
                        y_heads[thread] = y_head + part
                        lse[thread] = stats[batch, y_head + part, token, 0]
                        delta[thread] = stats[batch, y_head + part, token, 1]
                elif there:
                    token = find_key(block, mask, part, block_y, masks, y_order, y_at, n_y_slots, n_y)
                y_tokens[thread] = token
            clear(s)
            clear(d)
            cuda.syncthreads()
            for a in range(qk_slices):
                load_x(left, x1[batch], x_heads, x_tokens, a * width, head_dim, thread, ahead)
                load_y(right, y1[batch], y_heads, y_tokens, a * width, head_dim, thread, ahead)
                cuda.syncthreads()
                if row < used:
                    scores(s, left, right, row, col)
                cuda.syncthreads()
            for a in range(v_slices):
                load_x(left, x2[batch], x_heads, x_tokens, a * width, v_dim, thread, ahead)
                load_y(right, y2[batch], y_heads, y_tokens, a * width, v_dim, thread, ahead)
                cuda.syncthreads()
                if row < used:
                    scores(d, left, right, row, col)
                cuda.syncthreads()
            if kv:
                attended_keys(bits, masks, y_masks, x_tokens, y_tokens, row, col)
            else:
                attended_tokens(bits, x_tokens, y_tokens, row, col)
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
                    load_y(right, y2[batch], y_heads, y_tokens, a * width, v_dim, thread, ahead)
                    clear(s)
                    cuda.syncthreads()
                    if row < used:
                        accumulate(s, left, right, row, col)
                    add_slice(sums2, a, f, s)
                    cuda.syncthreads()
            store_tile(left, d, row, col)
            for a in range(qk_slices):
                load_y(right, y1[batch], y_heads, y_tokens, a * width, head_dim, thread, ahead)
                clear(s)
                cuda.syncthreads()
                if row < used:
                    accumulate(s, left, right, row, col)
                add_slice(sums1, a, f, s)
                cuda.syncthreads()

        cuda.syncthreads()
        at = place * n_slots + slot if slot >= 0 else -1
        write_gradient(sums1, scale, x_heads, x_tokens, row, col, head_dim, batch, adds, out1, carry1, at, part1)
        if kv:
            write_gradient(sums2, ONE, x_heads, x_tokens, row, col, v_dim, batch, adds, out2, carry2, at, part2)

    return compiled(row_backward, REGISTERS)
