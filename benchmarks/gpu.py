"""sparseattn beside FlexAttention (Triton) and SDPA on one GPU, in one run: ratios and the bars they should reach.

    python benchmarks/gpu.py --backward [--only NAME ...] [--out FILE.json] [--plot FILE.png]
    python benchmarks/gpu.py --options --backward    # sections instead of the table of workloads; several at once

Sizes are head_dim x tokens x batch x heads. Times are medians by events with the L2 cache cleared before each call.
Needs CuPy, PyTorch and Triton. The bars are for bfloat16 at 128 columns (float32: to SDPA's memory-efficient kernel).
"""

import argparse
import sys

SIZES = {"bfloat16": "128x8192x2x16", "float16": "128x8192x2x16", "float32": "128x4096x2x16"}
SECTIONS = ("options", "decode", "host", "blocks", "numba", "content")


def main(arguments=None):
    args = _parser().parse_args(arguments)
    from gpu_comparison import peers, report

    rows = []
    print(f"{peers.machine()}, {args.dtype}")
    for row in found(args):
        rows.append(row)
        report.show(row)
    print(report.summary(rows))
    if args.out:
        report.write(rows, peers.machine(), args.out)
    if args.plot:
        report.draw(rows, peers.machine(), args.plot)
    return 0


def found(args):
    """Rows of all that was asked for, one by one."""
    sizes = [tuple(map(int, spec.split("x"))) for spec in (args.sizes or SIZES[args.dtype]).split(",")]
    shapes = [(batch, heads, n, width) for width, n, batch, heads in sizes]
    if not any(getattr(args, section) for section in SECTIONS):
        for shape in shapes:
            yield from table(shape, args)
        return
    from gpu_comparison import sections

    for shape in shapes:
        if args.options:
            yield from sections.options(shape, args.dtype, args.backward)
        if args.blocks:
            yield from sections.blocks(shape, args.dtype, args.backward)
        if args.numba:
            yield from sections.plain(shape, args.backward)
        if args.content:
            yield from sections.content(shape, args.dtype, only=args.only)
    if args.decode:
        yield from sections.decode(args.dtype)
    if args.host:
        yield from sections.host(args.dtype)


def table(shape, args):
    """Every workload over arrays of one shape."""
    from gpu_comparison import contest, peers, workloads

    print(f"\n(batch, heads, tokens, head_dim) = {shape}")
    q, k, v, dout = (peers.random(*shape, dtype=args.dtype) for _ in range(4))
    for workload in chosen(workloads.positional(shape[2]), args.only):
        yield from contest.beside_peers(f"D={shape[3]}", workload, q, k, v, dout if args.backward else None, args.dtype,
                                        with_flex=args.flex, judged=shape[3] == 128)
        peers.free_memory()


def chosen(workloads, only):
    """Those whose names begin as asked for."""
    for name in only or ():
        if not any(w.name.startswith(name) for w in workloads):
            raise SystemExit(f"no workload begins with {name!r}; there are {', '.join(w.name for w in workloads)}")
    return [w for w in workloads if not only or w.name.startswith(tuple(only))]


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads whose names begin so")
    parser.add_argument("--sizes", help="DxNxBxH, several by commas; as 128x8192x2x16,64x8192x2x32")
    parser.add_argument("--dtype", choices=list(SIZES), default="bfloat16")
    parser.add_argument("--backward", action="store_true", help="the gradient too")
    parser.add_argument("--no-flex", dest="flex", action="store_false", help="without FlexAttention, which compiles")
    parser.add_argument("--options", action="store_true", help="what each option costs beside the plain call")
    parser.add_argument("--decode", action="store_true", help="one query a head over a long cache")
    parser.add_argument("--host", action="store_true", help="the host's time for a call with a pattern seen before")
    parser.add_argument("--blocks", action="store_true", help="blocks of 64, and others that Flex's tiles do not fit")
    parser.add_argument("--content", action="store_true", help="a step whose pattern follows from its arrays")
    parser.add_argument("--numba", action="store_true", help="the plain backend beside the fast one, in float32")
    parser.add_argument("--out", metavar="FILE.json", help="write every number")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios; needs matplotlib")
    return parser


if __name__ == "__main__":
    sys.exit(main())
