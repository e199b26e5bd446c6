"""Compile the kernels of cupy_raw by NVRTC, without a GPU: .ci/cuda.py [--all] FOLDER ...

Each folder holds an unpacked wheel of NVRTC (nvidia-cuda-nvrtc-cu12, nvidia-cuda-nvrtc). The launch table can ask for
thousands of sets of constants, hours of compiling. So every version compiles for each architecture a choice of sets in
which every file has every value of every constant, and the last folder's for sm_90a also one in which any two constants
of a file have every two values that occur together. --all: every set, by the last folder's, for sm_90a.
Every set is held to the shared memory of the smallest architecture.
"""

import argparse
import ctypes
import itertools
import os
import pathlib
import sys
import time
import types
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.modules.setdefault("cupy", types.ModuleType("cupy"))  # imported by module.py, whose texts and options need no CuPy

from sparseattn.kernels.cupy_raw import module, run, shapes  # noqa: E402

ARCHITECTURES = "80", "90", "90a"
SHARED = 163 * 1024  # bytes that a thread block can have on sm_80


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every set of constants")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    table = {}
    for name, constants in run.variants():
        table.setdefault(name, []).append(constants)
    missing = sum(not_launchable(name, sets) for name, sets in table.items())
    libraries = [library_in(folder) for folder in args.folders]
    failed = 0
    for path in libraries:
        tables = {architecture: chosen(table, 1) for architecture in ARCHITECTURES}
        if path == libraries[-1]:
            tables[ARCHITECTURES[-1]] = table if args.all else chosen(table, 2)
        failed += compile_tables(path, tables)
    sys.exit(bool(failed or missing))


def chosen(table, strength):
    return {name: covering(sets, strength) for name, sets in table.items()}


def not_launchable(name, sets):
    """How many sets of constants ask for more shared memory than there is; printed."""
    asked = [(shapes.shape_of(name, constants).shared, constants) for constants in sets]
    most, constants = max(asked, key=lambda pair: pair[0])
    words = f", more than {SHARED}: {constants}" if most > SHARED else ""
    print(f"{name:<15}{len(sets):>5} sets of constants, at most {most:>6} bytes of shared memory{words}")
    return sum(size > SHARED for size, _ in asked)


def library_in(folder):
    found = [path for path in folder.glob("**/libnvrtc.so.*") if "alt" not in path.name]
    if len(found) != 1:
        sys.exit(f"{folder} holds {len(found)} libnvrtc.so.*; expected one, of an unpacked wheel")
    return str(found[0])


def covering(sets, strength):
    """Some of the sets of constants: together they have all that so many constants have together in any of them."""
    numbers = {}  # of each combination
    bits = []
    for constants in sets:
        met = itertools.combinations(constants.items(), strength)
        bits.append(sum(1 << numbers.setdefault(combination, len(numbers)) for combination in met))
    open_ones, chosen = (1 << len(numbers)) - 1, []
    while open_ones:
        best = max(range(len(sets)), key=lambda i: (bits[i] & open_ones).bit_count())
        chosen.append(sets[best])
        open_ones &= ~bits[best]
    return chosen


def compile_tables(path, tables):
    """Compile sets of constants by architecture and file in a process a core; return how many failed."""
    jobs = [(path, architecture, name, constants) for architecture, table in tables.items()
            for name, sets in table.items() for constants in sets]
    jobs.sort(key=lambda job: job[2], reverse=True)  # the kernels of tiles, which take longest, first
    with ProcessPoolExecutor(os.cpu_count()) as pool:  # versions of NVRTC never meet in a process
        results = list(pool.map(compiled, jobs))
    for architecture, table in tables.items():
        print(f"\nNVRTC {'.'.join(map(str, results[0][0]))}, sm_{architecture}")
        for name in table:
            show(name, [(job[3], result) for job, result in zip(jobs, results) if job[1:3] == (architecture, name)])
    return sum(bad for _, bad, _, _ in results)


def show(name, results):
    """A line of a file's sets of constants, and what NVRTC says to some that failed."""
    print(f"  {name:<15}{len(results):>5} compiled in {sum(result[3] for _, result in results):>6.1f} s", flush=True)
    wrong = [(constants, result[2]) for constants, result in results if result[1]]
    for constants, log in wrong[:3]:
        print(f"    {len(wrong)} FAILED, one with {constants}:\n{log[:2000]}", flush=True)


def compiled(job):
    """(version, whether it failed, what NVRTC says, seconds) of a file with a set of constants."""
    path, architecture, name, constants = job
    begin = time.perf_counter()
    nvrtc, program, size = ctypes.CDLL(path), ctypes.c_void_p(), ctypes.c_size_t()
    version = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(*map(ctypes.byref, version))
    options = [f"--gpu-architecture=sm_{architecture}"] + [
        option for option in module.options(constants, architecture) if not option.startswith("--gpu-architecture")]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), module.source(name).encode(), f"{name}.cu".encode(), 0, None, None)
    bad = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(
        *(option.encode() for option in options)))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return tuple(v.value for v in version), bool(bad), log.value.decode(errors="replace"), time.perf_counter() - begin


if __name__ == "__main__":
    main()
