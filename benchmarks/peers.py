"""Sparse attention on this CPU beside its peers, in one process, interleaved: ratios to be trusted, bare times not.

    python benchmarks/peers.py [--tokens 16384] [--heads 8] [--head-dim 64] [--repeats 7]

Rows: a causal window of 256 keys, forward and backward, and strided attention (stride 128, in its two parts). Peers:
PyTorch's compiled FlexAttention with the same window (forward; on CPU it has no backward), where PyTorch is
installed, and the rate of a 1024 x 1024 x 1024 float32 matrix product. Useful FLOPs are 4 D a pair forward, 10 D
backward, pairs counted by the pattern.
"""

import argparse
import time

import numpy as np

import sparseattn as sa
from sparseattn.kernels.numba_cpu.threads import n_threads

WINDOW, STRIDE = 256, 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("tokens", 16384), ("heads", 8), ("head-dim", 64), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    n, heads, dim = args.tokens, args.heads, args.head_dim
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, heads, n, dim)).astype(np.float32) for _ in range(4))
    square = rng.standard_normal((1024, 1024)).astype(np.float32)
    window = sa.patterns.sliding_window(n, left=WINDOW - 1)
    strided = sa.patterns.strided(n, stride=STRIDE)
    jobs = {"matrix product": lambda: square @ square}
    for name, pattern in (("window", window), ("strided", strided)):
        out, lse = sa.attend(q, k, v, pattern, return_lse=True)
        jobs[f"{name} forward"] = lambda pattern=pattern: sa.attend(q, k, v, pattern)
        jobs[f"{name} backward"] = lambda pattern=pattern, out=out, lse=lse: sa.attend_backward(
            dout, q, k, v, out, lse, pattern)
    flex = flex_attention(q, k, v, jobs["window forward"]())
    if flex:
        jobs["window forward, FlexAttention"] = flex
    report(measure(jobs, args.repeats), {"window": window.nnz * heads, "strided": strided.nnz * heads}, dim)


def measure(jobs, repeats):
    """Median seconds of each job, taken in turns; a pause lets the threads of the last one go to sleep."""
    times = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            time.sleep(0.25)
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def report(seconds, pairs, dim):
    """Print each job's rate as a share of the matrix product's, and the ratios that matter."""
    peak = 2 * 1024**3 / seconds.pop("matrix product")
    print(f"matrix product {peak / 1e9:.0f} GFLOP/s, {n_threads()} threads")
    for name, t in seconds.items():
        flop = pairs[name.split()[0]] * dim * (10 if "backward" in name else 4)
        print(f"{name:32s} {t * 1e3:8.1f} ms  {flop / t / 1e9:6.1f} GFLOP/s  {flop / t / peak:6.0%} of the matrix "
              "product")
    for way in ("forward", "backward"):
        ratio = (seconds[f"strided {way}"] / pairs["strided"]) / (seconds[f"window {way}"] / pairs["window"])
        print(f"strided {way}: {ratio:.2f} x the window's time a pair")
    if "window forward, FlexAttention" in seconds:
        print(f"window forward: {seconds['window forward, FlexAttention'] / seconds['window forward']:.2f} x as fast "
              "as FlexAttention")


def flex_attention(q, k, v, expected):
    """A job that runs PyTorch's compiled FlexAttention on the same window, or None without PyTorch."""
    try:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask
        from torch.nn.attention.flex_attention import flex_attention as flex
    except ImportError:
        print("PyTorch is not installed: no peer (pip install torch)")
        return None
    torch.set_num_threads(n_threads())
    n = q.shape[2]
    mask = create_block_mask(lambda b, h, i, j: (j <= i) & (i - j < WINDOW), None, None, n, n, device="cpu")
    compiled = torch.compile(flex)
    tensors = [torch.from_numpy(x) for x in (q, k, v)]

    def job():
        with torch.no_grad():
            return compiled(*tensors, block_mask=mask)

    error = np.abs(job().numpy() - expected).max()
    print(f"largest difference to FlexAttention {error:.1e}")
    return job


if __name__ == "__main__":
    main()
