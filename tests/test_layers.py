"""Imports point one way, and heavy packages stay where they belong: read from the sources."""

import ast
import pathlib
import subprocess
import sys

import pytest

import sparseattn

ROOT = pathlib.Path(sparseattn.__file__).parent
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(ROOT.rglob("*.py"))}

# from the bottom up: a module imports from its own layer or lower ones
LAYERS = (
    ("sparseattn.xp", "sparseattn.structure", "sparseattn.options", "sparseattn.pool"),
    ("sparseattn.index_ops",),
    ("sparseattn.pattern", "sparseattn.selection"),
    ("sparseattn.patterns", "sparseattn.kernels"),
    ("sparseattn.dispatch",),
    ("sparseattn.terms", "sparseattn.counts"),
    ("sparseattn.bias",),
    ("sparseattn.checks",),
    ("sparseattn.attention",),
    ("sparseattn.variants",),
    ("sparseattn.explain",),
    ("sparseattn.profiling",),
    ("sparseattn",),
    ("sparseattn.cli", "sparseattn.demo"),
)

# one import is against the direction: Pattern.prepare names a backend, inside the function
ALLOWED = {("sparseattn.pattern.core", "sparseattn.dispatch")}

# what backends of a GPU share has a folder beside them
GPU_BACKENDS = ("sparseattn.kernels.cupy_raw", "sparseattn.kernels.numba_cuda")

# package: (where it may be imported at all, where at the top of a module)
HEAVY = {
    "numba": (("sparseattn.kernels.numba_cpu", "sparseattn.kernels.numba_cuda.target",
               "sparseattn.selection.compiled",
               "sparseattn.profiling.compiled", "sparseattn.profiling.walk"),) * 2,
    "numba_cuda_mlir": (("sparseattn.kernels.numba_cuda.target",),) * 2,
    "llvmlite": (("sparseattn.kernels.numba_cpu",),) * 2,
    "cupy": (("sparseattn.xp", "sparseattn.kernels"), ("sparseattn.kernels.cupy_raw.module",)),
    "scipy": (("sparseattn",), ()),
    "matplotlib": (("sparseattn",), ()),
    "ml_dtypes": (("sparseattn",), ()),
    "torch": ((), ()),
}


def imports(module):
    """(imported module, whether at the top) of every import in a module; a package's members count as modules."""
    tree = ast.parse(MODULES[module].read_text())
    inside = {child for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
              for child in ast.walk(node)}
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    typing_only = {child for node in typed for child in ast.walk(node)}
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative path; write the whole one"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                yield (member if member in MODULES else node.module), node not in inside


def within(module, packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


def layer(module):
    """The highest number whose names hold the module: `sparseattn` itself holds only what no other layer does."""
    return next(i for i, names in enumerate(LAYERS) if within(module, [n for n in names if n != "sparseattn"])
                or module in names)


@pytest.mark.parametrize("module", MODULES)
def test_direction(module):
    for imported, _ in imports(module):
        if imported.split(".")[0] == "sparseattn" and (module, imported) not in ALLOWED:
            assert layer(imported) <= layer(module), f"{module} imports {imported}, which lies above it"


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, ["sparseattn.kernels"])])
def test_backends_know_neither_families_nor_each_other(module):
    own = ".".join(module.split(".")[:3])
    for imported, _ in imports(module):
        assert not within(imported, ["sparseattn.patterns"])
        if within(imported, ["sparseattn.kernels"]):
            shared = ["sparseattn.kernels.estimates"] + (["sparseattn.kernels.gpu"] if own in GPU_BACKENDS else [])
            assert within(imported, [own, *shared]) or imported == "sparseattn.kernels"


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, ["sparseattn.patterns"])])
def test_families_know_no_kernels(module):
    assert not any(within(imported, ["sparseattn.kernels"]) for imported, _ in imports(module))


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages(module):
    if within(module, ["sparseattn.demo", "sparseattn.cli"]):
        return
    for imported, at_top in imports(module):
        package = imported.split(".")[0]
        if package in HEAVY:
            anywhere, top = HEAVY[package]
            assert within(module, top if at_top else anywhere), f"{module} imports {imported}"


def test_importing_is_light():
    script = "import sys, sparseattn; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"numba", "llvmlite", "scipy", "matplotlib", "cupy", "rich", "ml_dtypes", "torch"} & set(found)


def test_public_names():
    assert sorted(sparseattn.__all__) == sparseattn.__all__
    for name in ("attend", "attend_backward", "vjp", "merge", "explain", "backends", "set_threads", "threads", "warm",
                 "Gradients", "Pattern", "BlockCSR", "patterns", "bias", "variants", "reach", "Reach", "recommend",
                 "profile", "Profile", "Recommendation", "__version__"):
        assert name in sparseattn.__all__ and hasattr(sparseattn, name)
