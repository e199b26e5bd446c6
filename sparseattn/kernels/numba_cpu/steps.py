"""Steps of the tile kernels: small functions over tiles in scratch memory, inlined by LLVM.

A score tile of the forward is `s[key, slot]`, one query slot per SIMD lane: the softmax runs down the tile with no sum
across lanes, k and v are read as scalars where they lie, and only the query tile is transposed, once a row of blocks.
The backward mirrors this: `s[query, slot]` with one key slot per lane. So both walk a structure whose rows lie in lanes
and whose columns are tokens to be read; `collect`, `tokens_of` and `load_rows` serve both.
"""

import numpy as np

from sparseattn.kernels.numba_cpu.compile import step
from sparseattn.kernels.numba_cpu.lanewise import exp
from sparseattn.kernels.numba_cpu.layout import WORD
from sparseattn.kernels.numba_cpu.products import tile_matmul
from sparseattn.kernels.numba_cpu.simd import (MANY_REGISTERS, add, data, fma, get, lanes_of, load, maximum, minimum,
                                               mul, put, shift, splat, store, sub, transpose, where_bits, where_equal)

# tokens that share one softmax step: more amortise it, but two score tiles and what goes with them should stay in L2
GROUP = 128 if MANY_REGISTERS else 64
CHAIN = 32  # additions in a row; the error of a sum grows with them, and a shorter chain costs more stores
WIDENED = 64  # the same where 16-bit tokens are widened into scratch on the way: that too should stay near


@step
def padded(n, lanes):
    """`n` rounded up to whole registers."""
    return (n + lanes - 1) // lanes * lanes


@step
def head_of(x, b, head):
    """Where the rows (tokens, dim) of one head of an array (batch, heads, tokens, ...) begin."""
    return shift(data(x), (b * x.strides[0] + head * x.strides[1]) // x.itemsize)


@step
def stride_of(x):
    """Numbers between the tokens of an array (batch, heads, tokens, ...)."""
    return x.strides[2] // x.itemsize


@step
def tile_stride(width, lanes):
    """Numbers between rows of a tile: an odd number of registers, so that a strip of columns uses all cache sets."""
    return width + lanes if width // lanes % 2 == 0 else width


@step
def matmul(c, c_stride, a, a_row, a_step, b, b_stride, n_rows, n_cols, n_steps, add_to):
    """C = (C if add_to else 0) + A B for any number of rows; n_cols is a multiple of the lanes.

    A[i, t] lies at a + i * a_row + t * a_step, so A may be transposed; B and C have unit column stride.
    """
    lanes = lanes_of(c)
    col = 0
    while col < n_cols:
        left = (n_cols - col) // lanes
        row = 0
        if MANY_REGISTERS and left >= 4:
            vecs = 4
            while row + 4 <= n_rows:
                tile_matmul(shift(c, row * c_stride + col), c_stride, shift(a, row * a_row), a_row, a_step,
                            shift(b, col), b_stride, n_steps, 4, 4, add_to)
                row += 4
        elif left >= 2:
            vecs = 2
            # 6 rows at a time but for a last 2 that would be alone: 4 + 4 instead of 6 + 2
            while row + 8 < n_rows or row + 6 == n_rows:
                tile_matmul(shift(c, row * c_stride + col), c_stride, shift(a, row * a_row), a_row, a_step,
                            shift(b, col), b_stride, n_steps, 6, 2, add_to)
                row += 6
            while row + 4 <= n_rows:
                tile_matmul(shift(c, row * c_stride + col), c_stride, shift(a, row * a_row), a_row, a_step,
                            shift(b, col), b_stride, n_steps, 4, 2, add_to)
                row += 4
        else:
            vecs = 1
            while row + 8 <= n_rows:
                tile_matmul(shift(c, row * c_stride + col), c_stride, shift(a, row * a_row), a_row, a_step,
                            shift(b, col), b_stride, n_steps, 8, 1, add_to)
                row += 8
        while row < n_rows:
            for j in range(col, col + vecs * lanes, lanes):
                tile_matmul(shift(c, row * c_stride + j), c_stride, shift(a, row * a_row), a_row, a_step,
                            shift(b, j), b_stride, n_steps, 1, 1, add_to)
            row += 1
        col += vecs * lanes


@step
def scores(s, s_stride, x, x_stride, y_t, y_stride, n_rows, n_cols, dim):
    """s = x y_t for `n_rows` rows of x (., dim); y_t (dim, n_cols). Summed in chains of CHAIN, whose ends are added."""
    for d in range(0, max(dim, 1), CHAIN):
        matmul(s, s_stride, shift(x, d), x_stride, 1, shift(y_t, d * y_stride), y_stride, n_rows, n_cols,
               min(CHAIN, dim - d), d > 0)


@step
def live_span(slot, mask_ids, spans, masked, col, block, n_slots):
    """First and one past the last attended token slot of a stored block, and whether dead ones lie between."""
    low, high, holes = 0, block, 0
    if masked:
        low, high, holes = spans[3 * mask_ids[slot]], spans[3 * mask_ids[slot] + 1], spans[3 * mask_ids[slot] + 2]
    return low, max(low, min(high, n_slots - col * block)), holes


@step
def collect(runs, slot, stop, indices, mask_ids, spans, masked, careful, block, n_slots, group):
    """Blocks from `slot` on that share a softmax step, as runs of neighbours: runs[3 r:] = first token, size, block.

    Returns the stored block after the last, the number of runs, of token slots, and whether some must be read as zeros.
    """
    n, n_runs, holes, end = 0, 0, False, -1
    while slot < stop and n + block <= group:
        low, high, hole = live_span(slot, mask_ids, spans, masked, indices[slot], block, n_slots)
        start = indices[slot] * block + low
        if start == end:
            runs[3 * n_runs - 2] += high - low
        else:
            runs[3 * n_runs], runs[3 * n_runs + 1], runs[3 * n_runs + 2] = start, high - low, slot
            n_runs += 1
        end = start + high - low
        n += high - low
        holes |= masked and mask_ids[slot] > 0 and (hole > 0 or careful)
        slot += 1
    return slot, n_runs, n, holes


@step
def tokens_of(tokens, order, listed, first, size, n_tokens):
    """tokens[i] = the token at slot first + i, -1 = nobody; `order` is a list if `listed`, else slot = token."""
    for i in range(size):
        if first + i >= n_tokens:
            tokens[i] = -1
        elif listed:
            tokens[i] = order[first + i]
        else:
            tokens[i] = first + i


@step
def run_tokens(tokens, runs, n_runs, order, listed, n_slots):
    """The tokens of all runs, one after the other."""
    n = 0
    for r in range(n_runs):
        tokens_of(shift(tokens, n), order, listed, runs[3 * r], runs[3 * r + 1], n_slots)
        n += runs[3 * r + 1]


@step
def drop_dead(tokens, slot, stop, indices, mask_ids, spans, masks, words, block, n_slots, valid):
    """A token that no existing slot of the row attends becomes -1, so that it is read as zeros."""
    n = 0
    for i in range(slot, stop):
        low, high, _ = live_span(i, mask_ids, spans, True, indices[i], block, n_slots)
        if mask_ids[i] > 0:
            for row in range(low, high):
                at = (mask_ids[i] * block + row) * words
                alive = 0
                for w in range(words):
                    alive |= masks[at + w] & valid[w]
                if alive == 0:
                    tokens[n + row - low] = -1
        n += high - low


@step
def valid_bits(valid, tokens, words, width):
    """Bits of the slots where somebody sits; True if some of the `width` slots is nobody's."""
    n = 0
    for w in range(words):
        bits = 0
        for i in range(w * WORD, min((w + 1) * WORD, width)):
            if tokens[i] >= 0:
                bits |= 1 << (i - w * WORD)
                n += 1
        valid[w] = bits
    return n < width


@step
def load_rows(rows, row_stride, source, stride, tokens, n_rows, dim, factor):
    """rows[i, :dim] = source[tokens[i], :dim] * factor, widened; a slot of nobody and the tail of a row are 0."""
    lanes = lanes_of(rows)
    times, zero = splat(rows, factor), splat(rows, 0)
    for i in range(n_rows):
        here = i * row_stride
        if tokens[i] < 0:
            for d in range(0, row_stride, lanes):
                store(rows, here + d, zero)
            continue
        base = tokens[i] * stride
        d = 0
        while d + 4 * lanes <= dim:
            x0, x1 = load(source, base + d), load(source, base + d + lanes)
            x2, x3 = load(source, base + d + 2 * lanes), load(source, base + d + 3 * lanes)
            store(rows, here + d, mul(x0, times))
            store(rows, here + d + lanes, mul(x1, times))
            store(rows, here + d + 2 * lanes, mul(x2, times))
            store(rows, here + d + 3 * lanes, mul(x3, times))
            d += 4 * lanes
        while d + lanes <= dim:
            store(rows, here + d, mul(load(source, base + d), times))
            d += lanes
        if d < dim:
            store(rows, here + d, zero)
            while d < dim:
                rows[here + d] = get(source, base + d) * factor
                d += 1


@step
def transpose_tile(to, to_stride, source, stride, n_rows, n_cols):
    """to[j, i] = source[i, j]; both counts are multiples of the lanes."""
    lanes = lanes_of(to)
    for i in range(0, n_rows, lanes):
        for j in range(0, n_cols, lanes):
            transpose(to, j * to_stride + i, to_stride, source, i * stride + j, stride)


@step
def apply_mask(s, stride, width, masks, words, first, n_rows, value):
    """Entries whose bit is 0 become `value`. `masks` has a row of words per row of `s`; theirs begin at `first`."""
    lanes = lanes_of(s)
    nothing = splat(s, value)
    for row in range(n_rows):
        for col in range(0, width, lanes):
            bits = masks[(first + row) * words + col // WORD] >> (col % WORD)
            at = row * stride + col
            store(s, at, where_bits(bits, load(s, at), nothing))


@step
def apply_masks(s, stride, width, slot, stop, indices, mask_ids, spans, masks, words, block, n_slots, value):
    """apply_mask for each masked block of a softmax step."""
    n = 0
    for i in range(slot, stop):
        low, high, _ = live_span(i, mask_ids, spans, True, indices[i], block, n_slots)
        if mask_ids[i] > 0:
            apply_mask(shift(s, n * stride), stride, width, masks, words, mask_ids[i] * block + low, high - low, value)
        n += high - low


@step
def fill(to, n, value):
    """n numbers, a multiple of the lanes, become `value`."""
    lanes = lanes_of(to)
    number = splat(to, value)
    for i in range(0, n, lanes):
        store(to, i, number)


@step
def multiply(to, n, factor):
    """n numbers, a multiple of the lanes, times `factor`."""
    lanes = lanes_of(to)
    times = splat(to, factor)
    for i in range(0, n, lanes):
        store(to, i, mul(load(to, i), times))


@step
def mask_nobody(s, stride, tokens, n):
    """Whole rows of a slot where nobody sits become -inf."""
    for row in range(n):
        if tokens[row] < 0:
            fill(shift(s, row * stride), stride, -np.inf)


@step
def online_softmax(s, stride, width, n_keys, scale, m, l, alpha):
    """s becomes p = exp(s * scale - m); m and l are brought up to date; alpha = exp(old m - m). True if not all are 1.

    scale > 0. The backward computes s * scale in the same way, so that its p has the rounding errors that lse has too.
    """
    lanes = lanes_of(s)
    nothing, zero, times = splat(s, -np.inf), splat(s, 0), splat(s, scale)
    for col in range(0, width, lanes):
        old = load(m, col)
        top0, top1 = nothing, nothing
        key = 0
        while key + 2 <= n_keys:
            top0 = maximum(load(s, key * stride + col), top0)
            top1 = maximum(load(s, (key + 1) * stride + col), top1)
            key += 2
        if key < n_keys:
            top0 = maximum(load(s, key * stride + col), top0)
        top = maximum(mul(maximum(top0, top1), times), old)
        # a slot with no key so far subtracts 0: exp(-inf - 0) is 0 where exp(-inf + inf) would be NaN
        base = where_equal(top, nothing, zero, top)
        sum0, sum1 = zero, zero
        key = 0
        while key + 2 <= n_keys:
            p0 = exp(sub(mul(load(s, key * stride + col), times), base))
            p1 = exp(sub(mul(load(s, (key + 1) * stride + col), times), base))
            store(s, key * stride + col, p0)
            store(s, (key + 1) * stride + col, p1)
            sum0, sum1 = add(sum0, p0), add(sum1, p1)
            key += 2
        if key < n_keys:
            p0 = exp(sub(mul(load(s, key * stride + col), times), base))
            store(s, key * stride + col, p0)
            sum0 = add(sum0, p0)
        shrink = exp(sub(old, base))
        store(alpha, col, shrink)
        store(l, col, fma(load(l, col), shrink, add(sum0, sum1)))
        store(m, col, top)
    changed = False
    for col in range(width):
        changed |= alpha[col] != 1
    return changed


@step
def rescale(acc, stride, width, v_dim, alpha):
    """acc[:, slot] *= alpha[slot]."""
    lanes = lanes_of(acc)
    for col in range(0, width, lanes):
        shrink = load(alpha, col)
        for d in range(v_dim):
            store(acc, d * stride + col, mul(load(acc, d * stride + col), shrink))


@step
def merge_state(m, l, acc, other_m, other_l, other_acc, stride, width, v_dim):
    """Add another softmax state over the same slots: acc and l are unnormalised sums relative to m."""
    lanes = lanes_of(acc)
    nothing, zero = splat(acc, -np.inf), splat(acc, 0)
    for col in range(0, width, lanes):
        mine, theirs = load(m, col), load(other_m, col)
        top = maximum(theirs, mine)
        base = where_equal(top, nothing, zero, top)
        a, b = exp(sub(mine, base)), exp(sub(theirs, base))
        store(m, col, top)
        store(l, col, fma(load(l, col), a, mul(load(other_l, col), b)))
        for d in range(v_dim):
            at = d * stride + col
            store(acc, at, fma(load(acc, at), a, mul(load(other_acc, at), b)))


@step
def write_rows(to, stride, tokens, rows, row_stride, n_rows, dim, add_to):
    """to[tokens[i], :dim] = rows[i, :dim] (+ the old value), rounded to the storage dtype."""
    lanes = lanes_of(rows)
    for i in range(n_rows):
        if tokens[i] < 0:
            continue
        base = tokens[i] * stride
        d = 0
        while d + lanes <= dim:
            value = load(rows, i * row_stride + d)
            if add_to:
                value = add(load(to, base + d), value)
            store(to, base + d, value)
            d += lanes
        while d < dim:
            number = rows[i * row_stride + d]
            put(to, base + d, get(to, base + d) + number if add_to else number)
            d += 1


@step
def probabilities(s, dp, stride, width, n_rows, factor, lse, delta, scale):
    """Backward: s becomes p = exp(s * factor - lse), dp becomes p * (dp - delta) * scale; statistics are one a row."""
    lanes = lanes_of(s)
    before, times, zero = splat(s, factor), splat(s, scale), splat(s, 0)
    for row in range(n_rows):
        log_sum, mean = splat(s, lse[row]), splat(s, delta[row])
        for col in range(0, width, lanes):
            at = row * stride + col
            # p is at most 1; where scores are huge, the rounding of lse must not say otherwise
            p = exp(minimum(sub(mul(load(s, at), before), log_sum), zero))
            store(s, at, p)
            store(dp, at, mul(mul(p, sub(load(dp, at), mean)), times))
