"""Small kernels around the backward: delta, adding up what several owners hold of a gradient, rounding to 16 bits."""

from sparseattn.kernels.numba_cpu.compile import kernel
from sparseattn.kernels.numba_cpu.simd import (add, data, fetch_add, fma, get, lanes_of, load, put, shift, splat,
                                               store, where_equal)
from sparseattn.kernels.numba_cpu.steps import CHAIN, head_of, load_rows, padded, stride_of, tokens_of, transpose_tile

TOKENS = 256  # tokens a work item
NUMBERS = 1 << 16  # numbers a work item


@kernel(out="stored", dout="stored", delta="stats", counters="counters", scratch="scratch", tokens="tokens")
def row_dots(out, dout, delta, counters, scratch, tokens):
    """delta (batch, n_heads, n_queries) = sum over head_dim of out * dout.

    Lanes are queries and the sum runs along head_dim, as `scores` gives dp: where a query has one key the two cancel
    exactly.
    """
    n_heads, n_queries, dim = out.shape[1], out.shape[2], out.shape[3]
    n_pieces = (n_queries + TOKENS - 1) // TOKENS
    rows, queries = data(scratch), data(tokens)
    lanes = lanes_of(rows)
    pad = padded(dim, lanes)
    x, y, zero = shift(rows, lanes * pad), shift(rows, 2 * lanes * pad), splat(rows, 0)
    while True:
        item = fetch_add(data(counters), 1)
        if item >= out.shape[0] * n_heads * n_pieces:
            return
        b, h, piece = item // n_pieces // n_heads, item // n_pieces % n_heads, item % n_pieces
        stop = min((piece + 1) * TOKENS, n_queries)
        for first in range(piece * TOKENS, stop, lanes):
            tokens_of(queries, queries, False, first, lanes, stop)
            load_rows(rows, pad, head_of(out, b, h), stride_of(out), queries, lanes, dim, 1.0)
            transpose_tile(x, lanes, rows, pad, lanes, pad)
            load_rows(rows, pad, head_of(dout, b, h), stride_of(dout), queries, lanes, dim, 1.0)
            transpose_tile(y, lanes, rows, pad, lanes, pad)
            sums = zero
            for begin in range(0, dim, CHAIN):
                chain = zero
                for d in range(begin, min(begin + CHAIN, dim)):
                    # a query without keys has out = 0: what arrives there, NaN included, reaches nothing
                    here = load(x, d * lanes)
                    chain = fma(here, where_equal(here, zero, zero, load(y, d * lanes)), chain)
                sums = add(sums, chain)
            store(rows, 0, sums)
            for i in range(min(lanes, stop - first)):
                delta[b, h, first + i] = rows[i]


@kernel(buffer="scratch", row_stride="int", n_rows="int", ptr="int64", rows="int32", starts="table", targets="table",
        to="computed", adds="bool", counters="counters")
def sum_rows_of(buffer, row_stride, n_rows, ptr, rows, starts, targets, to, adds, counters):
    """to[b, head, token] = (old if adds) + the sum of the token's rows in every source of the head, in their order.

    buffer (batch, n_sources, n_rows, row_stride); starts (batch, n_sources) where a source's lists begin in ptr;
    targets (n, 3): head, first source, source after the last.
    """
    n_tokens, dim, n_targets = to.shape[2], to.shape[3], targets.shape[0]
    n_sources = starts.shape[1]
    n_pieces = (n_tokens + TOKENS - 1) // TOKENS
    lanes = lanes_of(data(buffer))
    stride = stride_of(to)
    while True:
        item = fetch_add(data(counters), 1)
        if item >= to.shape[0] * n_targets * n_pieces:
            return
        b, target, piece = item // n_pieces // n_targets, item // n_pieces % n_targets, item % n_pieces
        here = head_of(to, b, targets[target, 0])
        for token in range(piece * TOKENS, min((piece + 1) * TOKENS, n_tokens)):
            row = shift(here, token * stride)
            fresh = not adds
            for source in range(targets[target, 1], targets[target, 2]):
                at = starts[b, source] + token
                for i in range(ptr[at], ptr[at + 1]):
                    more = shift(data(buffer), ((b * n_sources + source) * n_rows + rows[i]) * row_stride)
                    d = 0
                    while d + lanes <= dim:
                        store(row, d, load(more, d) if fresh else add(load(row, d), load(more, d)))
                        d += lanes
                    while d < dim:
                        put(row, d, get(more, d) if fresh else get(row, d) + get(more, d))
                        d += 1
                    fresh = False
            if fresh:
                for d in range(dim):
                    put(row, d, 0)


@kernel(source="scratch", to="stored flat", counters="counters")
def round_numbers(source, to, counters):
    """to = source, rounded to the storage dtype."""
    lanes = lanes_of(data(source))
    while True:
        i = fetch_add(data(counters), NUMBERS)
        if i >= source.size:
            return
        stop = min(i + NUMBERS, source.size)
        while i + lanes <= stop:
            store(data(to), i, load(data(source), i))
            i += lanes
        while i < stop:
            put(data(to), i, get(data(source), i))
            i += 1
