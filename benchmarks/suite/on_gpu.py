"""The questions of forward, backward, decode and small_calls on a GPU's arrays, timed by events."""

import statistics
import time

import numpy as np

import sparseattn as sa
from suite.cases import HEADS, PATTERNS, flop, inputs

HOST_CALLS = 200


def on_gpu(*arrays):
    """The arrays as CuPy's; NotImplementedError, by which asv leaves a case out, where no backend takes them here."""
    found = [b for b in sa.backends() if b.name == "cupy_raw"]
    if not any(b.usable for b in found):
        raise NotImplementedError("; ".join(map(repr, found)))
    import cupy

    return [cupy.asarray(x) for x in arrays]


def seconds(job, repeats=20):
    """Median by events."""
    from cupyx.profiler import benchmark

    return float(np.median(benchmark(job, n_repeat=repeats, n_warmup=3).gpu_times))


def host_seconds(job):
    """Median wall time of a call that nobody waits for."""
    import cupy

    times = []
    for _ in range(7):
        cupy.cuda.Device().synchronize()
        begin = time.perf_counter()
        for _ in range(HOST_CALLS):
            job()
        times.append((time.perf_counter() - begin) / HOST_CALLS)
    return statistics.median(times)


class GpuForward:
    params = (list(PATTERNS), [1024, 16384], ["float16", "float32"])
    param_names = ("pattern", "n_tokens", "dtype")
    timeout = 300

    def setup(self, name, n_tokens, dtype):
        self.q, self.k, self.v, self.dout = on_gpu(*inputs(n_tokens, dtype))
        self.pattern = PATTERNS[name](n_tokens).to("cuda")
        self.out, self.lse = sa.attend(self.q, self.k, self.v, self.pattern, return_lse=True)

    def track_rate(self, *_):
        return flop(self.pattern, 4) / seconds(lambda: sa.attend(self.q, self.k, self.v, self.pattern)) / 1e12

    track_rate.unit = "TFLOP/s of useful pairs"


class GpuBackward(GpuForward):
    def track_rate(self, *_):
        arrays = self.dout, self.q, self.k, self.v, self.out, self.lse
        return flop(self.pattern, 10) / seconds(lambda: sa.attend_backward(*arrays, self.pattern)) / 1e12

    track_rate.unit = "TFLOP/s of useful pairs"


class GpuDecode:
    params = ([1, 4, 8], [64, 128], [1024, 32768])
    param_names = ("query heads a key-value head", "head_dim", "n_keys")
    timeout = 300

    def setup(self, group, head_dim, n_keys):
        q = np.random.default_rng(1).standard_normal((1, HEADS * group, 1, head_dim), dtype=np.float32)
        self.q, self.k, self.v = on_gpu(q.astype("float16"), *inputs(n_keys, "float16", count=2, head_dim=head_dim))
        self.pattern = sa.patterns.dense(1, n_keys).to("cuda")

    def track_bandwidth(self, *_):
        took = seconds(lambda: sa.attend(self.q, self.k, self.v, self.pattern))
        return (self.k.nbytes + self.v.nbytes) / took / 1e9

    track_bandwidth.unit = "GB/s"


class GpuSmallCalls:
    params = (1, 64)
    param_names = ("n_tokens",)

    def setup(self, n_tokens):
        self.q, self.k, self.v, self.dout = on_gpu(*inputs(n_tokens, n_heads=1))
        self.pattern = sa.patterns.dense(n_tokens).to("cuda")
        self.out, self.lse = sa.attend(self.q, self.k, self.v, self.pattern, return_lse=True)
        self.track_backward()

    def track_forward(self, *_):
        return 1e6 * host_seconds(lambda: sa.attend(self.q, self.k, self.v, self.pattern))

    def track_backward(self, *_):
        arrays = self.dout, self.q, self.k, self.v, self.out, self.lse
        return 1e6 * host_seconds(lambda: sa.attend_backward(*arrays, self.pattern))

    track_forward.unit = track_backward.unit = "us of the host"
