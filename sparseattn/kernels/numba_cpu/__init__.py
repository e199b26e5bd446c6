"""The CPU backend: kernels in vector IR through Numba, on threads of its own. Needs no compiler and no GPU.

`launch` and the kernels import Numba, so they are imported on first use: `import sparseattn` does not wait for it.
"""

from __future__ import annotations

import importlib.util

NAME = "numba_cpu"
DTYPES = ("float32", "float64", "float16", "bfloat16")


def why_not(q, k, v, pattern) -> str | None:
    """None if this backend can run the call, else the reason and the cure; without arrays, whether it is usable at all."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed; pip install numba"
    if q is not None and q.dtype.name not in DTYPES:
        return f"q is {q.dtype}; convert q, k and v to one of {', '.join(DTYPES)}"
    return None


def forward(q, k, v, pattern, *, scale, out=None):
    """out (batch, n_heads, n_queries, v_dim) and lse (batch, n_heads, n_queries) of a checked call."""
    from sparseattn.kernels.numba_cpu import launch

    return launch.forward(q, k, v, pattern, scale, out)


def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None):
    """dq, dk, dv of a checked call, each like its input."""
    from sparseattn.kernels.numba_cpu import launch

    return launch.backward(dout, q, k, v, out, lse, pattern, scale, dlse)
