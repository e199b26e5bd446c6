"""sparseattn beside its peers on this CPU, in one process and in turns: ratios, shares of the machine's rates, bars.

    python benchmarks/compare.py [--only NAME ...] [--quick] [--plot FILE.png] [--json FILE.json]

Peers: PyTorch's scaled dot product attention and compiled FlexAttention, ONNX Runtime's GroupQueryAttention, attention
from a scipy.sparse CSR matrix, dense NumPy. Those that are not installed are named and left out
(`pip install 'sparseattn[compare]'`). Exits with 1 where a floor is missed.
"""

import argparse
import json
import sys
import warnings

import numpy as np

from comparison import measuring, plot, table
from comparison.settings import FULL, QUICK
from comparison.workloads import WORKLOADS
from sparseattn.pool import n_threads


def main(arguments=None):
    args = _parser().parse_args(arguments)
    settings = QUICK if args.quick else FULL
    warnings.filterwarnings("ignore", module="torch")  # about its own internals
    print(f"{n_threads()} threads, NumPy {np.__version__}; medians of {settings.repeats}; "
          + ("quick: sizes too small for the bars" if args.quick else "a share is a rate over the machine's own"))
    results = []
    for name in _chosen(args.only):
        results.append(measuring.run(WORKLOADS[name](settings), settings))
        print(table.text(results[-1], judged=not args.quick), flush=True)
    if args.json:
        _write(results, args.json)
    if args.plot:
        note = f"{n_threads()} threads" + (", quick: small sizes" if args.quick else "")
        plot.draw(results, args.plot, note, judged=not args.quick)
    if args.quick:
        return 0
    print("\n" + table.summary(results))
    return int(bool(table.missed(results)))


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"workloads: {', '.join(WORKLOADS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, two repeats: shows that it runs, no more")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the shares; needs matplotlib")
    parser.add_argument("--json", metavar="FILE.json", help="write every number")
    return parser


def _chosen(only):
    """Names of workloads; each of `only` may be the beginning of several."""
    for name in only or ():
        if not any(known.startswith(name) for known in WORKLOADS):
            raise SystemExit(f"no workload begins with {name!r}; there are {', '.join(WORKLOADS)}")
    return [known for known in WORKLOADS if not only or known.startswith(tuple(only))]


def _write(results, path):
    """Times in seconds (of a FLOP, of a byte for the machine's two), answers as plain numbers."""
    written = [{"workload": r.workload.title, "seconds": r.seconds, "missing": r.missing, "differences": r.differences,
                "answers": [{"question": q.label, "value": table.value_of(r, q), "unit": q.unit, "floor": q.floor,
                             "aim": q.aim, "at_most": q.at_most} for q in r.workload.questions]} for r in results]
    with open(path, "w") as file:
        json.dump(written, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
