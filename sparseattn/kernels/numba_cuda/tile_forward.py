"""Block-sparse attention, forward: online softmax (Milakov and Gimelshein, arXiv:1805.02867; Dao et al.,
FlashAttention, arXiv:2205.14135) over the blocks of one structure.

Grid: (most items of a place, places); a thread block takes one item: 64 queries and `count` blocks of 64 keys. Shared
memory holds two tiles: slices of q and k, then weights and slices of v; so 35 KB are enough for any width.
"""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.numba_cuda import steps, tiles
from sparseattn.kernels.numba_cuda.shapes import ACROSS, AT_ONCE, BLOCK_Y, COLUMNS, PITCH, REGISTERS, THREADS, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import NEG_INF, token_at

F32, I32 = np.float32, np.int32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    n_rows, own, width, stored = c.ROWS, c.own_rows, c.width, (c.BITS, c.FP16)
    load_x, load_y = tiles.load_tile(n_rows, width, *stored), tiles.load_tile(BLOCK_Y, width, *stored)
    clear, scores, store_tile, accumulate = (tiles.clear(own), tiles.scores(own, width), tiles.store_tile(own),
                                             tiles.accumulate(own, width))
    attended, apply_mask = steps.attended(own), steps.apply_mask(own, c.SHAPED, c.BIAS)
    begin_rows, share_maxima, online_softmax = (steps.begin_rows(own), steps.share_maxima(own),
                                                steps.online_softmax(own))
    begin_sums, add_slice, share_sums = tiles.begin_sums(c.sums), tiles.add_slice(c.sums), steps.share_sums(own)
    end_rows, write_row = steps.end_rows(own), steps.write_row(c.sums, *stored)
    drops, drop = c.DROPOUT, steps.drop(own)
    left_shape, right_shape, shares_shape = (n_rows, PITCH), (BLOCK_Y, PITCH), (n_rows, ACROSS + 1)
    sums_shape, scores_shape = c.sums, (own, COLUMNS)

    def tile_forward(q, k, v, x_order, y_order, places, items, indices, mask_ids, masks, live, head_dim, v_dim,
                     n_heads, n_x, n_y, scale, softcap, values, value_at, labels, x_codes, y_codes, low, high, x_step,
                     y_step, limit, kept, word, resumes, keeps, n_slots, out, carry, lse, part_out, part_lse,
                     together, apart, first_place):
        place, number = steps.turn_of(cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.x, cuda.gridDim.y, together, apart)
        place, thread = first_place + place, cuda.threadIdx.x
        if number >= places[place, 5]:
            return
        batch, head, y_head = places[place, 0], places[place, 1], places[place, 2]
        x_at, y_at = places[place, 6], places[place, 7]
        item = places[place, 4] + number
        first_slot, first, count, slot = items[item, 0] * n_rows, items[item, 1], items[item, 2], items[item, 3]
        row, col = thread // ACROSS * own, thread % ACROSS
        qk_slices, v_slices = (head_dim + width - 1) // width, (v_dim + width - 1) // width
        bias = values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step
        draws = limit, kept, word

        left = cuda.shared.array(left_shape, F32)
        right = cuda.shared.array(right_shape, F32)
        shares = cuda.shared.array(shares_shape, F32)
        heads = cuda.shared.array(n_rows, I32)
        x_tokens = cuda.shared.array(n_rows, I32)
        y_tokens = cuda.shared.array(BLOCK_Y, I32)
        ahead = cuda.local.array(AT_ONCE, F32)
        s = cuda.local.array(scores_shape, F32)
        sums = cuda.local.array(sums_shape, F32)
        m = cuda.local.array(own, F32)
        l = cuda.local.array(own, F32)
        f = cuda.local.array(own, F32)
        before = cuda.local.array(own, F32)
        bits = cuda.local.array(own, I32)

        for r in range(thread, n_rows, THREADS):
            heads[r], x_tokens[r] = head, token_at(x_order, x_at, first_slot + r, n_x)
        begin_rows(m, l)
        begin_sums(sums)
        for step in range(count):
            block, mask = indices[first + step], mask_ids[first + step]
            cuda.syncthreads()  # all are done with the step before
            if thread < BLOCK_Y:
                token = token_at(y_order, y_at, block * BLOCK_Y + thread, n_y)
                y_tokens[thread] = token if np.int64(live[mask, thread // 32]) >> (thread % 32) & 1 else -1
            clear(s)
            cuda.syncthreads()
            for a in range(qk_slices):
                load_x(left, q[batch, head], x_tokens, a * width, head_dim, thread, ahead)
                load_y(right, k[batch, y_head], y_tokens, a * width, head_dim, thread, ahead)
                cuda.syncthreads()
                scores(s, left, right, row, col)
                cuda.syncthreads()
            attended(bits, masks, mask, x_tokens, y_tokens, row, col)
            apply_mask(s, bits, heads, x_tokens, y_tokens, batch, row, col, scale, softcap, bias)
            share_maxima(shares, s, row, col)
            cuda.syncthreads()
            online_softmax(s, m, l, f, shares, row)
            if drops:
                drop(s, bits, heads, x_tokens, y_tokens, batch, row, col, draws)
            store_tile(left, s, row, col)
            for a in range(v_slices):
                load_y(right, v[batch, y_head], y_tokens, a * width, v_dim, thread, ahead)
                clear(s)
                cuda.syncthreads()
                accumulate(s, left, right, row, col)
                add_slice(sums, a, f, s)
                cuda.syncthreads()

        cuda.syncthreads()
        share_sums(shares, l, row, col)
        for i in range(own):
            token = x_tokens[row + i]
            before[i] = NEG_INF
            if slot < 0 and resumes != 0 and token >= 0:
                before[i] = lse[batch, head, token]
        cuda.syncthreads()  # all that share a row know its lse until now
        end_rows(m, l, f, before, shares, row)
        at = place * n_slots + slot if slot >= 0 else -1
        for i in range(own):
            token = x_tokens[row + i]
            if col == 0 and at >= 0:
                part_lse[at, row + i] = m[i]
            elif col == 0 and token >= 0:
                lse[batch, head, token] = m[i]
        write_row(sums, l, f, heads, x_tokens, row, col, v_dim, batch, resumes, keeps, out, carry, at, part_out)

    return compiled(tile_forward, REGISTERS)
