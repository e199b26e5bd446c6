"""Building patterns over 1,048,576 tokens: seconds and peak memory beside their bars. Exits with 1 where one is missed.

    python benchmarks/build.py
"""

import statistics
import sys
import tracemalloc
from time import perf_counter

import numpy as np

import sparseattn as sa

N_TOKENS = 1 << 20
REPEATS = 5


def window():
    return sa.patterns.sliding_window(N_TOKENS, left=511)


def with_globals():
    return window() | sa.patterns.global_tokens(N_TOKENS, np.arange(64) * (N_TOKENS // 64))


def composed():
    valid = np.ones((1, N_TOKENS), bool)
    valid[:, -1000:] = False
    return with_globals() & sa.patterns.causal(N_TOKENS) & sa.patterns.padding(valid)


# what is built, seconds, bytes (None: no bar)
BARS = {
    "window 512": (window, 0.3, 20e6),
    "window 512 | 64 global tokens": (with_globals, 0.5, None),
    "(window | global_tokens) & causal & padding": (composed, 1.0, 100e6),
}


def seconds(build):
    """Median time of building."""
    times = []
    for _ in range(REPEATS):
        begin = perf_counter()
        build()
        times.append(perf_counter() - begin)
    return statistics.median(times)


def peak_bytes(build):
    """Most memory held at once while building, as NumPy and Python report it."""
    tracemalloc.start()
    build()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main():
    print(f"{'':<46}{'seconds':>9}{'bar':>7}{'MB':>9}{'bar':>7}")
    missed = []
    for name, (build, most_seconds, most_bytes) in BARS.items():
        build()  # imports and first touches are not what is asked
        took, peak = seconds(build), peak_bytes(build)
        memory_bar = f"{most_bytes / 1e6:.0f}" if most_bytes else "-"
        print(f"{name:<46}{took:>9.3f}{most_seconds:>7.1f}{peak / 1e6:>9.1f}{memory_bar:>7}")
        if took > most_seconds or (most_bytes and peak > most_bytes):
            missed.append(name)
    if missed:
        print("missed:", ", ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
