"""The command line: `sparseattn demo` and `sparseattn info`."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from importlib import metadata

import sparseattn as sa


def main(arguments=None):
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sparseattn", description="Sparse attention for NumPy arrays.")
    parser.add_argument("--version", action="version", version=f"sparseattn {sa.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_demo(commands)
    info = commands.add_parser("info", help="versions, threads, and which backends can run here")
    info.set_defaults(command=_info)
    options = parser.parse_args(arguments)
    return options.command(options)


def _add_demo(commands):
    demo = commands.add_parser("demo", help="a trained model on real text, dense and sparse; then 65,536 tokens")
    demo.add_argument("--file", metavar="PATH", help="read the beginning of this file instead of the samples")
    demo.add_argument("--quick", action="store_true", help="short texts and 8,192 tokens")
    demo.add_argument("--out", metavar="PATH", default="demo.png", help="the picture to write (default: demo.png)")
    demo.add_argument("--threads", metavar="N", type=_positive, help="threads for attention (default: CPUs allowed)")
    demo.set_defaults(command=_demo)


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected at least 1")
    return number


def _demo(options):
    missing = [name for name in ("rich", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"the demo needs {' and '.join(missing)}; install with: pip install 'sparseattn[demo]'")
    from sparseattn.demo import run

    sizes = run.QUICK if options.quick else run.FULL
    try:
        texts = run.inputs(options.file, options.out, sizes)
    except (OSError, ValueError) as error:
        return _fail(error)
    run.run(texts, sizes, out=options.out, threads=options.threads)
    return 0


def _fail(message):
    print(f"sparseattn: {message}", file=sys.stderr)
    return 1


def _info(options):
    for name, value in facts():
        print(f"{name:<14}{value}")
    return 0


def facts():
    """(name, value) of everything that a bug report should say."""
    yield "sparseattn", sa.__version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in ("numpy", "numba", "scipy", "ml_dtypes"):
        yield name, _version(name) or "not installed"
    for backend in sa.backends():
        yield "backend", f"{backend.name}: {_state(backend)}"
    if _version("numba"):
        from sparseattn.kernels.numba_cpu import compile, simd
        from sparseattn.pool import n_threads

        yield "CPU vectors", f"{simd.VECTOR_BITS} bits"
        yield "threads", n_threads()
        # Numba keeps the kernels where it would keep any function of their folder.
        yield "cache", compile.njit(cache=True)(compile.kernel).stats.cache_path


def _state(backend):
    if not backend.usable:
        return "not usable: " + "; ".join(filter(None, (backend.reason, backend.cure)))
    return "usable, only by name" if backend.only_by_name else "usable"


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
