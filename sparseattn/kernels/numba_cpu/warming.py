"""Compile ahead: every kernel on a few tokens."""

from __future__ import annotations

import numpy as np

from sparseattn.kernels.numba_cpu.launch_backward import backward
from sparseattn.kernels.numba_cpu.launch_forward import forward
from sparseattn.options import PLAIN
from sparseattn.pattern import Pattern
from sparseattn.structure import BlockCSR

N = 8  # tokens


def _diagonal(block):
    """Each block of tokens attends itself: (8, 8) takes the tile kernels, (1, 1) the row kernels."""
    rows = np.arange(N // block, dtype=np.int32)
    return Pattern.from_parts([BlockCSR((N, N), (block, block), np.arange(rows.size + 1)[None, None], rows)], (N, N))


def run_all(dtypes, head_dims):
    """Run forward and backward of both kernels for every dtype and head_dim."""
    for name in dtypes:
        for head_dim in head_dims:
            x = np.zeros((1, 1, N, head_dim), _dtype(name))
            for pattern in (_diagonal(8), _diagonal(1)):
                out, lse = forward(x, x, x, pattern, 1.0, None, PLAIN)
                backward(x, x, x, x, out, lse, pattern, 1.0, None, PLAIN)


def _dtype(name):
    if str(name) == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)
