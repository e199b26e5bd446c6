"""Backward of scattered pairs (blocks of 1 x 1) in one walk by key, with the owners and buffers of tile_backward.

Lanes run along head_dim. For a key: scores and dp of all its queries by `dots`, dk and dv as weighted sums of q and
dout rows, and for each query ds k added to its row of the chunk's dq.
"""

from sparseattn.kernels.numba_cpu.compile import kernel, step
from sparseattn.kernels.numba_cpu.lanewise import exp
from sparseattn.kernels.numba_cpu.row_forward import STEP, scores_of_rows, weighted_rows
from sparseattn.kernels.numba_cpu.shaping import (drop, gradient_of_scores, gradients_at, open_lanes, shape_scores,
                                                  shaping_of)
from sparseattn.kernels.numba_cpu.simd import (data, fetch_add, fma, lanes_of, load, minimum, mul, shift, splat, store,
                                               sub)
from sparseattn.kernels.numba_cpu.steps import fill, head_of, load_rows, multiply, padded, stride_of, write_rows
from sparseattn.kernels.numba_cpu.tile_backward import statistics


@step
def next_queries(tokens, rows, slot, stop, indices, dq_rows, n_slots, order, listed):
    """Up to STEP queries of a column and their rows of the dq buffer; returns their number and where to go on."""
    n = 0
    while n < STEP and slot < stop:
        tokens[n] = order[indices[slot]] if listed else indices[slot]
        rows[n] = dq_rows[slot]
        if tokens[n] >= 0:
            n += 1
        slot += 1
    return n, slot


@step
def pair_gradients(s, dp, lse, delta, n, factor, scale):
    """s becomes p = exp(s * factor - lse), dp becomes ds, for n pairs in whole registers; statistics are one a pair."""
    lanes = lanes_of(s)
    before, times, zero = splat(s, factor), splat(s, scale), splat(s, 0)
    for i in range(0, n, lanes):
        p = exp(minimum(sub(mul(load(s, i), before), load(lse, i)), zero))
        store(s, i, p)
        store(dp, i, mul(mul(p, sub(load(dp, i), load(delta, i))), times))


@step
def spread_rows(dq, pad, rows, weights, n, row):
    """dq[rows[i], :] += weights[i] * row for i < n."""
    lanes = lanes_of(dq)
    for i in range(n):
        to, weight = shift(dq, rows[i] * pad), splat(dq, weights[i])
        for d in range(0, pad, lanes):
            store(to, d, fma(weight, load(row, d), load(to, d)))


@kernel(dout="stored", q="stored", k="stored", v="stored", indptr="int64", indices="int32", k_order="int32",
        q_order="int32", n_q_slots="int", heads="int32", places="places", bundles="int64", columns="table",
        chunks="int64", dq_rows="int32", touched="int64", folds="bool", adds="bool", sign="float", scale="float",
        options="options", slice_size="int", margin="int", ranks="int", lse="stats", delta="stats", dq="scratch",
        dk="computed", dv="computed", dvalues="scratch", counters="counters", scratch="scratch", tokens="tokens",
        codes="counters")
def row_backward(dout, q, k, v, indptr, indices, k_order, q_order, n_q_slots, heads, places, bundles, columns, chunks,
                 dq_rows, touched, folds, adds, sign, scale, options, slice_size, margin, ranks, lse, delta, dq, dk, dv,
                 dvalues, counters, scratch, tokens, codes):
    """Do work items until the shared counter runs out; the arguments are those of tile_backward.

    Rows of q and dout are read in whole registers, so their head_dim is padded by the caller.
    """
    n_heads, n_kv_heads, qk_dim, v_dim = heads.size, k.shape[1], dk.shape[3], dv.shape[3]
    q_list, k_list, stored = data(q_order), data(k_order), data(indices)
    q_listed, k_listed = q_order.size > 0, k_order.size > 0
    n_chunks, n_bundles = chunks.size - 1, bundles.size - 1
    base = data(scratch)
    lanes = lanes_of(base)
    qk_pad, v_pad = padded(qk_dim, lanes), padded(v_dim, lanes)
    k_row, v_row = base, shift(base, qk_pad)
    dk_row, dv_row = shift(v_row, v_pad), shift(v_row, v_pad + qk_pad)
    s = shift(dv_row, v_pad)
    dp, log_sums, means, slopes = shift(s, STEP), shift(s, 2 * STEP), shift(s, 3 * STEP), shift(s, 4 * STEP)
    queries, rows, words = data(tokens), shift(data(tokens), STEP), shift(data(tokens), 2 * STEP)
    key, owner = shift(words, STEP), shift(words, STEP + 1)
    shaped = options.softcap != 0 or options.values.size > 0 or options.limit >= 0
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
                fill(shift(data(dq), begin * qk_pad), (touched[chunk + 1] - touched[chunk]) * qk_pad, 0)
            for number in range(chunks[chunk], chunks[chunk + 1]):
                col, segment, segments = columns[number, 0], columns[number, 1], columns[number, 2]
                key[0] = k_list[places[b, bundles[bundle], 1] + col] if k_listed else col
                fill(dk_row, qk_pad + v_pad, 0)
                loaded = False  # a key that nobody attends is never read
                for h in range(bundles[bundle], bundles[bundle + 1]):
                    head = heads[h]
                    q_here, do_here = head_of(q, b, head), head_of(dout, b, head)
                    begin = indptr[places[b, h, 0] + col]
                    length = indptr[places[b, h, 0] + col + 1] - begin
                    slot, stop = begin + length * segment // segments, begin + length * (segment + 1) // segments
                    while slot < stop and key[0] >= 0:
                        n, slot = next_queries(queries, rows, slot, stop, stored, data(dq_rows), n_q_slots,
                                               shift(q_list, places[b, h, 2]), q_listed)
                        if n == 0:
                            continue
                        if not loaded:
                            load_rows(k_row, qk_pad, head_of(k, b, kv_head), stride_of(k), key, 1, qk_dim, sign)
                            load_rows(v_row, v_pad, head_of(v, b, kv_head), stride_of(v), key, 1, v_dim, 1.0)
                            loaded = True
                        pad = padded(n, lanes)
                        for i in range(n, pad):
                            queries[i] = queries[0]
                        statistics(log_sums, means, queries, pad, head_of(lse, b, head), stride_of(lse),
                                   head_of(delta, b, head), stride_of(delta))
                        scores_of_rows(s, k_row, qk_pad, q_here, stride_of(q), queries, pad, qk_pad, 1)
                        scores_of_rows(dp, v_row, v_pad, do_here, stride_of(dout), queries, pad, v_pad, 1)
                        if shaped:
                            shaping = shaping_of(options, b, head, queries, data(codes), words, slopes)
                            open_lanes(shaping, pad, True)
                            factor = shape_scores(s, STEP, pad, 1, scale, key, shaping, slopes, True)
                            if shaping.drops:
                                drop(dp, STEP, pad, 1, key, shaping, True)
                            pair_gradients(s, dp, log_sums, means, pad, factor, 1.0)
                            for i in range(n, pad):
                                dp[i] = 0
                            if shaping.drops:
                                drop(s, STEP, pad, 1, key, shaping, True)
                            gradient_of_scores(dp, STEP, pad, 1, scale, key, shaping, slopes,
                                               gradients_at(dvalues, options, slice_size, margin, b, head,
                                                            (b * n_heads + h) * n_chunks + chunk))
                        else:
                            pair_gradients(s, dp, log_sums, means, pad, scale, scale)
                        weighted_rows(dk_row, qk_pad, dp, STEP, q_here, stride_of(q), queries, n, qk_pad, 1)
                        weighted_rows(dv_row, v_pad, s, STEP, do_here, stride_of(dout), queries, n, v_pad, 1)
                        spread_rows(shift(data(dq), (b * n_heads + h) * touched[n_chunks] * qk_pad), qk_pad, rows, dp,
                                    n, k_row)
                if sign != 1:
                    multiply(dk_row, qk_pad, sign)  # so far it is the gradient of sign * k
                owner[0] = number if folds else key[0]
                write_rows(head_of(dk, b, to), stride_of(dk), owner, dk_row, qk_pad, 1, qk_dim, adds)
                write_rows(head_of(dv, b, to), stride_of(dv), owner, dv_row, v_pad, 1, v_dim, adds)
