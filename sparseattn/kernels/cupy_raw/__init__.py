"""The fast GPU backend: CUDA C++ in .cu files, compiled by NVRTC through CuPy, for sm_80 and newer.

CuPy is imported on first use: `import sparseattn` does not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib

from sparseattn.options import PLAIN

NAME = "cupy_raw"
DTYPES = ("float16", "bfloat16", "float32")
WIDEST = 256  # head_dim
PLACES = 65535  # batch items times heads
OLDEST = 80  # compute capability
HERE = contextlib.nullcontext()


def why_not(q, k, v, pattern) -> str | None:
    """None if this backend can run the call, else reason and cure; without arrays: whether it is usable at all."""
    reason = _why_not_here()
    if reason is not None or q is None:
        return reason
    if q.dtype.name not in DTYPES:
        return f"q is {q.dtype}; convert q, k and v to one of {', '.join(DTYPES)}"
    if max(q.shape[3], v.shape[3]) > WIDEST:
        return f"head_dim is {q.shape[3]} in q and k, {v.shape[3]} in v; split them to at most {WIDEST} columns"
    if q.shape[0] * q.shape[1] > PLACES:
        return (f"q has {q.shape[0]} batch items of {q.shape[1]} heads, more than {PLACES} together; call it for fewer "
                f"batch items at a time")
    return None


@functools.cache
def _why_not_here():
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed; pip install 'sparseattn[cuda12]' or 'sparseattn[cuda13]'"
    try:
        if not cupy.cuda.runtime.getDeviceCount():
            return "CuPy finds no GPU; install one, or its driver"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no GPU ({error}); install one, or its driver"
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < OLDEST:
        return f"the GPU has compute capability {capability / 10}; use one of {OLDEST / 10} or newer"
    return None


def forward(q, k, v, pattern, *, scale, out=None, options=PLAIN):
    """out (batch, n_heads, n_queries, v_dim) and lse (batch, n_heads, n_queries) of a checked call."""
    with _device_of(q):
        return _launcher("forward")(_target(), q, k, v, pattern, scale, out, options)


def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None, options=PLAIN):
    """dq, dk, dv of a checked call, each like its input, and the gradients of the bias' values and of the sinks."""
    with _device_of(q):
        return _launcher("backward")(_target(), dout, q, k, v, out, lse, pattern, scale, dlse, options)


def _device_of(x):
    """A context in which work goes to the GPU of x."""
    from sparseattn.kernels.cupy_raw import module

    return HERE if module.current_device() == x.data.device_id else x.device


@functools.cache
def _launcher(name):
    """The function that runs a `name` call, imported on first use."""
    return getattr(importlib.import_module(f"sparseattn.kernels.gpu.launch_{name}"), name)


@functools.cache
def _target():
    from sparseattn.kernels.cupy_raw.run import TARGET

    return TARGET


def estimate(q, k, v, pattern, *, backward=False):
    """An `Estimate` of a checked call: kernels, blocks, pairs, FLOPs, bytes; there is no model of time."""
    from sparseattn.kernels.gpu import cost

    return cost.estimate(_target(), q, k, v, pattern, backward)


def prepare(pattern, backward=True):
    """Make ahead the structures that the kernels read; places and tables follow at the first call of each size."""
    from sparseattn.kernels.gpu import layout

    layout.prepare(pattern, _target(), backward)
