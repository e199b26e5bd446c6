"""Vectors as rows of eight numbers: what compiled products add up in one order, so that equal ones are equal anywhere.

A library's matrix product is faster but rounds by place, machine and threads; it serves to find what is near.
"""

import numpy as np


def in_eights(x, dtype):
    """x (..., head_dim) as contiguous (..., rows, 8) of `dtype`, filled with 0."""
    rest = -x.shape[-1] % 8
    if rest:
        x = np.pad(x.astype(dtype, copy=False), [(0, 0)] * (x.ndim - 1) + [(0, rest)])
    return np.ascontiguousarray(x, dtype).reshape(*x.shape[:-1], -1, 8)


def rounding(head_dim, dtype):
    """How far two ways of adding up a product may lie apart, in parts of the lengths' product; generous."""
    return 4 * (head_dim + 8) * float(np.finfo(dtype).eps)
