"""What happens to the scores of a tile: masks, softcap, bias and dropout, online softmax, the writing of rows.

Made as the functions of tiles.py are.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparseattn.kernels.gpu.terms import BY_CODE, BY_LABEL
from sparseattn.kernels.numba_cuda.shapes import ACROSS, COLUMNS
from sparseattn.kernels.numba_cuda.target import bits_of, chosen, cuda, from_bits
from sparseattn.kernels.numba_cuda.tiles import F32, NEG_INF, ONE, U64, ZERO, narrowed

ONLY_KEPT = 2  # of `keeps`: a later part writes the result
# murmur3's finaliser, in 64-bit numbers below 2**32
WRAP, GOLDEN, FIRST, SECOND = U64(0xFFFFFFFF), U64(0x9E3779B9), U64(0x85EBCA6B), U64(0xC2B2AE35)
S13, S16 = U64(13), U64(16)


# ---- exponentials ----
LOWEST, LOG2E, LN2_HIGH, LN2_LOW = F32(-87), F32(1.44269504), F32(0.693359375), F32(-2.12194440e-4)
WHOLE, WHOLE_BITS = F32(1.5 * 2**23), 0x4B400000  # a number from which on neighbours are whole numbers apart
# (e^r - 1 - r) / r^2 for |r| <= log(2) / 2
E2, E3, E4, E5, E6 = F32(0.5), F32(0.166665167), F32(0.0416662619), F32(0.0083691515), F32(0.0013946594)


@cuda.jit(device=True)
def exp_of(x):
    """e^x for x <= 0, off by at most one unit in the last place; the library's by two. Below 2^-125 it is 0."""
    near = chosen(x < LOWEST, LOWEST, x)
    shifted = near * LOG2E + WHOLE
    n = shifted - WHOLE
    r = (near - n * LN2_HIGH) - n * LN2_LOW
    y = (((E6 * r + E5) * r + E4) * r + E3) * r + E2
    power = from_bits(((bits_of(shifted) - WHOLE_BITS + 127) & 0xFF) << 23)  # 2^n
    return chosen(x < LOWEST, ZERO, (y * (r * r) + r + ONE) * power)


# ---- places that share a bias ----
@cuda.jit(device=True)
def turn_of(x, y, across, down, together, apart):
    """(place, item of it) of thread block (x, y) of a grid: `together` places, `apart` from one to the next, take turns
    item by item."""
    if together == 1:
        return y, x
    at, of_group = y * across + x, together * across
    group, rest = at // of_group, at % of_group
    members = min(together, down - group * together)
    return group // apart * apart * together + group % apart + rest % members * apart, rest // members


# ---- softcap, bias, dropout ----
@cuda.jit(device=True)
def draw(word, number):
    """The next word of a chain, below 2**32."""
    h = (word + GOLDEN * U64(number)) & WRAP
    h = ((h ^ (h >> S16)) * FIRST) & WRAP
    h = ((h ^ (h >> S13)) * SECOND) & WRAP
    return h ^ (h >> S16)


@cuda.jit(device=True)
def is_dropped(draws, batch, head, query, key):
    """Whether dropout leaves out a pair; draws: limit, kept, word."""
    word = draw(draw(U64(draws[2]), batch), head)
    return draw(draw(word, query), key) <= U64(draws[0])


@functools.cache
def place_of(kind, by_sum=False):
    """Where the value of a pair stands in the values of a bias; `by_sum`: its sum of codes in sums of gradients."""
    clipped, by_label = kind != BY_CODE, kind == BY_LABEL
    begin = 3 if by_sum else 0

    @cuda.jit(device=True)
    def place_of(bias, batch, head, x_token, y_token):
        _, value_at, labels, x_codes, y_codes, low, high, x_step, y_step = bias
        place = np.int64(x_codes[x_token]) + np.int64(y_codes[y_token]) + value_at[batch, head, 1]
        if clipped:
            place = low if place < low else high if place > high else place
        if by_label:
            place = labels[value_at[batch, head, 2] + place] + x_token * x_step + y_token * y_step
        return value_at[batch, head, begin] + place

    return place_of


# ---- masks ----
@functools.cache
def attended(own):
    """bits: of each of the thread's rows, the columns that it attends; masks (n_masks, rows, words)."""
    @cuda.jit(device=True)
    def attended(bits, masks, mask, x_tokens, y_tokens, row, col):
        for i in range(own):
            found = 0
            for j in range(COLUMNS):
                column = col + ACROSS * j
                bit = np.int64(masks[mask, row + i, column // 32]) >> (column % 32) & 1
                if bit == 1 and x_tokens[row + i] >= 0 and y_tokens[column] >= 0:
                    found |= 1 << j
            bits[i] = found

    return attended


@functools.cache
def attended_tokens(own):
    """The same where a row and a column that are there attend each other."""
    @cuda.jit(device=True)
    def attended_tokens(bits, x_tokens, y_tokens, row, col):
        for i in range(own):
            found = 0
            for j in range(COLUMNS):
                if x_tokens[row + i] >= 0 and y_tokens[col + ACROSS * j] >= 0:
                    found |= 1 << j
            bits[i] = found

    return attended_tokens


@functools.cache
def apply_mask(own, shaped, biased):
    """Products of q and k become scores: scaled, capped, with the bias added; -inf where nobody attends."""
    place = place_of(biased)

    @cuda.jit(device=True)
    def apply_mask(s, bits, heads, x_tokens, y_tokens, batch, row, col, scale, softcap, bias):
        for i in range(own):
            for j in range(COLUMNS):
                z = NEG_INF
                if bits[i] >> j & 1:
                    z = s[i, j] * scale
                    if shaped and softcap != ZERO:
                        z = softcap * F32(math.tanh(z / softcap))
                    if biased:
                        x, y = x_tokens[row + i], y_tokens[col + ACROSS * j]
                        z += bias[0][place(bias, batch, heads[row + i], x, y)]
                s[i, j] = z

    return apply_mask


@functools.cache
def attended_keys(own):
    """The same where a column is a query with a mask of its own over the keys; masks (n_masks, block_x)."""
    @cuda.jit(device=True)
    def attended_keys(bits, masks, column_masks, x_tokens, y_tokens, row, col):
        for i in range(own):
            found = 0
            for j in range(COLUMNS):
                column = col + ACROSS * j
                if x_tokens[row + i] >= 0 and y_tokens[column] >= 0:
                    found |= (np.int64(masks[column_masks[column], row + i]) & 1) << j
            bits[i] = found

    return attended_keys


# ---- online softmax ----
@functools.cache
def begin_rows(own):
    """A softmax of nothing."""
    @cuda.jit(device=True)
    def begin_rows(m, l):
        for i in range(own):
            m[i], l[i] = NEG_INF, ZERO

    return begin_rows


@functools.cache
def share_maxima(own):
    """Each thread's part of what the largest score of a row is."""
    @cuda.jit(device=True)
    def share_maxima(shares, s, row, col):
        for i in range(own):
            top = s[i, 0]
            for j in range(1, COLUMNS):
                top = max(top, s[i, j])
            shares[row + i, col] = top

    return share_maxima


@functools.cache
def online_softmax(own):
    """Scores to exponentials in place; f: factors of what was added up before, l: the thread's part of their sum."""
    @cuda.jit(device=True)
    def online_softmax(s, m, l, f, shares, row):
        for i in range(own):
            top = m[i]
            for part in range(ACROSS):
                top = max(top, shares[row + i, part])
            shift = ZERO if top == NEG_INF else top  # (-inf) - (-inf) must not arise
            f[i] = exp_of(m[i] - shift)
            m[i], total = top, ZERO
            for j in range(COLUMNS):
                s[i, j] = exp_of(s[i, j] - shift)
                total += s[i, j]
            l[i] = l[i] * f[i] + total

    return online_softmax


@functools.cache
def drop(own):
    """Exponentials of dropped pairs become 0, others are multiplied by `kept`: after they are counted in l."""
    @cuda.jit(device=True)
    def drop(s, bits, heads, x_tokens, y_tokens, batch, row, col, draws):
        for i in range(own):
            for j in range(COLUMNS):
                if bits[i] >> j & 1:
                    x, y = x_tokens[row + i], y_tokens[col + ACROSS * j]
                    s[i, j] = ZERO if is_dropped(draws, batch, heads[row + i], x, y) else s[i, j] * draws[1]

    return drop


@functools.cache
def share_sums(own):
    """Each thread's part of the sum of a row's exponentials."""
    @cuda.jit(device=True)
    def share_sums(shares, l, row, col):
        for i in range(own):
            shares[row + i, col] = l[i]

    return share_sums


@cuda.jit(device=True)
def join(before, found):
    """(joint lse, factor of the output that has `found`, of the one that has `before`); -inf: nothing attended."""
    if before == NEG_INF:
        return found, ONE, ZERO
    top = max(before, found)
    a, b = exp_of(found - top), exp_of(before - top)
    share = ONE / (a + b)
    return top + F32(math.log(a + b)), a * share, b * share


@functools.cache
def end_rows(own):
    """m becomes each row's lse, l the factor of its output, f that of the output before; `before`: lse until now."""
    @cuda.jit(device=True)
    def end_rows(m, l, f, before, shares, row):
        for i in range(own):
            total = ZERO
            for part in range(ACROSS):
                total += shares[row + i, part]
            inverse, found = ZERO, NEG_INF
            if total != ZERO:
                inverse, found = ONE / total, m[i] + F32(math.log(total))
            m[i], factor, f[i] = join(before[i], found)
            l[i] = inverse * factor

    return end_rows


# ---- writing rows ----
@functools.cache
def write_row(shape, bits, fp16):
    """Outputs of a work item: to rows of `out`, or to its partial tile if it has one (at >= 0)."""
    (slices, own, columns), narrow = shape, narrowed(bits, fp16)
    width = columns * ACROSS

    @cuda.jit(device=True)
    def write_row(sums, l, f, heads, tokens, row, col, n_columns, batch, resumes, keeps, out, carry, at, part_out):
        for a in range(slices):
            for i in range(own):
                head, token = heads[row + i], tokens[row + i]
                for j in range(columns):
                    column = a * width + col + ACROSS * j
                    # a row of no weight is 0, whatever the values that others of the tile attend
                    x = ZERO if l[i] == ZERO else sums[a, i, j] * l[i]
                    if column < n_columns:
                        if at >= 0:
                            part_out[at, row + i, column] = x
                        elif token >= 0:
                            if resumes == 1 and f[i] != ZERO:
                                x += f[i] * carry[batch, head, token, column]
                            if keeps != ONLY_KEPT:
                                out[batch, head, token, column] = narrow(x)
                            if keeps:
                                carry[batch, head, token, column] = x

    return write_row
