"""The command line: `sparseattn demo`, `sparseattn profile` and `sparseattn info`."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from contextlib import nullcontext
from importlib import metadata

import sparseattn as sa


def main(arguments=None):
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sparseattn", description="Sparse attention for NumPy arrays.")
    parser.add_argument("--version", action="version", version=f"sparseattn {sa.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_demo(commands)
    _add_profile(commands)
    info = commands.add_parser("info", help="versions, threads, and which backends can run here")
    info.set_defaults(command=_info)
    options = parser.parse_args(arguments)
    return options.command(options)


def _add_demo(commands):
    demo = commands.add_parser("demo", help="a trained model on real text: its heads profiled, a pattern "
                               "for each, what that loses and saves; then 65,536 tokens")
    demo.add_argument("--file", metavar="PATH", help="read this file instead of the samples: profile a part, test on "
                      "another")
    demo.add_argument("--quick", action="store_true", help="short texts and 8,192 tokens")
    demo.add_argument("--out", metavar="PATH", default="demo.png", help="the picture to write (default: demo.png)")
    demo.add_argument("--threads", metavar="N", type=_positive, help="threads for attention (default: CPUs allowed)")
    demo.set_defaults(command=_demo)


def _add_profile(commands):
    own = commands.add_parser("profile", help="measure saved q, k and v, and recommend a pattern for each head")
    own.add_argument("file", metavar="FILE.npz", help="arrays q, k and v, (batch, heads, tokens, head_dim), as they "
                     "enter the softmax: after RoPE and norms")
    own.add_argument("--causal", action="store_true", help="queries see no later keys")
    own.add_argument("--scale", type=float, metavar="X", help="factor of the scores (default: 1 / sqrt(head_dim))")
    own.add_argument("--rows", type=_positive, metavar="N", help="queries to look at (default: all up to 2,048 tokens)")
    own.add_argument("--max-error", type=float, default=0.2, metavar="X", help="error of the output (default: 0.2)")
    own.add_argument("--target-recall", type=float, metavar="X", help="captured mass, asked for instead of an error")
    own.add_argument("--budget", type=float, metavar="X", help="share of dense attention to spend over all heads")
    own.add_argument("--cost", choices=("pairs", "time", "measured"), default="pairs", help="what is to be small")
    own.add_argument("--out", metavar="FOLDER", default="profile", help="for report and pictures (default: profile)")
    own.add_argument("--threads", metavar="N", type=_positive, help="threads to use (default: CPUs allowed)")
    own.set_defaults(command=_profile)


def _profile(options):
    from sparseattn.profiling import command

    asked = {"max_error": options.max_error if options.target_recall is None else None,
             "target_recall": options.target_recall, "budget": options.budget, "cost": options.cost}
    try:
        with sa.threads(options.threads) if options.threads else nullcontext():
            written = command.run(options.file, options.out, causal=options.causal, scale=options.scale,
                                  rows=options.rows, **asked)
    except (OSError, ValueError, TypeError) as error:
        return _fail(error)
    print(f"\nWritten to {options.out}: {', '.join(written)}")
    return 0


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
        profiled, tested = run.inputs(options.file, options.out, sizes)
    except (OSError, ValueError) as error:
        return _fail(error)
    run.run(profiled, tested, sizes, out=options.out, threads=options.threads)
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
