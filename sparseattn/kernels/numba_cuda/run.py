"""Launches the kernels on the current stream of the current device, or in Numba's simulator on NumPy arrays."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings

import numpy as np

from sparseattn.kernels.gpu.target import Target
from sparseattn.kernels.numba_cuda import shapes
from sparseattn.kernels.numba_cuda.target import cuda, memory_of

SHAPING = "SHAPED", "BIAS", "DROPOUT"
# the constants that each file reads
CONSTANTS = {
    "tile_forward": ("HEAD_DIM", "BITS", "FP16", "ROWS", *SHAPING),
    "row_forward": ("HEAD_DIM", "BITS", "FP16", "ROWS", *SHAPING),
    "merge": ("BITS", "FP16", "BY_HEADS"),
    "row_dots": ("BITS", "FP16"),
    "longest": ("BITS", "FP16"),
    "grain": (),
    "deltas": (),
    "tile_backward": ("HEAD_DIM", "BITS", "FP16", "ROWS", "KV", "OUT32", "BIAS_GRAD", "ROW_SUMS", *SHAPING),
    "tile_values": ("HEAD_DIM", "BITS", "FP16", "ROWS", *SHAPING),
    "row_backward": ("HEAD_DIM", "BITS", "FP16", "ROWS", "KV", "OUT32", "BIAS_GRAD", "ROW_SUMS", *SHAPING),
    "sum_slots": ("BITS", "FP16", "OUT32", "BY_HEADS"),
}
SCALARS = {
    **dict.fromkeys(("scale", "softcap", "kept", "unit"), np.float32), **dict.fromkeys(("limit", "word"), np.uint32),
    **dict.fromkeys(("low", "high", "x_step", "y_step"), np.int64),
}
# (dtype, axes) of arrays that a call may do without
ABSENT = {
    "x_order": ("int32", 1), "y_order": ("int32", 1), "values": ("float32", 1), "value_at": ("int64", 3),
    "labels": ("int32", 1), "x_codes": ("int32", 1), "y_codes": ("int32", 1), "carry": ("float32", 4),
    "carry1": ("float32", 4), "carry2": ("float32", 4), "lse": ("float32", 3), "dlse": ("float32", 3),
    "sinks": ("float32", 1), "dvalues": ("float32", 1), "row_sums": ("int64", 3), "grain": ("float64", 1),
    "part_out": ("float32", 3), "part_lse": ("float32", 2), "part1": ("float32", 3), "part2": ("float32", 3),
}
FLAT = "values", "labels", "dvalues"  # read by place


def bind(name, constants, grid, arguments, steps):
    """The function that launches a kernel with the arrays that it is given by name."""
    kernel = kernel_of(name, shapes.constants_of({key: constants[key] for key in CONSTANTS[name]}))
    if name in ("row_dots", "longest"):
        grid = -(-grid[0] // shapes.DOWN), grid[1]
    if name == "deltas":
        grid = -(-grid[0] // shapes.THREADS), grid[1]
    named = dict(zip(parameters(name), arguments, strict=True))
    if "out2" in named and named["out2"] is None:
        named["out2"] = named["out1"]  # so that it has some array's dtype; nobody reads or writes it
    kept = {key: x if isinstance(x, str) else _argument(key, x) for key, x in named.items()}

    def launch(arrays):
        passed = [_argument(key, arrays[x]) if isinstance(x, str) else x for key, x in kept.items()]
        _configured(kernel, grid, _stream())(*passed)

    return launch


def _configure(kernel, grid, stream):
    """A launch of a kernel; stream: the address of a CUDA stream, 0 for the default one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a small call leaves most of a GPU idle
        return kernel[grid, shapes.THREADS, cuda.external_stream(stream) if stream else 0]


# the simulator's launches are their kernel, which knows one grid at a time
_configured = _configure if shapes.SIMULATED else functools.lru_cache(1024)(_configure)


@functools.cache
def kernel_of(name, constants: shapes.Constants):
    """The kernel of a file for some constants, compiled at its first launch with arguments of some types."""
    return importlib.import_module(f"{__package__}.{name}").make(constants)


@functools.cache
def parameters(name):
    """Names of a kernel's parameters."""
    kernel = kernel_of(name, shapes.Constants(32))
    return tuple(inspect.signature(kernel.py_func).parameters)


def _argument(name, x):
    """An argument as Numba takes it: a NumPy scalar, or an array on the device."""
    if isinstance(x, (int, float, np.number)):
        return SCALARS.get(name, np.int32)(x)
    if x is None:
        return _nothing(*ABSENT[name])
    return _on_device(x.reshape(-1) if name in FLAT else x)


@functools.cache
def _nothing(dtype, axes):
    return _on_device(_library().empty((0,) * axes, dtype))


def _on_device(x):
    """The memory of an array; bfloat16, which Numba does not know, as 16-bit words."""
    if x.dtype.name == "bfloat16":
        x = x.view(np.uint16)
    return memory_of(x)


def _stream():
    return 0 if shapes.SIMULATED else _library().cuda.get_current_stream().ptr


def _library():
    """The array library that the kernels' memory comes from."""
    if shapes.SIMULATED:
        return np
    import cupy

    return cupy


TARGET = Target("numba_cuda", shapes.BLOCK_Y, shapes.rows, bind)
