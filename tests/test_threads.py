"""Threads: how many, the same bits for any number, several Python threads at once, and a fork."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns


def run(pattern, dtype=np.float32, seed=0):
    """Bytes of everything that a call and its gradient give."""
    rng = np.random.default_rng(seed)
    q, dout = (rng.standard_normal((2, 4, pattern.shape[0], 32)).astype(dtype) for _ in range(2))
    k, v = (rng.standard_normal((2, 2, pattern.shape[1], 32)).astype(dtype) for _ in range(2))
    (out, lse), vjp = sa.vjp(q, k, v, pattern, return_lse=True)
    return [x.tobytes() for x in (out, lse, *vjp(dout)[:3])]


PATTERNS = {
    "window": lambda: patterns.sliding_window(700, left=100),
    "two parts": lambda: patterns.strided(700, stride=32),
    "long rows": lambda: patterns.sliding_window(900, left=8) | patterns.global_tokens(900, [0, 1, 500]),
    "decoding": lambda: patterns.dense(1, 6000),
    "single pairs": lambda: patterns.strided(400, stride=32).reblock((1, 1)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", PATTERNS)
def test_same_bits_for_any_number(name, dtype):
    pattern = PATTERNS[name]()
    results = []
    for n in (1, 2, 3, 7):
        with sa.threads(n):
            results.append(run(pattern, dtype))
    assert all(result == results[0] for result in results)


def test_set_threads():
    expected = run(PATTERNS["window"]())
    try:
        for n in (1, 3):
            sa.set_threads(n)
            assert run(PATTERNS["window"]()) == expected
            assert sa.explain(*(np.ones((8, 8), np.float32),) * 3, patterns.dense(8)).n_threads == n
            with sa.threads(2):
                assert sa.explain(*(np.ones((8, 8), np.float32),) * 3, patterns.dense(8)).n_threads == 2
    finally:
        sa.set_threads(None)


def test_several_python_threads_at_once():
    jobs = [(PATTERNS[name](), np.float32, seed) for seed in range(3) for name in PATTERNS]
    expected = [run(*job) for job in jobs]
    shared = PATTERNS["two parts"]()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: run(*job), jobs))
        firsts = list(pool.map(lambda _: run(shared), range(4)))  # a first use by all at once
    assert found == expected
    assert all(first == expected[1] for first in firsts)


def test_fork_after_use():
    script = """
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        import numpy as np
        import sparseattn as sa

        q = np.random.default_rng(0).standard_normal((1, 8, 2048, 32)).astype(np.float32)
        pattern = sa.patterns.strided(2048, stride=64)

        def run():
            out, vjp = sa.vjp(q, q, q, pattern)
            return [x.tobytes() for x in (out, *vjp(out)[:3])]

        with sa.threads(3):
            expected = run()
            child = os.fork()
            if child == 0:
                os._exit(0 if run() == expected else 1)
            _, status = os.waitpid(child, 0)
            assert run() == expected
        raise SystemExit(os.waitstatus_to_exitcode(status))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)
