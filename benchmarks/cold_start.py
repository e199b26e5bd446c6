"""How long a new process waits: the import, and the first `attend` with compiled code on disk.

    python benchmarks/cold_start.py [--repeats 5]

The first process may compile; the others are timed. Bars: import within 0.3 s, first attend within 1 s.
"""

import argparse
import json
import statistics
import subprocess
import sys

SCRIPT = """
import json, time
start = time.perf_counter()
import sparseattn as sa
imported = time.perf_counter() - start
import numpy as np
q = np.random.default_rng(0).standard_normal((1, 8, 1024, 64)).astype(np.float32)
start = time.perf_counter()
sa.attend(q, q, q, sa.patterns.sliding_window(1024, left=127))
print(json.dumps([imported, time.perf_counter() - start]))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    _, *timed = [measure() for _ in range(repeats + 1)]
    missed = False
    for name, bar, times in zip(("import", "first attend"), (0.3, 1.0), zip(*timed)):
        middle = statistics.median(times)
        print(f"{name:14s} {middle:5.2f} s (bar {bar} s)")
        missed |= middle > bar
    return int(missed)


def measure():
    """Seconds of the import and of the first attend in a new process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
