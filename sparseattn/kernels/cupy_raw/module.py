"""The .cu files compiled by NVRTC through CuPy, once per file, constants and device, and launched."""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import re
import struct
import threading
from typing import NamedTuple

import cupy

from sparseattn.kernels.cupy_raw.shapes import too_large

ARCHITECTURE_SPECIFIC = {"90": "90a"}  # CuPy asks for sm_90 by itself; NVRTC keeps the one of these options
FORMATS = {"int": "i", "u32": "I", "i64": "q", "float": "f"}
BUFFER_POINTER, BUFFER_SIZE = 1, 2  # of cuLaunchKernel's `extra`
PARAMETERS = 4096  # bytes that a kernel can have


class Kernel(NamedTuple):
    """A compiled kernel and what a launch needs to know of it."""

    function: int  # CUfunction
    kinds: tuple[str, ...]  # of its parameters: "rows", "pointer" or a scalar's format
    pack: struct.Struct
    raw: object  # keeps the module loaded


@functools.cache
def source(name: str) -> str:
    """The text of a kernel's file with the shared ones in front: CuPy's disk cache does not notice changes of
    headers."""
    folder = importlib.resources.files(__package__)
    more = ("gradients.cuh",) if name.endswith(("backward", "values")) else ()
    files = "tiles.cuh", "products.cuh", "steps.cuh", *more, f"{name}.cu"
    return "\n".join((folder / file).read_text() for file in files)


@functools.cache
def parameters(name: str) -> tuple[tuple[str, str], ...]:
    """(kind, name) of each parameter of a file's kernel, read from its text."""
    text = re.sub(r"//[^\n]*", "", source(name))
    listed, = re.findall(rf'extern "C" __global__[^;{{]*?\b{name}\s*\(([^)]*)\)', text)
    return tuple(_parameter(item) for item in listed.split(","))


def _parameter(item):
    words = item.replace("const ", "").replace("__restrict__", "").replace("__grid_constant__", "").strip()
    kind, name = re.fullmatch(r"(.*?[\s*>])\s*(\w+)", words).groups()
    return "rows" if "Rows<" in kind else "pointer" if "*" in kind else FORMATS[kind.strip()], name


def options(constants: dict, architecture: str) -> tuple[str, ...]:
    """The options of NVRTC for a set of constants."""
    target = ARCHITECTURE_SPECIFIC.get(architecture, architecture)
    return f"--gpu-architecture=sm_{target}", "-std=c++17", *(f"-D{name}={value}" for name, value in constants.items())


@functools.cache
def kernel(name: str, constants: tuple, shared: int, device: int) -> Kernel:
    """The kernel of file `name` for a device, allowed `shared` bytes of shared memory."""
    with cupy.cuda.Device(device) as here:
        architecture = here.compute_capability
        module = cupy.RawModule(code=source(name), options=options(dict(constants), architecture))
        raw = module.get_function(name)
        try:
            raw.max_dynamic_shared_size_bytes = shared
        except cupy.cuda.driver.CUDADriverError as error:
            raise NotImplementedError(too_large(name, dict(constants), allowed_memory(device))) from error
        kinds = tuple(kind for kind, _ in parameters(name))
        form = "@" + "".join({"rows": "P3q", "pointer": "P"}.get(kind, kind) for kind in kinds)
        return Kernel(raw.kernel.ptr, kinds, struct.Struct(form), (module, raw))


class Launch:
    """A launch on the current stream, fixed but for the arrays that it is given by name.

    Arrays are passed by address, those of rows with their steps, None as null; a number by name is the call's own.
    """

    def __init__(self, kernel: Kernel, grid, threads: int, shared: int, arguments, steps):
        self.kernel, self.shape = kernel, (*grid, threads, 1, 1, shared)
        self.kept = arguments  # the arrays among them must live on
        self.named = []  # places of addresses, names
        self.values: list = []
        for kind, x in zip(kernel.kinds, arguments, strict=True):
            if isinstance(x, str):
                self.named.append((len(self.values), x))
            if kind == "rows":
                self.values += (0, *(steps[x] if x is not None else (0, 0, 0)))
            elif kind == "pointer":
                self.values.append(0 if x is None or isinstance(x, str) else x.data.ptr)
            else:
                self.values.append(x)

    def __call__(self, arrays):
        values = self.values.copy()
        for place, name in self.named:
            x = arrays[name]
            values[place] = x if type(x) is int else 0 if x is None else x.data.ptr
        _own.size.value = self.kernel.pack.size
        self.kernel.pack.pack_into(_own.buffer, 0, *values)
        error = _driver()(self.kernel.function, *self.shape, cupy.cuda.get_current_stream().ptr, None, _own.extra)
        if error:
            grid, threads, shared = self.shape[:3], self.shape[3], self.shape[6]
            raise RuntimeError(f"a kernel could not be launched: CUDA error {error}, grid {grid}, {threads} threads, "
                               f"{shared} bytes of shared memory")


class _Own(threading.local):
    """Where a thread puts the parameters of a launch, which are read before the launch returns."""

    def __init__(self):
        self.buffer = bytearray(PARAMETERS)
        self.memory = (ctypes.c_char * PARAMETERS).from_buffer(self.buffer)
        self.size = ctypes.c_size_t()
        self.extra = (ctypes.c_void_p * 5)(BUFFER_POINTER, ctypes.addressof(self.memory), BUFFER_SIZE,
                                           ctypes.addressof(self.size), 0)


_own = _Own()


@functools.cache
def _driver():
    """cuLaunchKernel of the driver that CuPy has loaded."""
    function = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
    number, address = ctypes.c_uint, ctypes.c_void_p
    function.argtypes = (address, *7 * (number,), address, address, address)
    return function


def current_device() -> int:
    """The number of the GPU that work goes to now."""
    return cupy.cuda.runtime.getDevice()


@functools.cache
def allowed_memory(device: int) -> int:
    """Bytes of shared memory that a GPU allows a thread block that asks for them."""
    runtime = cupy.cuda.runtime
    return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device)
