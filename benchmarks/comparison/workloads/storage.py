"""16-bit storage with float32 arithmetic: half the bytes, the same FLOPs, so at best the same time."""

import numpy as np

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Missing, Workload, times_as_long
from suite import cases

HEAD_DIM = 64
ROUNDED = {"float16": 0.02, "bfloat16": 0.15}  # what rounding may change of a result of size 1 to 4


def causal_storage(settings):
    return _storage(f"16-bit storage, causal, {settings.n_tokens:,} tokens", sa.patterns.causal(settings.n_tokens))


def window_storage(settings):
    pattern = sa.patterns.sliding_window(settings.n_long, left=settings.window - 1)
    return _storage(f"16-bit storage, causal window {settings.window}, {settings.n_long:,} tokens", pattern)


def _storage(title, pattern):
    contestants, questions = [], []
    for way, job in (("forward", _forward), ("forward + backward", _both)):
        plain = f"float32, {way}"
        contestants.append(Contestant(plain, lambda job=job: job(pattern, "float32"), shown=_first))
        for name, tolerance in ROUNDED.items():
            contestants.append(Contestant(f"{name}, {way}", lambda job=job, name=name: job(pattern, name), plain,
                                          tolerance=tolerance, shown=_first))
            questions.append(times_as_long(f"{name}, {way}", plain, "float32", 1.08, 1.0))
    return Workload(title, contestants, questions)


def _forward(pattern, dtype):
    q, k, v, _ = cases.inputs(pattern.shape[0], _dtype(dtype), head_dim=HEAD_DIM)
    return ours.forward(q, k, v, pattern)


def _both(pattern, dtype):
    q, k, v, dout = cases.inputs(pattern.shape[0], _dtype(dtype), head_dim=HEAD_DIM)
    return ours.forward_backward(dout, q, k, v, pattern)


def _first(result):
    """The output, or dq: enough to see that the same was computed."""
    return result[0] if isinstance(result, tuple) else result


def _dtype(name):
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise Missing("ml_dtypes is not installed; pip install 'sparseattn[bfloat16]'") from None
    return ml_dtypes.bfloat16
