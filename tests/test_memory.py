"""Memory of a call at 65,536 tokens: the forward allocates its results and little else, the backward O(inputs)."""

import functools
import tracemalloc

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns

N, HEADS = 65536, 2
PATTERNS = {"window": lambda: patterns.sliding_window(N, left=255), "strided": lambda: patterns.strided(N, stride=256)}


def peak(call):
    """Bytes that a call holds at most beyond what was held before; NumPy reports its arrays to tracemalloc."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", PATTERNS)
def test_memory(name):
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, HEADS, N, 64), np.float32) for _ in range(4))
    pattern = PATTERNS[name]()
    out, lse = sa.attend(q, k, v, pattern, return_lse=True)
    sa.attend_backward(dout, q, k, v, out, lse, pattern)  # what is kept on the pattern is made once
    assert peak(lambda: sa.attend(q, k, v, pattern)) <= out.nbytes + lse.nbytes + scratch()
    assert peak(lambda: sa.attend_backward(dout, q, k, v, out, lse, pattern)) <= 1.5 * 4 * q.nbytes


def test_memory_of_16_bits():
    # where there are several parts, what they pass on is in float32; a sink needs no such array
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, HEADS, N, 64), np.float32).astype(np.float16) for _ in range(3))
    sinks = np.zeros(HEADS, np.float32)
    for name, carried in (("window", 0), ("strided", 2)):
        pattern = PATTERNS[name]()
        out, lse = sa.attend(q, k, v, pattern, sinks=sinks, return_lse=True)
        needed = (1 + carried) * out.nbytes + lse.nbytes + scratch()
        assert peak(functools.partial(sa.attend, q, k, v, pattern, sinks=sinks)) <= needed, name


def scratch():
    """Scratch memory that a call may use: a megabyte a thread."""
    from sparseattn.pool import n_threads

    return n_threads() << 20
