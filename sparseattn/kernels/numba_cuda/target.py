"""The one place that imports a compiler of Python for GPUs: numba-cuda-mlir, else numba-cuda, else Numba's own.

Numba's is also the one that NUMBA_ENABLE_CUDASIM=1 turns into a simulator, which runs kernels on NumPy arrays.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import SIMULATED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of these packages about the NumPy they were not made for
    if not SIMULATED and importlib.util.find_spec("numba_cuda_mlir"):
        from numba_cuda_mlir import cuda
    else:
        from numba import cuda  # numba-cuda, where it is installed, stands in for it


def compiled(kernel, registers=None):
    """A kernel that is compiled at its first launch, with at most so many registers a thread."""
    return cuda.jit(kernel) if SIMULATED or registers is None else cuda.jit(max_registers=registers)(kernel)


if SIMULATED:
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray as memory_of

    @cuda.jit(device=True)
    def bits_of(x):
        """The bits of a float32, as int32."""
        return np.float32(x).view(np.int32)

    @cuda.jit(device=True)
    def from_bits(word):
        """The float32 of these bits."""
        return np.int32(word).view(np.float32)

    @cuda.jit(device=True)
    def chosen(first, x, y):
        """x or y, both of which are computed."""
        return x if first else y

else:

    def memory_of(x):
        """The memory of a CuPy array as kernels take it, without waiting for any stream."""
        return cuda.as_cuda_array(x, sync=False)

    @cuda.jit(device=True)
    def bits_of(x):
        """The bits of a float32, as int32."""
        return cuda.libdevice.float_as_int(x)

    @cuda.jit(device=True)
    def from_bits(word):
        """The float32 of these bits."""
        return cuda.libdevice.int_as_float(np.int32(word))

    @cuda.jit(device=True)
    def chosen(first, x, y):
        """x or y, both of which are computed."""
        return cuda.selp(first, x, y)
