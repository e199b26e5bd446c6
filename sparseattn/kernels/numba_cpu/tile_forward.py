"""Block-sparse attention forward: threads draw work items, each some rows of blocks of a head or a segment of a row.

Online softmax over the blocks of a row, all in scratch memory that stays in L2. A very long row is cut into segments;
whoever finishes its last one merges them all, in their order.
"""

import numpy as np

from sparseattn.kernels.numba_cpu.compile import kernel, step
from sparseattn.kernels.numba_cpu.shaping import drop, open_lanes, shape_scores, shaping_of
from sparseattn.kernels.numba_cpu.simd import as_computed, data, fetch_add, get, lanes_of, shift
from sparseattn.kernels.numba_cpu.steps import (GROUP, WIDENED, WORD, apply_masks, collect, drop_dead, fill, head_of,
                                                load_rows, mask_nobody, matmul, merge_state, online_softmax, padded,
                                                rescale, run_tokens, scores, stride_of, tile_stride, tokens_of,
                                                transpose_tile, valid_bits, write_rows)


@step
def attend_blocks(k, k_stride, qk_dim, v, v_stride, v_dim, slot, stop, indices, mask_ids, spans, masks, masked, valid,
                  careful, k_order, listed, gathers, n_slots, block_q, block_k, width, stride, scale, shaping, q_t, m,
                  l, acc, scratch, tokens):
    """Bring m, l (width,) and acc (v_dim, width) of a query tile q_t (qk_dim, width) up to date with stored blocks."""
    lanes = lanes_of(scratch)
    qk_pad, v_pad = padded(qk_dim, lanes), padded(v_dim, lanes)
    group, words = max(GROUP, block_k), (block_q + WORD - 1) // WORD
    at_once = max(WIDENED, block_k) if gathers and not listed else group
    s, rows = scratch, shift(scratch, group * stride)
    alpha = shift(rows, group * max(qk_pad, v_pad))
    runs = shift(tokens, group)
    factor = scale
    while slot < stop:
        first = slot
        slot, n_runs, n, holes = collect(runs, first, stop, indices, mask_ids, spans, masked, careful, block_k, n_slots,
                                         at_once)
        if gathers or holes or shaping.active or shaping.drops:
            run_tokens(tokens, runs, n_runs, k_order, listed, n_slots)
        if gathers or holes:
            if holes:
                drop_dead(tokens, first, slot, indices, mask_ids, spans, masks, words, block_k, n_slots, valid)
            load_rows(rows, qk_pad, k, k_stride, tokens, n, qk_dim, 1.0)
            scores(s, stride, rows, qk_pad, q_t, stride, n, width, qk_dim)
        else:
            n = 0
            for r in range(n_runs):
                scores(shift(s, n * stride), stride, shift(as_computed(k), runs[3 * r] * k_stride), k_stride, q_t,
                       stride, runs[3 * r + 1], width, qk_dim)
                n += runs[3 * r + 1]
        if shaping.active:
            factor = shape_scores(s, stride, width, n, scale, tokens, shaping, s, False)
        if masked:
            apply_masks(s, stride, width, first, slot, indices, mask_ids, spans, masks, words, block_k, n_slots,
                        -np.inf)
        if listed:
            mask_nobody(s, stride, tokens, n)
        if online_softmax(s, stride, width, n, factor, m, l, alpha):
            rescale(acc, stride, width, v_dim, alpha)
        if shaping.drops:
            drop(s, stride, width, n, tokens, shaping, True)
        if gathers or holes:
            load_rows(rows, v_pad, v, v_stride, tokens, n, v_dim, 1.0)
            matmul(acc, stride, rows, 1, v_pad, s, stride, v_dim, width, n, True)
        else:
            n = 0
            for r in range(n_runs):
                matmul(acc, stride, shift(as_computed(v), runs[3 * r] * v_stride), 1, v_stride, shift(s, n * stride),
                       stride, v_dim, width, runs[3 * r + 1], True)
                n += runs[3 * r + 1]


@step
def take_result(m, l, acc, out, out_stride, lse, lse_stride, tokens, stride, width, v_dim, v_pad, rows):
    """The softmax state that earlier parts left: m = lse, l = 1, acc = out; l = 0 where they met no key."""
    load_rows(rows, v_pad, out, out_stride, tokens, width, v_dim, 1.0)
    transpose_tile(acc, stride, rows, v_pad, width, v_pad)
    for i in range(width):
        m[i], l[i] = -np.inf, 0
        if tokens[i] >= 0 and get(lse, tokens[i] * lse_stride) != -np.inf:
            m[i], l[i] = get(lse, tokens[i] * lse_stride), 1


@step
def write_result(m, l, acc, out, out_stride, carry, carry_stride, keeps, lse, lse_stride, tokens, stride, width, v_dim,
                 v_pad, rows, inverse):
    """out = acc / l, also unrounded in `carry` if a later part goes on from it, and lse."""
    for i in range(width):
        inverse[i] = 1 / l[i] if l[i] != 0 else 0  # only a row without keys has l = 0; NaN must pass
        if tokens[i] >= 0:
            lse[tokens[i] * lse_stride] = m[i] + np.log(l[i]) if l[i] != 0 else -np.inf
    rescale(acc, stride, width, v_dim, inverse)
    transpose_tile(rows, v_pad, acc, stride, v_pad, width)
    write_rows(out, out_stride, tokens, rows, v_pad, width, v_dim, False)
    if keeps:
        write_rows(carry, carry_stride, tokens, rows, v_pad, width, v_dim, False)


@kernel(q="stored", k="stored", v="stored", indptr="int64", indices="int32", mask_ids="int32", masks="bits",
        spans="int32", q_order="int32", k_order="int32", n_q_slots="int", n_k_slots="int", heads="int32",
        places="places", work="table", block_q="int", block_k="int", width="int", gathers="bool", resumes="bool",
        keeps="bool", sign="float", scale="float", options="options", out="stored out", carry="computed", lse="stats",
        segments="scratch", counters="counters", scratch="scratch", tokens="tokens", codes="counters")
def tile_forward(q, k, v, indptr, indices, mask_ids, masks, spans, q_order, k_order, n_q_slots, n_k_slots, heads,
                 places, work, block_q, block_k, width, gathers, resumes, keeps, sign, scale, options, out, carry, lse,
                 segments, counters, scratch, tokens, codes):
    """Do work items until the shared counter runs out. Any number of threads may be inside; each brings its scratch.

    work: (n_items, 5) first row, row after the last, segment, segments of the row, number of its first one; places:
    (batch, n_heads of the part, 3) where indptr and both orders of a head begin; sign, scale > 0: the factors of a
    score; carry: out in full precision.
    """
    n_heads, n_kv_heads, qk_dim, v_dim = heads.size, k.shape[1], q.shape[3], v.shape[3]
    q_list, k_list, stored, ids, live, bits = (
        data(q_order), data(k_order), data(indices), data(mask_ids), data(spans), data(masks))
    q_listed, k_listed, masked = q_order.size > 0, k_order.size > 0, mask_ids.size > 0
    n_items = work.shape[0]

    base = data(scratch)
    lanes = lanes_of(base)
    qk_pad, v_pad = padded(qk_dim, lanes), padded(v_dim, lanes)
    stride = tile_stride(width, lanes)
    size = (v_dim + 2) * stride  # of a softmax state: m, l, acc
    n_segments = segments.size // max(size * q.shape[0] * n_heads, 1)
    q_t, m = base, shift(base, qk_pad * stride)
    l, acc = shift(m, stride), shift(m, 2 * stride)
    other = shift(acc, v_pad * stride)  # a second state, then what attend_blocks and the writing of rows need
    spare = shift(other, (v_pad + 2) * stride)
    rest = shift(spare, 2 * lanes * lanes)
    q_tokens, valid = data(tokens), shift(data(tokens), width)
    words = shift(valid, (block_q + WORD - 1) // WORD)
    k_tokens = shift(words, width)
    while True:
        item = fetch_add(data(counters), 1)
        if item >= q.shape[0] * n_heads * n_items:
            return
        place, item = item // n_items, item % n_items
        b, h = place // n_heads, place % n_heads
        head = heads[h]
        kv_head = head * n_kv_heads // q.shape[1]
        out_here, carry_here, lse_here = head_of(out, b, head), head_of(carry, b, head), head_of(lse, b, head)
        segment, row_segments = work[item, 2], work[item, 3]
        shaping = shaping_of(options, b, head, q_tokens, data(codes), words, spare)
        for row in range(work[item, 0], work[item, 1]):
            tokens_of(q_tokens, shift(q_list, places[b, h, 1]), q_listed, row * block_q, width,
                      min(n_q_slots, (row + 1) * block_q))
            careful = valid_bits(valid, q_tokens, (block_q + WORD - 1) // WORD, min(block_q, width))
            open_lanes(shaping, width, True)
            load_rows(rest, qk_pad, head_of(q, b, head), stride_of(q), q_tokens, width, qk_dim, sign)
            transpose_tile(q_t, stride, rest, qk_pad, width, qk_pad)
            fill(m, stride, -np.inf)
            fill(l, (v_pad + 1) * stride, 0)
            begin = indptr[places[b, h, 0] + row]
            length = indptr[places[b, h, 0] + row + 1] - begin
            attend_blocks(head_of(k, b, kv_head), stride_of(k), qk_dim, head_of(v, b, kv_head), stride_of(v), v_dim,
                          begin + length * segment // row_segments, begin + length * (segment + 1) // row_segments,
                          stored, ids, live, bits, masked, valid, careful, shift(k_list, places[b, h, 2]), k_listed,
                          gathers, n_k_slots, block_q, block_k, width, stride, scale, shaping, q_t, m, l, acc, rest,
                          k_tokens)
            if row_segments > 1:
                first = place * n_segments + work[item, 4]
                mine = shift(data(segments), (first + segment) * size)
                for i in range(size):
                    mine[i] = m[i]
                if fetch_add(shift(data(counters), 1 + first), 1) < row_segments - 1:
                    continue
                fill(m, stride, -np.inf)
                fill(l, (v_pad + 1) * stride, 0)
                for i in range(row_segments):
                    theirs = shift(data(segments), (first + i) * size)
                    merge_state(m, l, acc, theirs, shift(theirs, stride), shift(theirs, 2 * stride), stride, width,
                                v_dim)
            if resumes:
                theirs = shift(other, 2 * stride)
                take_result(other, shift(other, stride), theirs, carry_here, stride_of(carry), lse_here, stride_of(lse),
                            q_tokens, stride, width, v_dim, v_pad, rest)
                merge_state(m, l, acc, other, shift(other, stride), theirs, stride, width, v_dim)
            write_result(m, l, acc, out_here, stride_of(out), carry_here, stride_of(carry), keeps, lse_here,
                         stride_of(lse), q_tokens, stride, width, v_dim, v_pad, rest, other)
