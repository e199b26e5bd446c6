"""Block-sparse attention backward in one walk: five products a block, no atomics on results.

A work item is a chunk of columns of blocks of keys of one (batch, k/v head). Its owner keeps dk and dv of a column in
scratch and adds ds k to the rows of dq that the chunk touches, in a buffer of the chunk's own; `sums` adds the chunks
up in their order. What a chunk is depends on the problem only, so the bits never depend on the threads.
"""

import numpy as np

from sparseattn.kernels.numba_cpu.compile import kernel, step
from sparseattn.kernels.numba_cpu.shaping import (drop, gradient_of_scores, gradients_at, open_lanes, shape_scores,
                                                  shaping_of)
from sparseattn.kernels.numba_cpu.simd import as_computed, data, fetch_add, get, lanes_of, shift
from sparseattn.kernels.numba_cpu.steps import (GROUP, WORD, apply_masks, collect, drop_dead, fill, head_of, live_span,
                                                load_rows, matmul, multiply, padded, probabilities, run_tokens,
                                                scores, stride_of, tile_stride, tokens_of, transpose_tile, valid_bits,
                                                write_rows)


@step
def statistics(lse_tile, delta_tile, tokens, n, lse, lse_stride, delta, delta_stride):
    """lse and delta of each token; +inf and 0 for nobody and for a row that attends nothing: its p is 0."""
    for i in range(n):
        lse_tile[i], delta_tile[i] = np.inf, 0
        if tokens[i] >= 0:
            log_sum = get(lse, tokens[i] * lse_stride)
            if log_sum != -np.inf:
                lse_tile[i], delta_tile[i] = log_sum, get(delta, tokens[i] * delta_stride)


@step
def mark_alive(alive, slot, stop, indices, mask_ids, spans, masks, masked, words, block, n_slots, q_order, listed):
    """Add the bits of the keys of a column that some existing query attends."""
    for i in range(slot, stop):
        full = not masked or mask_ids[i] == 0
        low, high, _ = live_span(i, mask_ids, spans, masked, indices[i], block, n_slots)
        for row in range(low, high):
            if listed and q_order[indices[i] * block + row] < 0:
                continue
            for w in range(words):
                alive[w] |= 0xFFFF if full else masks[(mask_ids[i] * block + row) * words + w]
            if full:
                return


@step
def add_blocks(q, q_stride, qk_dim, dout, do_stride, v_dim, lse, lse_stride, delta, delta_stride, slot, stop, indices,
               mask_ids, spans, masks, masked, valid, careful, q_order, listed, gathers, n_slots, block_q, block_k,
               width, stride, scale, shaping, k_t, v_t, k_rows, dk_t, dv_t, dq, dq_rows, dvalues, scratch, tokens):
    """Add what the stored blocks of a column give to dk_t (qk_dim, width), dv_t (v_dim, width), dq and dvalues."""
    lanes = lanes_of(scratch)
    qk_pad, v_pad = padded(qk_dim, lanes), padded(v_dim, lanes)
    group, words = max(GROUP, block_q), (block_k + WORD - 1) // WORD
    s, dp = scratch, shift(scratch, group * stride)
    q_rows = shift(dp, group * stride)
    do_rows = shift(q_rows, group * qk_pad)
    log_sums = shift(do_rows, group * v_pad)
    means = shift(log_sums, group)
    slopes = shift(means, group)
    factor = scale
    runs = shift(tokens, group)
    while slot < stop:
        first = slot
        slot, n_runs, n, holes = collect(runs, first, stop, indices, mask_ids, spans, masked, careful, block_q, n_slots,
                                         group)
        run_tokens(tokens, runs, n_runs, q_order, listed, n_slots)
        staged = gathers or holes or n < 16 * n_runs  # many short runs are better one product
        if holes:
            drop_dead(tokens, first, slot, indices, mask_ids, spans, masks, words, block_q, n_slots, valid)
        statistics(log_sums, means, tokens, n, lse, lse_stride, delta, delta_stride)
        if staged:
            load_rows(q_rows, qk_pad, q, q_stride, tokens, n, qk_dim, 1.0)
            load_rows(do_rows, v_pad, dout, do_stride, tokens, n, v_dim, 1.0)
        # where nothing is staged, each run is one product; where all is, there is one run in the scratch
        at = 0
        for r in range(1 if staged else n_runs):
            size = n if staged else runs[3 * r + 1]
            q_here, q_step, do_here, do_step = q_rows, qk_pad, do_rows, v_pad
            if not staged:
                q_here, q_step = shift(as_computed(q), runs[3 * r] * q_stride), q_stride
                do_here, do_step = shift(as_computed(dout), runs[3 * r] * do_stride), do_stride
            scores(shift(s, at * stride), stride, q_here, q_step, k_t, stride, size, width, qk_dim)
            scores(shift(dp, at * stride), stride, do_here, do_step, v_t, stride, size, width, v_dim)
            at += size
        if shaping.active:
            factor = shape_scores(s, stride, width, n, scale, tokens, shaping, slopes, True)
        if masked:
            apply_masks(s, stride, width, first, slot, indices, mask_ids, spans, masks, words, block_q, n_slots,
                        -np.inf)
        if shaping.drops:
            drop(dp, stride, width, n, tokens, shaping, False)
        probabilities(s, dp, stride, width, n, factor, log_sums, means, factor)
        if masked:
            apply_masks(dp, stride, width, first, slot, indices, mask_ids, spans, masks, words, block_q, n_slots, 0.0)
        if shaping.drops:
            drop(s, stride, width, n, tokens, shaping, False)
        if shaping.active:
            gradient_of_scores(dp, stride, width, n, scale, tokens, shaping, slopes, dvalues)
        at = 0
        for r in range(1 if staged else n_runs):
            size = n if staged else runs[3 * r + 1]
            q_here, q_step, do_here, do_step = q_rows, qk_pad, do_rows, v_pad
            if not staged:
                q_here, q_step = shift(as_computed(q), runs[3 * r] * q_stride), q_stride
                do_here, do_step = shift(as_computed(dout), runs[3 * r] * do_stride), do_stride
            matmul(dv_t, stride, do_here, 1, do_step, shift(s, at * stride), stride, v_dim, width, size, True)
            matmul(dk_t, stride, q_here, 1, q_step, shift(dp, at * stride), stride, qk_dim, width, size, True)
            at += size
        at = 0
        for r in range(n_runs):
            block = runs[3 * r + 2]
            row = dq_rows[block] * block_q + runs[3 * r] - indices[block] * block_q
            matmul(shift(dq, row * qk_pad), qk_pad, shift(dp, at * stride), stride, 1, k_rows, qk_pad, runs[3 * r + 1],
                   qk_pad, min(block_k, width), True)
            at += runs[3 * r + 1]


@kernel(dout="stored", q="stored", k="stored", v="stored", indptr="int64", indices="int32", mask_ids="int32",
        masks="bits", spans="int32", k_order="int32", q_order="int32", n_k_slots="int", n_q_slots="int", heads="int32",
        places="places", bundles="int64", columns="table", chunks="int64", dq_rows="int32", touched="int64",
        block_q="int", block_k="int", width="int", gathers="bool", folds="bool", adds="bool", sign="float",
        scale="float", options="options", slice_size="int", margin="int", ranks="int", lse="stats", delta="stats",
        dq="scratch", dk="computed", dv="computed", dvalues="scratch", counters="counters", scratch="scratch",
        tokens="tokens", codes="counters")
def tile_backward(dout, q, k, v, indptr, indices, mask_ids, masks, spans, k_order, q_order, n_k_slots, n_q_slots, heads,
                  places, bundles, columns, chunks, dq_rows, touched, block_q, block_k, width, gathers, folds, adds,
                  sign, scale, options, slice_size, margin, ranks, lse, delta, dq, dk, dv, dvalues, counters, scratch,
                  tokens, codes):
    """Do work items until the shared counter runs out; the structure's rows are keys. An item is one chunk of each of
    `ranks` pairs (batch item, bundle of heads).

    dk, dv: the gradients, or with `folds` a buffer (batch, bundle, slot of a column, head_dim) to be added up by token.
    dvalues: see `gradients_at`.
    """
    n_heads, n_kv_heads, qk_dim, v_dim = heads.size, k.shape[1], q.shape[3], v.shape[3]
    q_list, k_list, stored, ids, live, bits = (
        data(q_order), data(k_order), data(indices), data(mask_ids), data(spans), data(masks))
    q_listed, k_listed, masked = q_order.size > 0, k_order.size > 0, mask_ids.size > 0
    n_chunks, n_bundles, words = chunks.size - 1, bundles.size - 1, (block_k + WORD - 1) // WORD

    base = data(scratch)
    lanes = lanes_of(base)
    qk_pad, v_pad = padded(qk_dim, lanes), padded(v_dim, lanes)
    stride = tile_stride(width, lanes)
    k_t, v_t = base, shift(base, qk_pad * stride)
    dk_t, dv_t = shift(v_t, v_pad * stride), shift(v_t, (v_pad + qk_pad) * stride)
    k_rows = shift(dv_t, v_pad * stride)
    spare = shift(k_rows, qk_pad * stride)
    rest = shift(spare, 2 * lanes * lanes)
    k_tokens, read, lane_words = data(tokens), shift(data(tokens), width), shift(data(tokens), 2 * width)
    valid = shift(lane_words, width)
    alive, q_tokens = shift(valid, words), shift(valid, 2 * words)
    n_items = q.shape[0] * n_bundles // ranks * n_chunks
    while True:
        item = fetch_add(data(counters), 1)
        if item >= n_items:
            return
        chunk = item % n_chunks
        for rank in range(item // n_chunks * ranks, (item // n_chunks + 1) * ranks):
            b, bundle = rank // n_bundles, rank % n_bundles
            kv_head = heads[bundles[bundle]] * n_kv_heads // q.shape[1]
            to = bundle if folds else kv_head
            for h in range(bundles[bundle], bundles[bundle + 1]):
                begin = (b * n_heads + h) * touched[n_chunks] + touched[chunk]
                fill(shift(data(dq), begin * block_q * qk_pad),
                     (touched[chunk + 1] - touched[chunk]) * block_q * qk_pad, 0)
            for number in range(chunks[chunk], chunks[chunk + 1]):
                col, segment, segments = columns[number, 0], columns[number, 1], columns[number, 2]
                tokens_of(k_tokens, shift(k_list, places[b, bundles[bundle], 1]), k_listed, col * block_k, width,
                          min(n_k_slots, (col + 1) * block_k))
                careful = valid_bits(valid, k_tokens, words, min(block_k, width))
                for w in range(words):
                    alive[w] = 0
                for h in range(bundles[bundle], bundles[bundle + 1]):
                    line = places[b, h, 0] + col
                    mark_alive(alive, indptr[line], indptr[line + 1], stored, ids, live, bits, masked, words, block_q,
                               n_q_slots, shift(q_list, places[b, h, 2]), q_listed)
                for i in range(width):
                    dead = i >= block_k or (alive[i // WORD] >> (i % WORD)) & 1 == 0
                    read[i] = -1 if dead else k_tokens[i]
                load_rows(rest, v_pad, head_of(v, b, kv_head), stride_of(v), read, width, v_dim, 1.0)
                transpose_tile(v_t, stride, rest, v_pad, width, v_pad)
                load_rows(k_rows, qk_pad, head_of(k, b, kv_head), stride_of(k), read, width, qk_dim, sign)
                transpose_tile(k_t, stride, k_rows, qk_pad, width, qk_pad)
                fill(dk_t, (qk_pad + v_pad) * stride, 0)
                for h in range(bundles[bundle], bundles[bundle + 1]):
                    head = heads[h]
                    begin = indptr[places[b, h, 0] + col]
                    length = indptr[places[b, h, 0] + col + 1] - begin
                    shaping = shaping_of(options, b, head, read, data(codes), lane_words, spare)
                    open_lanes(shaping, width, False)
                    dq_here = shift(data(dq), (b * n_heads + h) * touched[n_chunks] * block_q * qk_pad)
                    dvalues_here = gradients_at(dvalues, options, slice_size, margin, b, head,
                                                (b * n_heads + h) * n_chunks + chunk)
                    add_blocks(head_of(q, b, head), stride_of(q), qk_dim, head_of(dout, b, head), stride_of(dout),
                               v_dim, head_of(lse, b, head), stride_of(lse), head_of(delta, b, head), stride_of(delta),
                               begin + length * segment // segments, begin + length * (segment + 1) // segments, stored,
                               ids, live, bits, masked, valid, careful, shift(q_list, places[b, h, 2]), q_listed,
                               gathers, n_q_slots, block_q, block_k, width, stride, scale, shaping, k_t, v_t, k_rows,
                               dk_t, dv_t, dq_here, data(dq_rows), dvalues_here, rest, q_tokens)
                if folds:
                    for i in range(min(block_k, width)):
                        k_tokens[i] = number * block_k + i
                if sign != 1:
                    multiply(dk_t, qk_pad * stride, sign)  # so far it is the gradient of sign * k
                transpose_tile(rest, qk_pad, dk_t, stride, qk_pad, width)
                write_rows(head_of(dk, b, to), stride_of(dk), k_tokens, rest, qk_pad, min(block_k, width), qk_dim, adds)
                transpose_tile(rest, v_pad, dv_t, stride, v_pad, width)
                write_rows(head_of(dv, b, to), stride_of(dv), k_tokens, rest, v_pad, min(block_k, width), v_dim, adds)
