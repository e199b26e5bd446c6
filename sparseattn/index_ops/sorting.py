"""Sorting and repeating whole numbers in linear time, of NumPy or CuPy."""

import numpy as np

from sparseattn.xp import library, namespace


def repeated(counts):
    """Each index i of `counts`, int (n,), counts[i] times: ``repeat(arange(n), counts)``, which CuPy does not have."""
    if library(counts) == "numpy":
        return np.repeat(np.arange(counts.size), counts)
    xp, ends = namespace(counts), counts.cumsum()
    return xp.searchsorted(ends, xp.arange(int(ends[-1])), side="right") if counts.size else ends


def stable_order(numbers, bound, sizes):
    """Where to take `numbers` from so that each of its pieces, of these `sizes` (n_pieces,), is sorted; a stable sort.

    numbers: int (n,) from 0 to `bound` - 1. NumPy's are taken 16 bits at a time, which it sorts in linear time.
    """
    if library(numbers) == "cupy":
        return namespace(numbers).argsort(repeated(sizes) * bound + numbers, kind="stable")
    order, begin = np.empty(numbers.size, np.int64), 0
    for size in sizes:
        order[begin : begin + size] = begin + _order_of_digits(numbers[begin : begin + size], bound)
        begin += size
    return order


def _order_of_digits(numbers, bound):
    order = numbers.astype(np.uint16).argsort(kind="stable")
    for shift in range(16, max(bound - 1, 0).bit_length(), 16):
        order = order[(numbers >> shift).astype(np.uint16)[order].argsort(kind="stable")]
    return order
