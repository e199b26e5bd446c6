"""What choosing by content costs: building, its share of the forward, and the whole call beside dense causal attention.

    python benchmarks/content.py [--only NAME ...] [--quick] [--one-thread]

16,384 tokens in passages of 256 about 16 topics, 8 heads, head_dim 64, float32. Bars, for lsh, clusters, moba and
xattention: building within half of the forward, both together 3 times as fast as dense causal attention. Exits with 1
where one is missed. Wall clock and all threads; --one-thread: the CPU's time of one, which neighbours do not disturb.
"""

import argparse
import os
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import sparseattn as sa
from suite import content

N_TOKENS, QUICK = 16384, 2048
REPEATS = 3
MOST_SHARE, LEAST_SPEEDUP = 0.5, 3.0
ALONE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def cases(q, k):
    """Name -> (how it is built from q and k, whether the bars are for it)."""
    means = content.means_of(q, k, q.shape[2] // 128, steps=2)  # trained, not built: no part of the cost
    p = sa.patterns
    return {
        # judged as published, keys that are queries: with keys of their own there are twice the hashes and scores
        "lsh": (lambda: content.lsh(q, q, n_hashes=4, chunk_length=64), True),
        "clusters": (lambda: content.clusters(q, q, window=128, means=means), True),
        "moba": (lambda: p.moba(q, k, chunk_size=512, top_k=3), True),  # the sizes of its paper
        "xattention": (lambda: p.xattention(q, k, stride=16, threshold=0.9), True),
        "lsh, own keys": (lambda: content.lsh(q, k, n_hashes=4, chunk_length=64), False),
        "clusters, own keys": (lambda: content.clusters(q, k, window=128, means=means), False),
        "top_k": (lambda: p.top_k(q, k, n_selected=128, causal=True), False),
        "indexer_top_k": (lambda: content.indexer_top_k(q, k, n_selected=512), False),
        "block_top_k": (lambda: content.block_top_k(q, k, block_size=64, n_blocks=16), False),
        "vertical_slash": (lambda: p.vertical_slash(q, k, n_vertical=1000, n_slash=200), False),
        "vertical_slash, tiles": (lambda: p.vertical_slash(q, k, n_vertical=30, n_slash=50, exact=False), False),
        "flex_prefill": (lambda: p.flex_prefill(q, k, gamma=0.9, tau=0.1), False),
        "sparge": (lambda: p.sparge(q, k, tau=0.9, theta=0.3), False),
    }


def seconds(job, clock, repeats=REPEATS):
    """Median time of a job that has run before."""
    times = []
    for _ in range(repeats):
        begin = clock()
        job()
        times.append(clock() - begin)
    return statistics.median(times)


def table(n_tokens, only, clock):
    """Prints a line a family; returns the names of those that miss a bar."""
    q, k, v = content.topical(n_tokens, run=256, n_topics=16, strength=0.9)
    chosen = {name: case for name, case in cases(q, k).items() if not only or name.startswith(tuple(only))}
    if not chosen:
        raise SystemExit(f"no family begins with {' or '.join(only)}; there are {', '.join(cases(q, k))}")
    dense = forward(q, k, v, sa.patterns.causal(n_tokens), clock)
    print(f"over {n_tokens:,} tokens; dense causal {dense:.3f} s\n{'':<24}{'pairs':>8}{'tiles':>7}{'build':>9}"
          f"{'forward':>9}{'share':>8}{'both beside dense':>19}")
    missed = []
    for name, (build, judged) in chosen.items():
        pattern = build()  # compiles
        took, then = seconds(build, clock), forward(q, k, v, pattern, clock)
        share, speedup = took / then, dense / (took + then)
        pairs = pattern.nnz / pattern.batch / pattern.n_heads / (n_tokens * (n_tokens + 1) / 2)
        misses = judged and (share > MOST_SHARE or speedup < LEAST_SPEEDUP)
        print(f"{name:<24}{pairs:>8.1%}{pattern.density_in_tiles:>7.2f}{took:>9.3f}{then:>9.3f}{share:>8.2f}"
              f"{speedup:>18.1f}x{' missed' if misses else ''}", flush=True)
        missed += [name] * misses
    return missed


def forward(q, k, v, pattern, clock):
    """Time of a forward, what is derived from a new pattern included once: a content pattern is used once."""
    sa.attend(q, k, v, pattern)
    fresh = sa.Pattern(tuple(replace(part) for part in pattern.parts), *_axes(pattern))  # parts keep what is derived
    first = seconds(lambda: fresh.prepare(backward=False), clock, 1)
    return first + seconds(lambda: sa.attend(q, k, v, pattern), clock)


def _axes(pattern):
    return pattern.shape, pattern.batch, pattern.n_heads


def main(arguments=None):
    args = _parser().parse_args(arguments)
    with sa.threads(1) if args.one_thread else nullcontext():
        clock = time.process_time if args.one_thread else time.perf_counter
        missed = table(QUICK if args.quick else N_TOKENS, args.only, clock)
    if args.quick:
        return 0
    if missed:
        print("missed:", ", ".join(missed))
    return int(bool(missed))


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="families whose names begin so, alone")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, no bars: shows that it runs, no more")
    parser.add_argument("--one-thread", action="store_true", help="CPU time of one thread, NumPy's included")
    return parser


if __name__ == "__main__":
    if "--one-thread" in sys.argv and not ALONE.items() <= os.environ.items():
        # BLAS reads its number of threads once, when NumPy is imported: begin again
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALONE})
    sys.exit(main())
