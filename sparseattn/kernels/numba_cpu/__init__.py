"""The CPU backend: kernels in vector IR through Numba, on threads of its own. Needs no compiler and no GPU.

Everything that imports Numba is imported on first use: `import sparseattn` does not wait for it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

from sparseattn.kernels.numba_cpu import layout
from sparseattn.options import PLAIN

NAME = "numba_cpu"
DTYPES = ("float32", "float64", "float16", "bfloat16")


def why_not(q, k, v, pattern) -> str | None:
    """None if this backend can run the call, else reason and cure; without arrays: whether it is usable at all."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed; pip install numba"
    return None if q is None else _why_not_of(q.dtype)


@functools.cache
def _why_not_of(dtype):
    """None where the kernels take arrays of a dtype. Kept: numpy takes longer to name it than a short call has."""
    if dtype.name not in DTYPES:
        return f"q is {dtype}; convert q, k and v to one of {', '.join(DTYPES)}"
    if not dtype.isnative:
        return f"q is {dtype.str}, in the other byte order; convert q, k and v with astype(q.dtype.newbyteorder('='))"
    return None


def forward(q, k, v, pattern, *, scale, out=None, options=PLAIN):
    """out (batch, n_heads, n_queries, v_dim) and lse (batch, n_heads, n_queries) of a checked call."""
    return _launcher("forward")(q, k, v, pattern, scale, out, options)


def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None, options=PLAIN):
    """dq, dk, dv of a checked call, each like its input, and the gradients of the bias' values and of the sinks."""
    return _launcher("backward")(dout, q, k, v, out, lse, pattern, scale, dlse, options)


@functools.cache
def _launcher(name):
    """The function that runs a `name` call, imported on first use."""
    return getattr(importlib.import_module(f"sparseattn.kernels.numba_cpu.launch_{name}"), name)


def estimate(q, k, v, pattern, *, backward=False):
    """An `Estimate` of a checked call: kernels, blocks, pairs, FLOPs, bytes, seconds predicted for this machine."""
    from sparseattn.kernels.numba_cpu import calibration, cost, simd

    return cost.estimate(q, k, v, pattern, simd.VECTOR_BITS, backward, calibration.speed())


def prepare(pattern, backward=True):
    """Make ahead what the kernels read of a pattern, so that a timed call meets no first use. Compiles nothing."""
    parts = [layout.single_rows(part) for part in pattern.tiles()]
    parts += [layout.transposed(part) for part in parts] if backward else []
    for part in parts:
        layout.flat(part)
        layout.row_costs(part)


def warm(dtypes=("float32",), head_dims=(64,)):
    """Compile ahead all kernels for these dtypes; later processes find them in Numba's disk cache.

    Parameters
    ----------
    dtypes : iterable of str or dtype
        Any of float32, float64, float16, bfloat16.
    head_dims : iterable of int
        Sizes to run once. One compilation serves them all.
    """
    from sparseattn.kernels.numba_cpu import warming

    warming.run_all(dtypes, head_dims)
