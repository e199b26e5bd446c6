"""Compile the kernels of cupy_raw and of selection by NVRTC, without a GPU: .ci/cuda.py [--all] FOLDER ...

Each folder holds an unpacked wheel of NVRTC (nvidia-cuda-nvrtc-cu12, nvidia-cuda-nvrtc). The launch table can ask for
thousands of sets of constants, hours of compiling. So every version compiles for each architecture a choice of sets in
which every file has every value of every constant. In all these choices together any two constants of a file have every
two values that occur together for sm_90a. --all: every set, by the last folder's, for sm_90a. Sets that only GPUs with
less shared memory ask for are compiled by the last folder's for one of those: every tile, and every value. Every set is
held to the shared memory of the smallest architecture that asks for it.
"""

import argparse
import ctypes
import functools
import itertools
import operator
import os
import pathlib
import struct
import sys
import time
import types
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.modules.setdefault("cupy", types.ModuleType("cupy"))  # imported by module.py, whose texts and options need no CuPy

from sparseattn.kernels.cupy_raw import module, run, shapes  # noqa: E402
from sparseattn.selection import largest  # noqa: E402

ARCHITECTURES = "80", "90", "90a"
SMALL = "86"
MEMORY = {"80": 163 * 1024, "90": 227 * 1024, "90a": 227 * 1024, SMALL: 99 * 1024}  # bytes that a thread block can have
STATIC = 48 * 1024  # bytes that a kernel can declare without asking
SYSTEM = 1024  # bytes in front of those that a kernel declares, from sm_90 on
NUMBERS = itertools.count()  # of combinations of constants


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every set of constants")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    sets = {memory: sets_of(memory) for memory in set(MEMORY.values())}
    found = {architecture: sets[memory] for architecture, memory in MEMORY.items()}
    small = {name: new for name, own in found[SMALL].items() if (new := without(own, found["80"][name]))}
    missing = not_launchable(found["80"], MEMORY["80"]) + not_launchable(small, MEMORY[SMALL])
    libraries = [library_in(folder) for folder in args.folders]
    choices = chosen([found[architecture] for _ in libraries for architecture in ARCHITECTURES])
    failed = 0
    for path in libraries:
        tables = {architecture: choices.pop(0) for architecture in ARCHITECTURES}
        if path == libraries[-1]:
            tables[SMALL] = {name: of_each_tile(sets) for name, sets in small.items()}
            if args.all:
                tables[ARCHITECTURES[-1]] = found[ARCHITECTURES[-1]]
        failed += compile_tables(path, tables)
    sys.exit(bool(failed or missing))


def sets_of(memory):
    """All sets of constants by file."""
    table = {}
    for name, constants in run.variants(memory):
        table.setdefault(name, []).append(constants)
    return {**table, "largest": [{"SCORE_BITS": 32}, {"SCORE_BITS": 64}]}


def source(name):
    return largest.text() if name == "largest" else module.source(name)


def shape_of(memory, name, constants):
    """What a launch asks for, and what the text may declare."""
    return shapes.Shape({}, largest.THREADS, declared=STATIC) if name == "largest" else shapes.shape_of(
        memory, name, constants)


def without(sets, others):
    known = {tuple(constants.items()) for constants in others}
    return [constants for constants in sets if tuple(constants.items()) not in known]


def chosen(tables):
    """Some of the sets of each table: in each of them every value, in all together every two that the last one has."""
    choices = [{} for _ in tables]
    for name in tables[-1]:
        pairs = of_all(tables[-1][name], 2)
        for table, choice in zip(tables, choices):
            needed = of_all(table[name], 1) | (pairs if choice is choices[-1] else 0)
            choice[name], pairs = covering(table[name], needed, pairs)
    return choices


def not_launchable(table, memory):
    """How many sets of constants ask for more shared memory than there is; printed."""
    print(f"\n{memory} bytes of shared memory")
    found = 0
    for name, sets in table.items():
        asked = [(shape_of(memory, name, constants).shared, constants) for constants in sets]
        most, constants = max(asked, key=lambda pair: pair[0])
        words = f", more than there is: {constants}" if most > memory else ""
        print(f"  {name:<15}{len(sets):>5} sets of constants, at most {most:>6} bytes{words}")
        found += sum(size > memory for size, _ in asked)
    return found


def library_in(folder):
    found = [path for path in folder.glob("**/libnvrtc.so.*") if "alt" not in path.name]
    if len(found) != 1:
        sys.exit(f"{folder} holds {len(found)} libnvrtc.so.*; expected one, of an unpacked wheel")
    return str(found[0])


def covering(sets, needed, wanted=0):
    """(some of the sets of constants: together all combinations needed, some of those wanted; what is still wanted).

    The next set is the one with most of them for the root of its cost; for the cost itself, many small ones were taken.
    """
    chosen, wanted = [], needed | wanted
    have = [bits(constants, 1) | bits(constants, 2) for constants in sets]
    costs = [cost(constants)**0.5 for constants in sets]
    while open_ones := needed & wanted:
        useful = [i for i in range(len(sets)) if have[i] & open_ones]
        best = max(useful, key=lambda i: (have[i] & wanted).bit_count() / costs[i])
        chosen.append(sets[best])
        wanted &= ~have[best]
    return chosen, wanted


def cost(constants):
    """About how the time of a file's sets goes: with the columns and their bits, and less where copies are wide."""
    return constants.get("HEAD_DIM", 1) * constants.get("BITS", 1) * (2 - constants.get("WIDE", 0))


def of_all(sets, size):
    return functools.reduce(operator.or_, (bits(constants, size) for constants in sets))


def bits(constants, size):
    """A bit for each combination of so many constants with their values."""
    return _bits(tuple(constants.items()), size)


@functools.cache
def _bits(items, size):
    return sum(1 << _number(combination) for combination in itertools.combinations(items, size))


@functools.cache
def _number(combination):
    return next(NUMBERS)


def of_each_tile(sets):
    """Some of the sets: together every value, and every tile of every width."""
    tiles = [tuple(constants.get(key) for key in ("BITS", "HEAD_DIM", "ROWS", "KV")) for constants in sets]
    tiled = [{**constants, "tile": tile} for constants, tile in zip(sets, tiles)]
    chosen, _ = covering(tiled, of_all(tiled, 1))
    return [{key: value for key, value in constants.items() if key != "tile"} for constants in chosen]


def compile_tables(path, tables):
    """Compile sets of constants by architecture and file in a process a core; return how many failed."""
    jobs = [(path, architecture, name, constants) for architecture, table in tables.items()
            for name, sets in table.items() for constants in sets]
    jobs.sort(key=lambda job: (job[2], cost(job[3])), reverse=True)  # those of tiles, which take longest, first
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
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source(name).encode(), f"{name}.cu".encode(), 0, None, None)
    bad = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(
        *(option.encode() for option in options)))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    words = log.value.decode(errors="replace")
    if not bad:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        declared = declared_memory(cubin.raw, name) - (0 if architecture < "90" else SYSTEM)
        known = shape_of(MEMORY[architecture], name, constants).declared
        bad, words = declared > known, f"declares {declared} bytes of shared memory, shapes.py counts on {known}"
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return tuple(v.value for v in version), bool(bad), words, time.perf_counter() - begin


def declared_memory(cubin, name):
    """Bytes of shared memory that the text of a kernel declares: the size of a section of its ELF file."""
    at, = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    headers = [struct.unpack_from("<2I4Q", cubin, at + i * size) for i in range(count)]  # name, _, _, _, offset, size
    first = headers[names][4]
    wanted = f".nv.shared.{name}\0".encode()
    return sum(header[5] for header in headers if cubin.startswith(wanted, first + header[0]))


if __name__ == "__main__":
    main()
