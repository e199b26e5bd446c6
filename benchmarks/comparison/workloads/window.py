"""A causal window: long, beside the peers that skip what it leaves out, and short, beside all."""

import numpy as np

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Workload, share, speedup
from comparison.peers import numpy_dense, onnx_gqa, scipy_csr, torch_flex, torch_sdpa
from suite import cases
from suite.cases import HEADS

HEAD_DIM = 64


def long_window(settings):
    n, width = settings.n_long, settings.window
    q, k, v, dout = cases.inputs(n, head_dim=HEAD_DIM)
    pattern = sa.patterns.sliding_window(n, left=width - 1)
    forward, trained = ours.both_ways(q, k, v, dout, pattern)
    flex = Contestant("FlexAttention", lambda: torch_flex.window(q, k, v, width=width), "forward", forward.flop,
                      peer=True)
    contestants = [forward, trained, flex, _onnx(q, k, v, width, forward.flop)]
    return Workload(f"causal window {width}, {n:,} tokens", contestants, [
        share(forward, 0.62, 0.80),
        share(trained, 0.65, 0.82),
        speedup("forward", "FlexAttention", 1.9, 2.5),
        speedup("forward", "ONNX GQA"),
    ])


def short_window(settings):
    n, width = settings.n_tokens, settings.window
    q, k, v, dout = cases.inputs(n, head_dim=HEAD_DIM)
    pattern = sa.patterns.sliding_window(n, left=width - 1)
    forward, trained = ours.both_ways(q, k, v, dout, pattern)
    mask = np.ascontiguousarray(pattern.to_dense()[0, 0])
    peers = [
        _onnx(q, k, v, width, forward.flop),
        Contestant("SDPA, mask", lambda: torch_sdpa.forward(q, k, v, mask=mask), "forward", forward.flop,
                   peer=True),
        Contestant("SDPA, mask + autograd", lambda: torch_sdpa.forward_backward(dout, q, k, v, mask=mask),
                   "forward + backward", trained.flop, peer=True),
        Contestant("scipy CSR", lambda: scipy_csr.forward(q, k, v, pattern), "forward", forward.flop,
                   peer=True),
        Contestant("NumPy, dense", lambda: numpy_dense.forward(q, k, v, pattern), "forward", forward.flop,
                   peer=True),
    ]
    questions = [share(forward), share(trained), speedup("forward + backward", "SDPA, mask + autograd")]
    questions += [speedup("forward", peer.name) for peer in peers if peer.like == "forward"]
    return Workload(f"causal window {width}, {n:,} tokens", [forward, trained, *peers], questions)


def _onnx(q, k, v, width, flop):
    return Contestant("ONNX GQA", lambda: onnx_gqa.forward(q, k, v, window=width), "forward", flop, peer=True,
                      shown=lambda out: onnx_gqa.heads_first(out, HEADS))
