"""Calls of NumPy arrays run on a GPU: arguments are moved there with their strides, results are brought back."""

import copy
import ctypes
import functools

import numpy as np
import pytest

import sparseattn as sa
from sparseattn.counts import Counts

BACKENDS = ("cupy_raw", "numba_cuda")
ALIGNMENT = 256  # of memory from CuPy
# (where, name) of what takes arrays and `backend=`
CALLS = [(sa, name) for name in ("attend", "attend_backward", "vjp")]
CALLS += [(sa.variants, name) for name in ("axial_sum", "etc", "longformer", "nsa", "reformer", "routing")]


def widest(backend):
    """The widest dtype of floating numbers that a backend takes."""
    return np.float32 if backend in BACKENDS else np.float64


def rounding(backend):
    """What may be lost in a small call of the widest dtype, for results of order 1."""
    return 1e-5 if backend in BACKENDS else 1e-12


def cupy_or_skip():
    """CuPy, with a device to use; else the test is skipped."""
    module = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as reason:
        pytest.skip(f"CuPy finds no GPU: {reason}")
    return module


def usable_or_skip(name):
    """The name of a backend that can be used here; else the test is skipped."""
    found = {b.name: b for b in sa.backends()}[name]
    if not found.usable:
        pytest.skip(f"{found.reason}; {found.cure}")
    return name


def there_and_back(function):
    """A function of arrays and patterns that takes NumPy's, runs on CuPy's, and returns NumPy's.

    All memory of a call starts as NaN. A call in float64 must be refused, and its test is skipped then.
    """
    @functools.wraps(function)
    def run(*arguments, **options):
        written = options.pop("out", None)
        arguments, options = moved(arguments), moved(options)
        if written is not None:
            options["out"], memory, lead = _array(written)
        with poisoned():
            if getattr(arguments[0], "dtype", None) == np.float64:
                with pytest.raises(NotImplementedError, match="float64; convert q, k and v"):
                    function(*arguments, **options)
                pytest.skip("float64 is refused on a GPU, as it should be")
            result = function(*arguments, **options)
        if written is not None:
            _bytes_of(written)[...] = memory.get()[lead:]
        return _brought(result, options.get("out"), written)

    return run


def moved(x):
    """x with its NumPy arrays as CuPy's of the same strides and alignment, its patterns on the GPU."""
    if isinstance(x, np.ndarray):
        return _array(x)[0]
    if isinstance(x, sa.Pattern):
        return x.to("cuda")
    if isinstance(x, dict):
        return {key: moved(value) for key, value in x.items()}
    if type(x) in (tuple, list):
        return type(x)(moved(value) for value in x)
    if isinstance(x, Counts):
        return Counts(x.name, moved(x.patterns))
    if isinstance(x, sa.bias.Bias):
        there = copy.copy(x)
        vars(there).update(moved(vars(x)))
        return there
    return x


def poisoned():
    """A context in which all memory from CuPy starts as NaN."""
    cupy = cupy_or_skip()

    def allocate(size):
        memory = cupy.get_default_memory_pool().malloc(size)
        if size:
            memory.memset_async(0xFF, size)
        return memory

    return cupy.cuda.using_allocator(allocate)


def _array(x):
    """(the array on the GPU, the bytes it is a view of, how many of them lie before it)."""
    cupy = cupy_or_skip()
    source = _bytes_of(x)
    lead = source.ctypes.data % ALIGNMENT
    memory = cupy.asarray(np.concatenate([np.full(lead, 0xFF, np.uint8), source]))
    at = lead + x.ctypes.data - source.ctypes.data
    return cupy.ndarray(x.shape, x.dtype, memory.data + at, x.strides), memory, lead


def _bytes_of(x):
    """All bytes from the first to the last that an array reaches."""
    low, high = np.lib.array_utils.byte_bounds(x)
    return np.frombuffer((ctypes.c_ubyte * (high - low)).from_address(low), np.uint8)


def _brought(x, there, here):
    """x with its CuPy arrays as NumPy's; `there` as `here`."""
    if x is not None and x is there:
        return here
    if hasattr(x, "__cuda_array_interface__"):
        return x.get()
    if type(x) in (tuple, list):
        return type(x)(_brought(value, there, here) for value in x)
    if isinstance(x, tuple):
        return type(x)(*(_brought(value, there, here) for value in x))
    return there_and_back(x) if callable(x) else x
