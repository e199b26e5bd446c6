"""Forward where a query shares its keys with no neighbour: block_q = 1 (decoding, chosen keys or key blocks per query).

Lanes run along head_dim. The query heads of a bundle (one k/v head, one structure) share each key that is read. Items
are of similar size; a very long row is cut into segments, merged in their order by whoever finishes the last one.
"""

import numpy as np

from sparseattn.kernels.numba_cpu.compile import kernel, step
from sparseattn.kernels.numba_cpu.lanewise import exp
from sparseattn.kernels.numba_cpu.products import dots, sum_rows
from sparseattn.kernels.numba_cpu.shaping import drop, open_lanes, shape_scores, shaping_of
from sparseattn.kernels.numba_cpu.simd import (MANY_REGISTERS, add, data, fetch_add, get, lanes_of, load, maximum, mul,
                                               prefetch, put, shift, splat, store, sub, sum_of_lanes, top_of_lanes)
from sparseattn.kernels.numba_cpu.steps import fill, head_of, load_rows, padded, stride_of

STEP = 128  # keys a softmax step; their k and v rows (2 x 32 KiB) stay near for the other heads of the bundle
LINE = 64  # bytes
VECS = 4 if MANY_REGISTERS else 2  # registers of v columns that four queries sum at once


@step
def next_tokens(tokens, slot, stop, offset, indices, mask_ids, masks, masked, block, n_slots, order, listed):
    """Up to STEP tokens of a row's blocks from `offset` in block `slot` on; returns their number and where to go on."""
    n = 0
    while n < STEP and slot < stop:
        first = indices[slot] * block
        high = min(block, n_slots - first)
        full = not masked or mask_ids[slot] == 0
        while offset < high and n < STEP:
            if full or masks[mask_ids[slot] * block + offset] & 1:
                tokens[n] = order[first + offset] if listed else first + offset
                if tokens[n] >= 0:
                    n += 1
            offset += 1
        if offset >= high:
            slot, offset = slot + 1, 0
    return n, slot, offset


@step
def weighted_rows(acc, acc_stride, p, p_stride, y, y_stride, tokens, n, pad, n_rows):
    """acc[h, :pad] += sum over i < n of p[h, i] * y[tokens[i], :pad] for rows h, four at a time."""
    lanes = lanes_of(acc)
    h = 0
    while h < n_rows:
        four = h + 4 <= n_rows
        d = 0
        while d < pad:
            to, weights, here = shift(acc, h * acc_stride + d), shift(p, h * p_stride), shift(y, d)
            if four and d + VECS * lanes <= pad:
                sum_rows(to, acc_stride, weights, p_stride, here, y_stride, tokens, n, VECS, 4)
                d += VECS * lanes
            elif four:
                sum_rows(to, acc_stride, weights, p_stride, here, y_stride, tokens, n, 1, 4)
                d += lanes
            elif d + 4 * lanes <= pad:
                sum_rows(to, acc_stride, weights, p_stride, here, y_stride, tokens, n, 4, 1)
                d += 4 * lanes
            else:
                sum_rows(to, acc_stride, weights, p_stride, here, y_stride, tokens, n, 1, 1)
                d += lanes
        h += 4 if four else 1


@step
def scores_of_rows(s, x, x_stride, y, y_stride, tokens, n, pad, n_rows):
    """s[h, i] = x[h] . y[tokens[i]] for rows h and i < n (whole registers of i), rows of STEP numbers."""
    lanes = lanes_of(s)
    for i in range(0, n, lanes):
        h = 0
        while h + 4 <= n_rows:
            dots(shift(s, h * STEP + i), STEP, shift(x, h * x_stride), x_stride, y, y_stride, shift(tokens, i),
                 pad // lanes, 4)
            h += 4
        while h < n_rows:
            dots(shift(s, h * STEP + i), STEP, shift(x, h * x_stride), x_stride, y, y_stride, shift(tokens, i),
                 pad // lanes, 1)
            h += 1


@step
def softmax_row(s, n, pad, scale, m, l, g, acc, v_pad):
    """s[:n] becomes p = exp(s * scale - m[g]); m[g], l[g] and the accumulator (v_pad,) are brought up to date."""
    lanes = lanes_of(s)
    for i in range(n, pad):
        s[i] = -np.inf
    times, tops = splat(s, scale), splat(s, -np.inf)
    for i in range(0, pad, lanes):
        tops = maximum(load(s, i), tops)
    top = max(m[g], top_of_lanes(mul(tops, times)))
    if top == -np.inf:
        fill(s, pad, 0)
        return
    base, sums = splat(s, top), splat(s, 0)
    for i in range(0, pad, lanes):
        p = exp(sub(mul(load(s, i), times), base))
        store(s, i, p)
        sums = add(sums, p)
    shrink = np.exp(m[g] - top)
    l[g] = l[g] * shrink + sum_of_lanes(sums)
    m[g] = top
    if shrink != 1:
        times = splat(acc, shrink)
        for d in range(0, v_pad, lanes):
            store(acc, d, mul(load(acc, d), times))


@step
def merge_row(m, l, g, acc, other_m, other_l, other_acc, dim):
    """Add another softmax state of one query; `other_acc` may be of storage dtype and any length `dim`."""
    if other_l == 0:
        return
    top = max(m[g], other_m)
    a, b = np.exp(m[g] - top), np.exp(other_m - top)
    l[g] = l[g] * a + other_l * b
    m[g] = top
    for d in range(dim):
        acc[d] = acc[d] * a + get(other_acc, d) * b


@step
def write_row(acc, m, l, g, out, carry, keeps, lse, b, head, query, v_dim):
    """out = acc / l, also unrounded in `carry` if a later part goes on from it, and lse."""
    inverse = 1 / l[g] if l[g] != 0 else 0.0  # only a row without keys has l = 0; NaN must pass
    lse[b, head, query] = m[g] + np.log(l[g]) if l[g] != 0 else -np.inf
    to = shift(head_of(out, b, head), query * stride_of(out))
    kept = shift(head_of(carry, b, head), query * stride_of(carry))
    for d in range(v_dim):
        put(to, d, acc[d] * inverse)
        if keeps:
            put(kept, d, acc[d] * inverse)


@kernel(q="stored", k="stored", v="stored", indptr="int64", indices="int32", mask_ids="int32", masks="bits",
        q_order="int32", k_order="int32", n_k_slots="int", heads="int32", places="places", bundles="int64",
        work="table", block_k="int", resumes="bool", keeps="bool", sign="float", scale="float", options="options",
        out="stored out", carry="computed", lse="stats", segments="scratch", counters="counters", scratch="scratch",
        tokens="tokens", codes="counters")
def row_forward(q, k, v, indptr, indices, mask_ids, masks, q_order, k_order, n_k_slots, heads, places, bundles, work,
                block_k, resumes, keeps, sign, scale, options, out, carry, lse, segments, counters, scratch, tokens,
                codes):
    """Do work items until the shared counter runs out; the arguments are those of tile_forward.

    Rows of k and v are read in whole registers, so their head_dim is padded by the caller.
    """
    n_heads, n_kv_heads, qk_dim, v_dim = heads.size, k.shape[1], q.shape[3], out.shape[3]
    k_stride, v_stride = stride_of(k), stride_of(v)
    q_list, k_list, stored, ids, bits = data(q_order), data(k_order), data(indices), data(mask_ids), data(masks)
    q_listed, k_listed, masked = q_order.size > 0, k_order.size > 0, mask_ids.size > 0
    n_items, n_bundles = work.shape[0], bundles.size - 1
    base = data(scratch)
    lanes = lanes_of(base)
    qk_pad, v_pad = padded(qk_dim, lanes), padded(v_dim, lanes)
    n_segments = segments.size // max((v_pad + 2) * q.shape[0] * n_heads, 1)
    ahead = STEP if block_k > 1 else 0  # the hardware does not foresee the rows of the next step, of k or of v
    line = LINE // k.itemsize
    keys, words, here = data(tokens), shift(data(tokens), STEP), shift(data(tokens), 2 * STEP)
    shaped = options.softcap != 0 or options.values.size > 0 or options.limit >= 0
    while True:
        item = fetch_add(data(counters), 1)
        if item >= q.shape[0] * n_bundles * n_items:
            return
        rank, item = item // n_items, item % n_items
        b, bundle = rank // n_bundles, rank % n_bundles
        first = bundles[bundle]
        size = bundles[bundle + 1] - first
        place = b * n_heads + first
        kv_head = heads[first] * n_kv_heads // q.shape[1]
        k_here = head_of(k, b, kv_head)
        v_here = head_of(v, b, kv_head)
        order = shift(k_list, places[b, first, 2])
        m, l = base, shift(base, size)
        acc = shift(base, 2 * size)
        q_rows = shift(acc, size * v_pad)
        s = shift(q_rows, size * qk_pad)
        segment, row_segments = work[item, 2], work[item, 3]
        for row in range(work[item, 0], work[item, 1]):
            query = q_list[places[b, first, 1] + row] if q_listed else row
            if query < 0:
                continue
            here[0] = query
            for g in range(size):
                load_rows(shift(q_rows, g * qk_pad), qk_pad, head_of(q, b, heads[first + g]), stride_of(q), here, 1,
                          qk_dim, sign)
                m[g], l[g] = -np.inf, 0
            fill(acc, size * v_pad, 0)
            begin = indptr[places[b, first, 0] + row]
            length = indptr[places[b, first, 0] + row + 1] - begin
            slot, stop = begin + length * segment // row_segments, begin + length * (segment + 1) // row_segments
            offset = 0
            while slot < stop:
                n, slot, offset = next_tokens(keys, slot, stop, offset, stored, ids, bits, masked, block_k, n_k_slots,
                                              order, k_listed)
                if n == 0:
                    continue
                pad = padded(n, lanes)
                for i in range(n, pad):
                    keys[i] = keys[0]
                for i in range(0, pad, lanes):
                    for j in range(i, i + lanes):
                        if block_k > 1:
                            for d in range(0, qk_pad, line):
                                prefetch(k_here, (keys[j] + ahead) * k_stride + d)
                        for d in range(0, v_pad, line):
                            prefetch(v_here, (keys[j] + ahead) * v_stride + d)
                    scores_of_rows(shift(s, i), q_rows, qk_pad, k_here, k_stride, shift(keys, i), lanes, qk_pad, size)
                for g in range(size):
                    mine = shift(s, g * STEP)
                    if not shaped:
                        softmax_row(mine, n, pad, scale, m, l, g, shift(acc, g * v_pad), v_pad)
                        continue
                    shaping = shaping_of(options, b, heads[first + g], keys, data(codes), words, mine)
                    open_lanes(shaping, pad, False)
                    factor = shape_scores(mine, STEP, pad, 1, scale, here, shaping, mine, False)
                    softmax_row(mine, n, pad, factor, m, l, g, shift(acc, g * v_pad), v_pad)
                    if shaping.drops:
                        drop(mine, STEP, pad, 1, here, shaping, False)
                weighted_rows(acc, v_pad, s, STEP, v_here, v_stride, keys, n, v_pad, size)
            if row_segments > 1:
                # the states of a bundle's heads lie behind each other: m, l, acc
                part = (v_pad + 2) * size
                start = (place * n_segments + work[item, 4] * size) * (v_pad + 2)
                mine = shift(data(segments), start + segment * part)
                for i in range(part):
                    mine[i] = m[i]
                if fetch_add(shift(data(counters), 1 + place * n_segments + work[item, 4]), 1) < row_segments - 1:
                    continue
                for g in range(size):
                    m[g], l[g] = -np.inf, 0
                fill(acc, size * v_pad, 0)
                for i in range(row_segments):
                    theirs = shift(data(segments), start + i * part)
                    for g in range(size):
                        merge_row(m, l, g, shift(acc, g * v_pad), theirs[g], theirs[size + g],
                                  shift(theirs, 2 * size + g * v_pad), v_dim)
            for g in range(size):
                head = heads[first + g]
                result = shift(acc, g * v_pad)
                if resumes and lse[b, head, query] != -np.inf:
                    merge_row(m, l, g, result, lse[b, head, query], 1.0,
                              shift(head_of(carry, b, head), query * stride_of(carry)), v_dim)
                write_row(result, m, l, g, out, carry, keeps, lse, b, head, query, v_dim)
