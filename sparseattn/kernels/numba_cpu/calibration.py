"""How fast this machine is, beside the one for which `cost` holds rates: two small calls, once a process."""

from __future__ import annotations

import functools
from time import perf_counter

import numpy as np

from sparseattn.kernels.numba_cpu import cost
from sparseattn.kernels.numba_cpu.launch_forward import forward
from sparseattn.kernels.numba_cpu.simd import VECTOR_BITS
from sparseattn.options import PLAIN
from sparseattn.pattern import Pattern
from sparseattn.pool import threads

DIM, KEYS, RUNS = 64, 16, 7
TILE_TOKENS, ROW_TOKENS = 1024, 4096  # large enough for keys and values to leave the first caches


@functools.cache
def speed() -> tuple[float, float]:
    """How much longer tiles and scattered rows take than the rates say: the best of a few runs on one thread."""
    every = np.full(TILE_TOKENS, TILE_TOKENS)
    tiles = Pattern.from_ranges(np.zeros_like(every), every, TILE_TOKENS)
    step = ROW_TOKENS // KEYS
    keys = np.random.default_rng(0).integers(0, step, (ROW_TOKENS, KEYS)) + np.arange(KEYS) * step
    rows = Pattern.from_csr(np.arange(ROW_TOKENS + 1) * KEYS, keys.ravel(), ROW_TOKENS)
    return _ratio(tiles), _ratio(rows)


def _ratio(pattern):
    q, k, v = np.ones((3, 1, 1, pattern.shape[0], DIM), np.float32)
    times = []
    with threads(1):
        for _ in range(RUNS):
            begin = perf_counter()
            forward(q, k, v, pattern, DIM**-0.5, None, PLAIN)
            times.append(perf_counter() - begin)
    return min(times) / (cost.seconds(q, v, pattern, VECTOR_BITS, False) + cost.CALL_FORWARD)
