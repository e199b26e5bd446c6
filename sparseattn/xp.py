"""NumPy or CuPy for these arrays, importing neither needlessly."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any

import numpy as np

Array = Any

_WIDE = {np.dtype(kind): np.dtype(wide) for kind, wide in ((np.float16, np.float32), (np.float32, np.float32),
                                                           (np.float64, np.float64))}


def library(x) -> str | None:
    """The library of an array, "numpy" or "cupy"; None for anything else, masked arrays included."""
    if type(x) is np.ndarray:
        return "numpy"
    if isinstance(x, np.ndarray):
        return None if isinstance(x, np.ma.MaskedArray) else "numpy"
    cupy = sys.modules.get("cupy")  # CuPy's arrays cannot exist before its module does
    return "cupy" if cupy is not None and isinstance(x, cupy.ndarray) else None


def namespace(x):
    """The module whose functions take the array `x`."""
    return np if isinstance(x, np.ndarray) else sys.modules["cupy"]


def compute_dtype(dtype) -> np.dtype | None:
    """The dtype that arithmetic on `dtype` is done in: float64 for float64, else float32; None where unsupported."""
    wide = _WIDE.get(dtype)
    if wide is None and dtype.name == "bfloat16":  # of ml_dtypes, an optional package
        _WIDE[dtype] = wide = np.dtype(np.float32)
    return wide


def mover(device):
    """The function that copies an array to the memory of "cpu" (NumPy) or "cuda:N" (CuPy)."""
    if device == "cpu":
        return lambda x: x if isinstance(x, np.ndarray) else x.get()
    cupy, number = _cupy(), int(device[5:])

    def moved(x):
        with cupy.cuda.Device(number):
            return cupy.asarray(x)

    return moved


def device_of(x):
    """Where an array is, as `Pattern.to` takes it; "cpu" for what is no array."""
    return x.device if library(x) == "cupy" else "cpu"


def gpu_of(x) -> int | None:
    """The number of the GPU that an array is on, None on the CPU."""
    return x.data.device_id if library(x) == "cupy" else None


def finish(x):
    """Wait for what the GPU of a CuPy array was asked to do before, so that a clock may be read."""
    if library(x) == "cupy":
        x.device.synchronize()


def on_cpu(x) -> np.ndarray:
    """x as a NumPy array. One of CuPy is copied, which waits for its GPU."""
    return x.get() if library(x) == "cupy" else np.asarray(x)


def address(x) -> int:
    """Where in memory an array begins."""
    return x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x.data.ptr


def on_its_device(function):
    """The function, with CuPy working on the GPU of the first CuPy array among the arguments."""
    @functools.wraps(function)
    def run(*arguments, **options):
        device = next((x.device for x in (*arguments, *options.values()) if library(x) == "cupy"), None)
        if device is None:
            return function(*arguments, **options)
        with device:
            return function(*arguments, **options)

    return run


def at_home(x):
    """A context in which work goes to the GPU of an array, if it is CuPy's."""
    return x.device if library(x) == "cupy" else contextlib.nullcontext()


def current_gpu() -> int:
    """The number of the GPU that CuPy works on now."""
    return _cupy().cuda.Device().id


def _cupy():
    try:
        import cupy
    except ImportError:
        raise ImportError("a GPU's arrays need CuPy; install it with: pip install 'sparseattn[cuda12]' or "
                          "'sparseattn[cuda13]'") from None
    return cupy
