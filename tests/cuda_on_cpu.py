"""The .cu files of cupy_raw on the CPU, thread by thread: rewritten as C++, compiled by g++, launched on NumPy arrays.

Slow, and blind to races, but it is the text that NVRTC compiles, without a GPU. cuda_on_cpu.h has the GPU.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import pathlib
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import types
from unittest import mock

import numpy as np

from sparseattn.kernels.cupy_raw import run, shapes
from sparseattn.kernels.gpu.target import Target
from sparseattn.selection import largest as selection
from sparseattn.xp import address

NUMBERS = itertools.count()
HEADER = pathlib.Path(__file__).with_suffix(".h")
FLAGS = "-O1", "-std=c++17", "-w", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC"


def why_not() -> str | None:
    """Why kernels cannot run here, or None."""
    if platform.system() != "Linux" or shutil.which("g++") is None:
        return "kernels run on the CPU where there is g++, on Linux"
    return None


@functools.cache
def target(memory):
    """The kernels as a GPU has them that allows a thread block so many bytes of shared memory."""
    return Target("cuda_on_cpu", shapes.BLOCK_Y, functools.partial(shapes.rows, memory),
                  functools.partial(bind, memory))


def bind(memory, name, constants, grid, arguments, steps):
    """The function of the arrays of a call that runs a kernel."""
    constants = {key: constants[key] for key in run.CONSTANTS[name]}
    shape = shapes.shape_of(memory, name, constants)
    library = _library(name, tuple({**constants, **shape.constants}.items()))
    grid = run._whole_grid(name, grid, shape.threads, shape.slices)
    kinds = [kind for kind, _ in _module().parameters(name)]
    form = struct.Struct("@" + "".join({"rows": "P3q", "pointer": "P"}.get(kind, kind) for kind in kinds) + "0q")

    def launched(arrays):
        values = []
        for kind, x in zip(kinds, arguments, strict=True):
            array = arrays[x] if isinstance(x, str) else x
            if kind in ("rows", "pointer"):
                values.append(0 if array is None else address(array))
                values += (steps[x] if x is not None else (0, 0, 0)) if kind == "rows" else ()
            else:
                values.append(array)
        library().launch(form.pack(*values), *grid, shape.threads)

    return launched


@functools.cache
def _module():
    """A copy of cupy_raw's module of texts, which imports CuPy but needs none for what is asked of it here."""
    spec = importlib.util.find_spec("sparseattn.kernels.cupy_raw.module")
    module = importlib.util.module_from_spec(spec)
    absent = {} if importlib.util.find_spec("cupy") else {"cupy": types.ModuleType("cupy")}
    with mock.patch.dict(sys.modules, absent):
        spec.loader.exec_module(module)
    return module


@functools.cache
def _folder():
    """A folder for what is compiled; in it the header, compiled once for all."""
    folder = tempfile.TemporaryDirectory()
    header = shutil.copy(HEADER, folder.name)
    subprocess.run(["g++", *FLAGS, header, "-o", f"{header}.gch"], check=True)
    return folder


def largest(scores, n_selected, limits):
    """`selection.largest.of_rows` of NumPy's scores, by its kernel."""
    scores, limits = np.ascontiguousarray(scores), np.ascontiguousarray(limits, np.int32)
    chosen = np.full((*scores.shape[:-1], n_selected), -9, np.int32)
    kernel = _library("largest", (("SCORE_BITS", 8 * scores.itemsize),), selection.text)
    given = struct.pack("@PPiiiP", address(scores), address(limits), *scores.shape[-2:], n_selected, address(chosen))
    kernel().launch(given, chosen.size // n_selected, 1, 1, selection.THREADS)
    return chosen


@functools.cache
def _library(name, constants, text=None):
    """A function that gives the compiled kernel of a file for a set of constants; `text`: the function that gives its
    text. The compiler is started now and waited for then: the kernels of a call are compiled beside each other."""
    defines = "".join(f"#define {key} {value}\n" for key, value in constants)
    text = _plain(text() if text else _module().source(name))
    *_, listed = re.findall(rf"\b{name}\s*\(([^)]*)\)\s*{{", text)
    names = [re.search(r"(\w+)\s*$", item)[1] for item in listed.split(",")]
    members = "".join(f"{item.strip()};\n" for item in listed.split(","))
    launch = (f"struct Arguments {{\n{members}}};\nstatic Arguments given;\n"
              f"static void kernel() {{ {name}({', '.join(f'given.{x}' for x in names)}); }}\n"
              f"""extern "C" void launch(const void* arguments, int nx, int ny, int nz, int threads) {{
  memcpy((void*)&given, arguments, sizeof given);
  body = kernel;
  gridDim = {{(unsigned)nx, (unsigned)ny, (unsigned)nz}};
  const unsigned before = flushing();
  for (int z = 0; z < nz; z++)
    for (int y = 0; y < ny; y++)
      for (int x = 0; x < nx; x++) {{ blockIdx = {{(unsigned)x, (unsigned)y, (unsigned)z}}; run_block(threads); }}
  restore(before);
}}
""")
    file = pathlib.Path(_folder().name) / f"{name}_{next(NUMBERS)}.cpp"
    file.write_text(f'#include "{HEADER.name}"\n{defines}{text}{launch}')
    compiler = subprocess.Popen(["g++", *FLAGS, file, "-o", file.with_suffix(".so")], stderr=subprocess.PIPE, text=True)

    @functools.cache
    def loaded():
        words = compiler.communicate()[1]
        assert compiler.returncode == 0, words[:3000]
        return ctypes.CDLL(file.with_suffix(".so"))

    return loaded


def _plain(text):
    """The text of a kernel without what C++ does not know."""
    text = re.sub(r"//[^\n]*", "", text)
    text = _without_assembly(text)
    text = re.sub(r"extern __shared__[^;]*;|__launch_bounds__\([^)]*\)|__global__", "", text)
    text = re.sub(r"__shared__ (?:__align__\(\d+\) )?", "static ", text)
    text = re.sub(r"__align__\((\d+)\)", r"alignas(\1)", text)
    text = re.sub(r"(?:static )?__device__ __forceinline__", lambda found: "static inline" if found[0][0] == "s" else
                  "inline", text)
    return text.replace('extern "C"', "static")


def _without_assembly(text):
    """Every asm statement as what it does, in C++."""
    made, at = [], 0
    for found in re.finditer(r"\basm(?: volatile)?\(", text):
        inside, = _split(text[found.end():], ")")[:1]
        code, *operands = _split(inside.replace("::", ": :"), ":")
        outs, ins = ([_operand(x) for x in _split(part, ",") if x.strip()] for part in (*operands, "", "")[:2])
        end = found.end() + len(inside) + 1
        made += text[at:found.start()], "{", _statement(code, outs, ins), "}"
        at = end + (text[end] == ";")
    return "".join(made) + text[at:]


def _split(text, separator):
    """The text cut where the separator stands outside of brackets and quotes; up to a bracket that closes nothing."""
    pieces, depth, quoted, begin = [], 0, False, 0
    for i, c in enumerate(text):
        quoted ^= c == '"'
        if quoted:
            continue
        if depth == 0 and c in (separator, ")"):
            pieces.append(text[begin:i])
            begin = i + 1
            if c == ")":
                return pieces
        depth += (c in "([{") - (c in ")]}")
    return [*pieces, text[begin:]]


def _operand(text):
    return re.fullmatch(r'\s*"[^"]*"\s*\((.*)\)\s*', text, re.DOTALL)[1]


def _statement(code, outs, ins):
    for word, make in STATEMENTS.items():
        if word in code:
            return make(code, outs, ins)
    raise ValueError(f"an instruction that cuda_on_cpu.py does not know: {code}")


def _set(outs, array):
    return "".join(f"{out} = {array}[{i}];" for i, out in enumerate(outs))


def _product(code, outs, ins):
    sums = "0, 0, 0, 0" if "%10" in code else ", ".join(outs)
    return f"""const float sums_[4] = {{{sums}}}; const unsigned left_[4] = {{{', '.join(ins[:4])}}}; float result_[4];
multiply(result_, left_, {ins[4]}, {ins[5]}, sums_, BITS == 32 && !HALVES ? 't' : FP16 || HALVES ? 'h' : 'b');
{_set(outs, 'result_')}"""


def _copy(code, outs, ins):
    if "cp.async.cg" in code:
        return (f"if ({ins[2]} < 0 || {ins[3]}) memset(shared_at({ins[0]}), 0, 16); "
                f"else memcpy(shared_at({ins[0]}), {ins[1]}, 16);")
    return f"memcpy(shared_at({ins[0]}), {ins[1]}, {8 if ', 8;' in code else ins[2]});"


def _load(code, outs, ins):
    return f"const char* from_ = shared_at({ins[0]});" + "".join(
        f"memcpy(&{out}, from_ + {4 * i}, 4);" for i, out in enumerate(outs))


def _store(code, outs, ins):
    return f"char* to_ = shared_at({ins[0]});" + "".join(
        f"{{ const auto word_ = {x}; memcpy(to_ + {4 * i}, &word_, 4); }}" for i, x in enumerate(ins[1:]))


# a word of an instruction -> C++ of (instruction, outputs, inputs); the first that is found counts
STATEMENTS = {
    "MMA": _product,
    "ldmatrix": lambda code, outs, ins: (f"unsigned result_[4]; load_matrices(result_, {ins[0]}, "
                                         f"{int('trans' in code)}); {_set(outs, 'result_')}"),
    "ex2.approx": lambda code, outs, ins: f"{outs[0]} = exp2f({ins[0]});",
    "cvt.rn.f16x2": lambda code, outs, ins: f"{outs[0]} = to_half({ins[0]}) << 16 | to_half({ins[1]});",
    "cvt.rn.bf16x2": lambda code, outs, ins: f"{outs[0]} = to_bfloat({ins[0]}) << 16 | to_bfloat({ins[1]});",
    "cvt.f32.f16": lambda code, outs, ins: f"{outs[0]} = from_half({ins[0]} & 0xffff);"
                                           f"{outs[1]} = from_half({ins[0]} >> 16);",
    "_group": lambda code, outs, ins: "",  # copies are made at once
    "cp.async": _copy,
    "ld.global": lambda code, outs, ins: f"memcpy(&{outs[0]}, (const char*){ins[1]} + (long long){ins[0]} * 4, 4);",
    "st.global": lambda code, outs, ins: f"const unsigned words_[4] = {{{', '.join(ins[1:5])}}};"
                                         f"if ({ins[5]} >= 0) memcpy((void*)({ins[0]}), words_, 16);",
    "mad.wide": lambda code, outs, ins: f"{outs[0]} = (const char*){ins[2]} + (long long){ins[0]} * {ins[1]};",
    "ld.shared": _load,
    "st.shared": _store,
    "red.shared": lambda code, outs, ins: f"*(unsigned*)shared_at({ins[0]}) += (unsigned)({ins[1]});",
    "bar.sync": lambda code, outs, ins: f"meet_at(named_barriers[{ins[0]}], 64);",
}
