"""The two ways functions are compiled here."""

import functools
import hashlib
import pathlib

from numba import njit, types

from sparseattn.kernels.numba_cpu.simd import computed
from sparseattn.kernels.numba_cpu.terms import FlatOptions

# Called from kernels only: no entry for Python or C is compiled, and the kernel's cache file holds their code.
step = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

STORED = {"float32": types.float32, "float64": types.float64, "float16": types.uint16, "bfloat16": types.int16}


def _options(stored):
    array = types.Array
    fields = (types.float64, array(computed(stored), 1, "C", readonly=True), array(types.int64, 3, "C", readonly=True),
              array(types.int32, 1, "C", readonly=True), *3 * (array(types.int64, 1, "C", readonly=True),), types.int64,
              types.float64, types.int64)
    return types.NamedTuple(fields, FlatOptions)


_KINDS = {
    "options": _options,
    "stored": lambda stored: types.Array(stored, 4, "A", readonly=True),
    "stored out": lambda stored: types.Array(stored, 4, "A"),
    "stored flat": lambda stored: types.Array(stored, 1, "C"),
    "computed": lambda stored: types.Array(computed(stored), 4, "A"),
    "stats": lambda stored: types.Array(computed(stored), 3, "A"),
    "scratch": lambda stored: types.Array(computed(stored), 1, "C"),
    "int32": lambda stored: types.Array(types.int32, 1, "C", readonly=True),
    "int64": lambda stored: types.Array(types.int64, 1, "C", readonly=True),
    "table": lambda stored: types.Array(types.int64, 2, "C", readonly=True),
    "places": lambda stored: types.Array(types.int64, 3, "C", readonly=True),
    "bits": lambda stored: types.Array(types.uint16, 1, "C", readonly=True),
    "tokens": lambda stored: types.Array(types.int32, 1, "C"),
    "counters": lambda stored: types.Array(types.int64, 1, "C"),
    "int": lambda stored: types.int64,
    "bool": lambda stored: types.boolean,
    "float": lambda stored: types.float64,
}


@functools.cache
def _sources(*others):
    files = *sorted(pathlib.Path(__file__).parent.glob("*.py")), *map(pathlib.Path, others)
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def _stamp(dispatcher, *others):
    """Numba compares only the file of a function with its cache; steps and registers that it calls lie in others."""
    index = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if index is not None:
        index._source_stamp = _sources(*others)


def cached(function):
    """Compile a function that uses the registers, from another folder; it is kept as long as neither changes."""
    dispatcher = njit(cache=True, nogil=True)(function)
    _stamp(dispatcher, function.__code__.co_filename)
    return dispatcher


def kernel(**arguments):
    """Make a function an entry called from Python: `function(dtype name)` is what is compiled for that storage dtype.

    `arguments` names the kind of each argument. One signature a dtype, whatever the layout of the arrays: the entry
    takes any array of the right dtype and dimensions, so a new layout, length or pattern never compiles anything.
    """

    def decorate(function):
        dispatcher = njit(cache=True, nogil=True, error_model="numpy")(function)
        if tuple(arguments) != tuple(dispatcher.py_func.__code__.co_varnames[:len(arguments)]):
            raise TypeError(f"the kinds of {function.__name__}'s arguments are not in their order")
        _stamp(dispatcher)

        @functools.cache
        def entry(name):
            stored = STORED[name]
            signature = tuple(_KINDS[kind](stored) for kind in arguments.values())
            dispatcher.compile(signature)
            return dispatcher.overloads[signature].entry_point

        entry.__name__, entry.__doc__, entry.dispatcher = function.__name__, function.__doc__, dispatcher
        return entry

    return decorate


def cache_folder() -> str:
    """Where Numba keeps the compiled kernels: beside this file, or in a folder of the user's where it is read-only."""
    return njit(cache=True)(cache_folder).stats.cache_path
