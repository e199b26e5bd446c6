"""What a bias, a cap of the scores, or dropout costs: rate beside that of the plain call."""

import numpy as np

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Workload, rate_kept
from suite import cases
from suite.cases import HEADS

HEAD_DIM = 64
BARS = {"alibi": (0.85, 0.95), "softcap": (0.85, 0.95), "dropout": (0.7, 0.85)}


def causal_options(settings):
    return _options(f"options, causal, {settings.n_tokens:,} tokens", sa.patterns.causal(settings.n_tokens))


def window_options(settings):
    pattern = sa.patterns.sliding_window(settings.n_long, left=settings.window - 1)
    return _options(f"options, causal window {settings.window}, {settings.n_long:,} tokens", pattern)


def _options(title, pattern):
    q, k, v, dout = cases.inputs(pattern.shape[0], head_dim=HEAD_DIM)
    plain = [Contestant("forward", lambda: ours.forward(q, k, v, pattern)),
             Contestant("forward + backward", lambda: ours.forward_backward(dout, q, k, v, pattern))]
    contestants, questions = list(plain), []
    for name, bars in BARS.items():
        contestants += [
            Contestant(f"{name}, forward", lambda name=name: ours.forward(q, k, v, pattern, **_arguments(name))),
            Contestant(f"{name}, forward + backward", lambda name=name: ours.forward_backward(
                dout, q, k, v, pattern, **_arguments(name)))]
        questions += [rate_kept(f"{name}, {way.name}", way.name, *bars) for way in plain]
    return Workload(title, contestants, questions)


def _arguments(name):
    """Keywords of attend."""
    if name == "softcap":
        return {"softcap": 30.0}
    if name == "dropout":
        return {"dropout": 0.1, "seed": 0}
    return {"bias": sa.bias.alibi((2.0 ** -np.arange(1, HEADS + 1)).astype(np.float32))}
