"""Tiles and their products: tokens, numbers as they are stored, reading, what a thread adds up.

A tile has up to 64 rows of 64 float32 numbers in shared memory; wider rows come slice by slice. A product of two tiles
is shared by 128 threads, 8 across and 16 down: thread (row, col) has the rows row, row + 1, ... and the columns col,
col + 8, ... of it in registers. So the threads of a warp read the same numbers of the left tile, and numbers of the
right one that lie in different banks.

Each function is made for some numbers, once: `own` rows of a thread, `shape` of its part of a result (slices, rows,
columns), `bits` and `fp16` of numbers as they are stored. None waits for other threads: kernels do.
"""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import ACROSS, AT_ONCE, BLOCK_Y, COLUMNS, THREADS
from sparseattn.kernels.numba_cuda.target import bits_of, chosen, cuda, from_bits

F32, U64 = np.float32, np.uint64
ZERO, ONE, NEG_INF, POS_INF = F32(0), F32(1), F32(-np.inf), F32(np.inf)


@cuda.jit(device=True)
def token_at(order, at, slot, n):
    """The token at a slot, -1 for nobody; no list: token = slot."""
    if order.shape[0] > 0:
        return np.int64(order[at + slot])
    return np.int64(slot) if slot < n else np.int64(-1)


@cuda.jit(device=True)
def find_key(block, mask, part, block_y, masks, order, at, n_slots, n):
    """The token of key `part` of a block of one query, -1 where it is not attended; masks (n_masks, words)."""
    slot = np.int64(block) * block_y + part
    if slot >= n_slots or np.int64(masks[mask, part // 32]) >> (part % 32) & 1 == 0:
        return np.int64(-1)
    return token_at(order, at, slot, n)


# ---- 16-bit numbers ----
@functools.cache
def widened(bits, fp16):
    """Numbers as they are stored to float32; bfloat16 is stored as uint16."""
    def exact(x):
        return F32(x)

    def shifted(x):
        return from_bits((np.int64(x) ^ 0x8000) * 0x10000 - 0x80000000)  # the upper half

    return cuda.jit(device=True)(exact if bits == 32 or fp16 else shifted)


@functools.cache
def narrowed(bits, fp16):
    """Float32 to numbers as they are stored, rounded to nearest, ties to even."""
    def same(x):
        return F32(x)

    def half(x):
        return np.float16(x)

    def rounded(x):
        if x != x:
            return np.uint16(0x7FC0)
        word = np.int64(bits_of(F32(x))) & 0xFFFFFFFF
        return np.uint16((word + 0x7FFF + (word >> 16 & 1)) >> 16)

    return cuda.jit(device=True)(same if bits == 32 else half if fp16 else rounded)


# ---- reading tiles ----
@functools.cache
def load_tile(rows, width, bits, fp16):
    """`rows` rows of one head into a tile, `width` columns from `first` on; token -1: zeros.

    A thread asks for several numbers, which x has room for, before it waits for one; what is not there is read from
    elsewhere and dropped.
    """
    wide, step = widened(bits, fp16), THREADS // width
    batch = min(rows // step, AT_ONCE)
    batches, ahead = rows // step // batch, batch * step

    @cuda.jit(device=True)
    def load_tile(tile, array, tokens, first, n_columns, thread, x):
        row, col, column = U64(thread // width), U64(thread % width), first + thread % width
        there = column < n_columns
        near = U64(column if there else 0)
        for _ in range(batches):
            for i in range(batch):
                token = tokens[row + U64(i * step)]
                read = wide(array[U64(max(token, 0)), near])
                x[i] = chosen(there & (token >= 0), read, ZERO)
            for i in range(batch):
                tile[row + U64(i * step), col] = x[i]
            row += U64(ahead)

    return load_tile


@functools.cache
def load_rows(rows, width, bits, fp16):
    """The same where each row has a head of its own."""
    wide, step = widened(bits, fp16), THREADS // width
    batch = min(rows // step, AT_ONCE)
    batches, ahead = rows // step // batch, batch * step

    @cuda.jit(device=True)
    def load_rows(tile, array, heads, tokens, first, n_columns, thread, x):
        row, col, column = U64(thread // width), U64(thread % width), first + thread % width
        there = column < n_columns
        near = U64(column if there else 0)
        for _ in range(batches):
            for i in range(batch):
                r = row + U64(i * step)
                token = tokens[r]
                read = wide(array[U64(heads[r]), U64(max(token, 0)), near])
                x[i] = chosen(there & (token >= 0), read, ZERO)
            for i in range(batch):
                tile[row + U64(i * step), col] = x[i]
            row += U64(ahead)

    return load_rows


# ---- products of tiles ----
@functools.cache
def clear(own):
    """Zeros in a product of `own` rows a thread."""
    @cuda.jit(device=True)
    def clear(s):
        for i in range(own):
            for j in range(COLUMNS):
                s[i, j] = ZERO

    return clear


@functools.cache
def scores(own, width):
    """s += left right^T, over the columns of a slice; four at a time, since no compiler here unrolls that loop."""
    @cuda.jit(device=True)
    def add(s, left, right, row, col, d):
        for j in range(COLUMNS):
            y = right[col + U64(ACROSS * j), d]
            for i in range(own):
                s[i, j] += left[row + U64(i), d] * y

    @cuda.jit(device=True)
    def scores(s, left, right, row, col):
        # unsigned numbers, because a signed one could be an index from the end, which is looked into each time
        row, col = U64(row), U64(col)
        for d in range(0, width, 4):
            add(s, left, right, row, col, U64(d))
            add(s, left, right, row, col, U64(d + 1))
            add(s, left, right, row, col, U64(d + 2))
            add(s, left, right, row, col, U64(d + 3))

    return scores


@functools.cache
def accumulate(own, width):
    """s += left right for the columns of a slice, over all 64 rows of the right tile."""
    columns = width // ACROSS

    @cuda.jit(device=True)
    def add(s, left, right, row, col, k):
        for j in range(columns):
            y = right[k, col + U64(ACROSS * j)]
            for i in range(own):
                s[i, j] += left[row + U64(i), k] * y

    @cuda.jit(device=True)
    def accumulate(s, left, right, row, col):
        row, col = U64(row), U64(col)
        for k in range(0, BLOCK_Y, 4):
            add(s, left, right, row, col, U64(k))
            add(s, left, right, row, col, U64(k + 1))
            add(s, left, right, row, col, U64(k + 2))
            add(s, left, right, row, col, U64(k + 3))

    return accumulate


@functools.cache
def store_tile(own):
    """s into a tile, so that it can be the left one of a product."""
    @cuda.jit(device=True)
    def store_tile(tile, s, row, col):
        for i in range(own):
            for j in range(COLUMNS):
                tile[row + i, col + ACROSS * j] = s[i, j]

    return store_tile


@functools.cache
def begin_sums(shape):
    """Zeros in a thread's part of a result."""
    slices, own, columns = shape

    @cuda.jit(device=True)
    def begin_sums(sums):
        for a in range(slices):
            for i in range(own):
                for j in range(columns):
                    sums[a, i, j] = ZERO

    return begin_sums


@functools.cache
def add_slice(shape):
    """sums = f sums + s for one slice: sums over many steps stay as exact as sums of sums are."""
    _, own, columns = shape

    @cuda.jit(device=True)
    def add_slice(sums, a, f, s):
        for i in range(own):
            for j in range(columns):
                sums[a, i, j] = sums[a, i, j] * f[i] + s[i, j]

    return add_slice
