"""The kernels of numba_cuda and the portable ones of cupy_raw are twins: same files, functions, arguments and steps."""

import ast
import pathlib
import re

import pytest

import sparseattn

KERNELS = pathlib.Path(sparseattn.__file__).parent / "kernels"
CUDA = {path.stem: path for path in sorted((KERNELS / "cupy_raw").glob("*.cu")) if "_sm" not in path.stem}
STEPS = ("load_tile", "scores", "apply_mask", "online_softmax", "accumulate")


def cuda_arguments(path):
    """Names of the arguments of the kernel that is called as its file is."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    found = re.findall(rf'extern "C" __global__[^{{;]*?\b{path.stem}\s*\(([^)]*)\)\s*\{{', text)
    assert len(found) == 1, f"{path.name} has {len(found)} kernels called {path.stem}"
    return [re.search(r"(\w+)\s*$", argument)[1] for argument in found[0].split(",")]


def python_functions(path):
    """Name -> arguments of every function in a file, those within functions too; of several the longest list."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [a.arg for a in node.args.posonlyargs + node.args.args]
            found[node.name] = max(found.get(node.name, []), arguments, key=len)
    return found


def test_there_are_kernels():
    assert {"tile_forward", "tile_backward", "row_forward", "row_backward", "merge", "sum_slots", "row_dots"} <= {*CUDA}


@pytest.mark.parametrize("name", CUDA)
def test_same_file_function_and_arguments(name):
    twin = KERNELS / "numba_cuda" / f"{name}.py"
    assert twin.exists(), f"{name}.cu has no twin in numba_cuda"
    functions = python_functions(twin)
    assert name in functions, f"{twin.name} has no kernel called {name}"
    assert functions[name] == cuda_arguments(CUDA[name])


def test_same_steps():
    text = "".join((KERNELS / "cupy_raw" / name).read_text() for name in ("tiles.cuh", "products.cuh", "steps.cuh"))
    cuda = set(re.findall(r"__device__\s+__forceinline__[^;{(]*?\b(\w+)\s*\(", text))
    python = {f for name in ("tiles.py", "steps.py") for f in python_functions(KERNELS / "numba_cuda" / name)}
    for step in STEPS:
        assert step in cuda and step in python, step
