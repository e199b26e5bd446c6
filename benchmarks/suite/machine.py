"""The two rates of the machine that shares are taken of: float32 matrix products, and reading memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from sparseattn.pool import n_threads


def matrix_product(size=1024):
    """A job, and how many FLOP it is: one float32 product of two square matrices, by NumPy's BLAS and its threads."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    return lambda: a @ b, 2 * size**3


def read(n_bytes=1 << 29):
    """A job that reads an array once with every thread, and its bytes."""
    array = np.ones(n_bytes // 8, np.int64)  # written, so that its pages exist
    pieces = np.array_split(array, n_threads())
    pool = ThreadPoolExecutor(len(pieces))

    def job():
        return sum(pool.map(_sum, pieces))

    if job() != array.size:
        raise AssertionError("the threads did not read the whole array")
    return job, array.nbytes


@njit(nogil=True)
def _sum(array):
    """Sum of integers: associative, so the compiler makes vectors of it and memory is what it waits for."""
    total = np.int64(0)
    for x in array:
        total += x
    return total
