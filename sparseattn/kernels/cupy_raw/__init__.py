"""The fast GPU backend: CUDA C++ in .cu files, compiled by NVRTC through CuPy, for sm_80 and newer.

CuPy is imported on first use: `import sparseattn` does not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib

from sparseattn.kernels.gpu import usable
from sparseattn.options import PLAIN

NAME = "cupy_raw"
OLDEST = 80  # compute capability
HERE = contextlib.nullcontext()


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
    import cupy

    capability = int(cupy.cuda.Device().compute_capability)
    if capability < OLDEST:
        return f"the GPU has compute capability {capability / 10}; use one of {OLDEST / 10} or newer"
    return None


def forward(q, k, v, pattern, *, scale, out=None, options=PLAIN):
    """out (batch, n_heads, n_queries, v_dim) and lse (batch, n_heads, n_queries) of a checked call."""
    with _device_of(q):
        return _launcher("forward")(_target(q.data.device_id), q, k, v, pattern, scale, out, options)


def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None, options=PLAIN):
    """dq, dk, dv of a checked call, each like its input, and the gradients of the bias' values and of the sinks."""
    with _device_of(q):
        return _launcher("backward")(_target(q.data.device_id), dout, q, k, v, out, lse, pattern, scale, dlse, options)


def _device_of(x):
    """A context in which work goes to the GPU of x."""
    from sparseattn.kernels.cupy_raw import module

    return HERE if module.current_device() == x.data.device_id else x.device


@functools.cache
def _launcher(name):
    """The function that runs a `name` call, imported on first use."""
    return getattr(importlib.import_module(f"sparseattn.kernels.gpu.launch_{name}"), name)


@functools.cache
def _target(device):
    """The kernels as a GPU, given by its number, has memory for them."""
    from sparseattn.kernels.cupy_raw import module, run

    return run.target(module.allowed_memory(device))


def estimate(q, k, v, pattern, *, backward=False):
    """An `Estimate` of a checked call: kernels, blocks, pairs, FLOPs, bytes; there is no model of time."""
    from sparseattn.kernels.gpu import cost

    return cost.estimate(_target(q.data.device_id), q, k, v, pattern, backward)


def prepare(pattern, backward=True):
    """Make ahead the structures that the kernels read; places and tables follow at the first call of each size."""
    from sparseattn.kernels.gpu import layout
    from sparseattn.xp import current_gpu

    device = current_gpu() if pattern.device == "cpu" else int(pattern.device.removeprefix("cuda:"))
    layout.prepare(pattern, _target(device), backward)
