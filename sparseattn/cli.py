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
    demo.add_argument("--out", metavar="PATH", default="demo.png", help="where to write the picture (default: demo.png)")
    demo.add_argument("--threads", metavar="N", type=_positive, help="threads for attention (default: the CPUs of this process)")
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
    from sparseattn.demo.run import run

    try:
        run(file=options.file, quick=options.quick, out=options.out, threads=options.threads)
    except (OSError, ValueError) as error:
        return _fail(error)
    return 0


def _fail(message):
    print(f"sparseattn: {message}", file=sys.stderr)
    return 1


def _info(options):
    for name, value in facts():
        print(f"{name:<12}{value}")
    return 0


def facts():
    """(name, value) of everything that a bug report should say."""
    yield "sparseattn", sa.__version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in ("NumPy", "Numba", "SciPy", "ml_dtypes"):
        yield name, _version(name)
    for backend in sa.backends():
        yield "backend", backend


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
