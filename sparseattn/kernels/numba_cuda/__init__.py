"""The plain GPU backend: Python compiled by Numba, without tensor cores, to read and to compare cupy_raw with.

It runs on CuPy arrays; NUMBA_ENABLE_CUDASIM=1 makes its kernels run on NumPy arrays instead, slowly, without a GPU.
Neither CuPy nor Numba is imported before a call needs it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib

from sparseattn.kernels.gpu import usable
from sparseattn.options import PLAIN

NAME = "numba_cuda"
COMPILER = "pip install numba-cuda-mlir with the extra cu12 or cu13"


def why_not(q, k, v, pattern) -> str | None:
    """None if this backend can run the call, else reason and cure; without arrays: whether it is usable at all."""
    reason = _why_not_here()
    if reason is not None or q is None:
        return reason
    return usable.why_not_arrays(q, v)


@functools.cache
def _why_not_here():
    reason = usable.why_no_gpu()
    if reason is not None:
        return reason
    from sparseattn.kernels.numba_cuda.shapes import SIMULATED

    if SIMULATED:
        return "Numba simulates GPUs, which takes no CuPy arrays; unset NUMBA_ENABLE_CUDASIM"
    try:
        from sparseattn.kernels.numba_cuda.target import cuda

        if not cuda.is_available():
            return f"Numba finds no GPU or no compiler for it; {COMPILER}"
        cuda.jit("void()")(_nothing)  # some of the compiler is loaded only now
    except Exception as error:  # whatever a compiler made for another NumPy runs into
        return f"Numba's compiler for GPUs does not work here ({error}); {COMPILER}"
    return None


def _nothing():
    pass


def forward(q, k, v, pattern, *, scale, out=None, options=PLAIN):
    """out (batch, n_heads, n_queries, v_dim) and lse (batch, n_heads, n_queries) of a checked call."""
    with _device(q):
        return _launcher("forward")(_target(), q, k, v, pattern, scale, out, options)


def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None, options=PLAIN):
    """dq, dk, dv of a checked call, each like its input, and the gradients of the bias' values and of the sinks."""
    with _device(q):
        return _launcher("backward")(_target(), dout, q, k, v, out, lse, pattern, scale, dlse, options)


def _device(q):
    """The device of CuPy's arrays; the simulator has none."""
    return q.device if hasattr(q.device, "__enter__") else contextlib.nullcontext()


@functools.cache
def _launcher(name):
    """The function that runs a `name` call, imported on first use."""
    return getattr(importlib.import_module(f"sparseattn.kernels.gpu.launch_{name}"), name)


@functools.cache
def _target():
    from sparseattn.kernels.numba_cuda.run import TARGET

    return TARGET


def estimate(q, k, v, pattern, *, backward=False):
    """An `Estimate` of a checked call: kernels, blocks, pairs, FLOPs, bytes; there is no model of time."""
    from sparseattn.kernels.gpu import cost

    return cost.estimate(_target(), q, k, v, pattern, backward)


def prepare(pattern, backward=True):
    """Make ahead the structures that the kernels read; places and tables follow at the first call of each size."""
    from sparseattn.kernels.gpu import layout

    layout.prepare(pattern, _target(), backward)
