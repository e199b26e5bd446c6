"""What building patterns costs: seconds and peak memory beside their bars. Exits with 1 where one is missed.

    python benchmarks/build.py [--only NAME ...] [--quick]

1. Compositions over 1,048,576 tokens.
2. Every family over 131,072 tokens (grids 512 x 256), on one thread, and its share of the time of its own forward
   (8 heads, head_dim 64, float32). Bars: 1 s, 50 MB, 5 %.
3. Beside them PyTorch's `create_block_mask`, at the sizes it can do.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path
from time import process_time  # of the one thread: neighbours on its core do not count

import numpy as np

import sparseattn as sa
from suite.families import FAMILIES, lengths

MILLION = 1 << 20
N_TOKENS = 1 << 17
REPEATS = 5
HEADS, HEAD_DIM = 8, 64
MOST_SECONDS, MOST_BYTES, MOST_SHARE = 1.0, 50e6, 0.05
MOST_PAIRS = 2e8  # of a head, timed; of more, some queries are, and scaled by pairs
PEER_SIZES = 8192, 16384, 32768


def window():
    return sa.patterns.sliding_window(MILLION, left=511)


def with_globals():
    return window() | sa.patterns.global_tokens(MILLION, np.arange(64) * (MILLION // 64))


def composed():
    valid = np.ones((1, MILLION), bool)
    valid[:, -1000:] = False
    return with_globals() & sa.patterns.causal(MILLION) & sa.patterns.padding(valid)


# what is built, seconds, bytes (None: no bar)
BARS = {
    "window 512": (window, 0.3, 20e6),
    "window 512 | 64 global tokens": (with_globals, 0.5, None),
    "(window | global_tokens) & causal & padding": (composed, 1.0, 100e6),
}
PEERED = {
    "causal": sa.patterns.causal,
    "window": lambda n: sa.patterns.sliding_window(n, left=511),
    "documents": lambda n: sa.patterns.documents(lengths(n), causal=True),
}


def seconds(build):
    """Median time of building."""
    times = []
    for _ in range(REPEATS):
        begin = process_time()
        build()
        times.append(process_time() - begin)
    return statistics.median(times)


def peak_bytes(build):
    """Most memory held at once while building, as NumPy and Python report it."""
    tracemalloc.start()
    build()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def forward_seconds(pattern):
    """Time of a forward over a pattern that is prepared, and whether it is that of some queries, scaled by pairs."""
    pairs = pattern.nnz / pattern.n_heads
    scaled = pairs > MOST_PAIRS
    some = int(pattern.shape[0] * MOST_PAIRS / pairs) if scaled else pattern.shape[0]
    first = (pattern.shape[0] - some) // 2  # in the middle, where queries of most patterns have an average of pairs
    part = pattern[:, :, first:first + some]
    q, k, v, out = (_random(n) for n in (part.shape[0], *[pattern.shape[1]] * 2, part.shape[0]))
    part.prepare(backward=False)
    sa.attend(*(x[:, :, :64] for x in (q, k, v)), sa.patterns.dense(64))  # compiles
    begin = process_time()
    sa.attend(q, k, v, part, out=out)
    took = process_time() - begin
    return took * pattern.nnz / part.nnz, scaled


def _random(n_tokens):
    return np.random.default_rng(n_tokens).standard_normal((1, HEADS, n_tokens, HEAD_DIM), dtype=np.float32)


def compositions():
    """A line each; returns the names of missed bars."""
    print(f"over {MILLION:,} tokens\n{'':<46}{'seconds':>9}{'bar':>7}{'MB':>9}{'bar':>7}")
    missed = []
    for name, (build, most_seconds, most_bytes) in BARS.items():
        build()  # imports and first touches are not what is asked
        took, peak = seconds(build), peak_bytes(build)
        memory_bar = f"{most_bytes / 1e6:.0f}" if most_bytes else "-"
        print(f"{name:<46}{took:>9.3f}{most_seconds:>7.1f}{peak / 1e6:>9.1f}{memory_bar:>7}", flush=True)
        if took > most_seconds or (most_bytes and peak > most_bytes):
            missed.append(name)
    return missed


def families(n_tokens, names):
    """A line each; returns the names of missed bars."""
    print(f"\nover {n_tokens:,} tokens, one thread; ~: scaled up from some queries; tiles: cutting ranges into blocks\n"
          f"{'':<36}{'seconds':>9}{'MB':>7}{'tiles':>9}{'forward':>11}{'share':>9}")
    missed = []
    for name in names:
        def build(name=name):
            return FAMILIES[name](n_tokens)

        FAMILIES[name](1024).prepare(backward=False)
        took, peak, pattern = seconds(build), peak_bytes(build), build()
        begin = process_time()
        pattern.tiles()
        cut = process_time() - begin
        forward, scaled = forward_seconds(pattern)
        share = took / forward
        print(f"{name:<36}{took:>9.4f}{peak / 1e6:>7.1f}{cut:>9.4f}{'~' * scaled + f'{forward:.3f}':>11}{share:>9.2%}",
              flush=True)
        if took > MOST_SECONDS or peak > MOST_BYTES or share > MOST_SHARE:
            missed.append(name)
    return missed


def peers(sizes):
    """Ours, and PyTorch's `create_block_mask` as it is and compiled."""
    print("\nbeside PyTorch's create_block_mask, one thread; ours with its ranges cut into blocks")
    for name, family in PEERED.items():
        for n_tokens in sizes:
            def build(family=family, n_tokens=n_tokens):
                return family(n_tokens).tiles()

            build()
            results = {"ours": (seconds(build), peak_bytes(build))}
            results |= {how: _block_mask(name, how, n_tokens) for how in ("eager", "compiled")}
            for who, result in results.items():
                words = result if isinstance(result, str) else f"{result[0]:>9.4f} s {result[1] / 1e6:>10,.1f} MB"
                print(f"{name:<12}{n_tokens:>8}  {who:<10}{words}", flush=True)


def _block_mask(name, how, n_tokens):
    """(seconds, peak bytes) in a process of its own, or why there are none."""
    own = [sys.executable, str(Path(__file__).with_name("block_mask.py")), name, how]
    done = subprocess.run(own + list(map(str, lengths(n_tokens))), capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else f"ended with {done.returncode}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="families whose names begin so, alone")
    parser.add_argument("--quick", action="store_true", help="small sizes, no bars: shows that it runs, no more")
    args = parser.parse_args(arguments)
    chosen = [name for name in FAMILIES if not args.only or name.startswith(tuple(args.only))]
    if not chosen:
        raise SystemExit(f"no family begins with {' or '.join(args.only)}; there are {'; '.join(FAMILIES)}")
    missed = []
    if not args.only and not args.quick:
        missed += compositions()
    with sa.threads(1):
        missed += families(4096 if args.quick else N_TOKENS, chosen)
        if not args.only:
            peers(PEER_SIZES[:1] if args.quick else PEER_SIZES)
    if args.quick:
        return 0
    if missed:
        print("missed:", ", ".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
