"""Arrays as the kernels take them, and what follows from their dtype: lanes, padding, threads of a call."""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.numba_cpu import cost
from sparseattn.kernels.numba_cpu.simd import VECTOR_BITS
from sparseattn.kernels.numba_cpu.steps import padded as _padded
from sparseattn.kernels.numba_cpu.steps import tile_stride as _tile_stride
from sparseattn.pool import n_threads, run

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
LINE = 64  # bytes
HAND_OVER = 200e-6  # predicted seconds below which a call does not pay for waking other threads
FEW_PAIRS = 4096  # all of which take no kernel longer than that
SPREAD = 2048  # bytes; rows that lie a multiple of it apart share few cache sets: reading them again and again is slow
# the kernels' own rules for sizes in scratch memory, called from Python
padded, tile_stride = _padded.py_func, _tile_stride.py_func


def computing(dtype):
    """The dtype in which numbers of `dtype` are computed."""
    return DOUBLE if dtype == DOUBLE else SINGLE


@functools.cache
def name_of(dtype):
    """The name by which kernels know a storage dtype; numpy takes longer to make it than a short call has."""
    return dtype.name


def factors(scale):
    """(sign, scale > 0) of a score: kernels put the sign, 1, -1 or 0, on q or k, where it is exact."""
    return (1.0, scale) if scale > 0 else (-1.0, -scale) if scale < 0 else (0.0, 1.0)


def lanes_of(dtype):
    """Numbers of a computing dtype in a register."""
    return VECTOR_BITS // 8 // dtype.itemsize


def scratch_of(threads, size, dtype):
    """Scratch memory (threads, size or a little more), each thread's on cache lines of its own."""
    line = LINE // dtype.itemsize
    size = padded(size, line)
    memory = np.empty(threads * size + line, dtype)
    first = -(memory.__array_interface__["data"][0] // dtype.itemsize) % line
    return memory[first:first + threads * size].reshape(threads, size)


def readable(x):
    """The array as kernels take it: rows of numbers with unit stride (else one copy), 16 bits as integers."""
    size, strides = x.itemsize, x.strides
    within = strides[0] | strides[1] | strides[2] | strides[3]  # itemsizes are powers of two
    if (strides[3] != size and x.shape[3] > 1) or within & (size - 1) or not x.flags.aligned:
        x = np.ascontiguousarray(x)
    if size == 2:
        x = x.view(np.uint16 if x.dtype == np.float16 else np.int16)
    return x


def in_registers(x, lanes):
    """The array with its last axis filled up with zeros to whole registers: one copy where it is not."""
    missing = -x.shape[3] % lanes
    return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing else x


def together(x):
    """The array with rows side by side if they lie so far apart that reading them often costs more than one copy."""
    return x if x.strides[2] % SPREAD or x.strides[2] == x.shape[3] * x.itemsize else np.ascontiguousarray(x)


def tile_width(block, n_slots, lanes):
    """Lanes of a tile: a row of blocks, or all slots if they are fewer."""
    return padded(max(min(block, n_slots), 1), lanes)


def threads_of(q, v, pattern, backward):
    """Threads of a call: one where its predicted time would not pay for waking others."""
    n = n_threads()
    few = q.shape[0] * q.shape[1] * pattern.shape[0] * pattern.shape[1] <= FEW_PAIRS  # too few, whatever the pattern
    if n > 1 and (few or cost.seconds(q, v, pattern, VECTOR_BITS, backward) < HAND_OVER):
        return 1
    return n


def draw(entry, threads, *arguments):
    """Run an entry whose last argument is the counter that it draws work items from."""
    counters = np.zeros(1, np.int64)
    run(lambda i: entry(*arguments, counters), threads)


def launch(entry, own, *arguments):
    """Run an entry whose last arguments are memory of a thread's own: a row of each array of `own` for each thread."""
    run(lambda i: entry(*arguments, *[memory[i] for memory in own]), len(own[0]))
