"""A causal window: long, beside the peers that skip what it leaves out, and short, beside all."""

import numpy as np

import sparseattn as sa
from comparison import ours
from comparison.contest import BACKWARD, FORWARD, Contestant, Workload, share, speedup
from comparison.peers import numpy_dense, onnx_gqa, scipy_csr, torch_flex, torch_sdpa
from comparison.settings import HEADS

HEAD_DIM = 64


def long_window(settings):
    n, width = settings.n_long, settings.window
    q, k, v, dout = ours.inputs(n, HEAD_DIM, HEADS)
    pattern = sa.patterns.sliding_window(n, left=width - 1)
    flop, both = (ours.flop(pattern, HEADS, HEAD_DIM, a) for a in (FORWARD, FORWARD + BACKWARD))
    forward = Contestant("forward", lambda: ours.forward(q, k, v, pattern), flop=flop)
    trained = Contestant("forward + backward", lambda: ours.forward_backward(dout, q, k, v, pattern), flop=both)
    flex = Contestant("FlexAttention", lambda: torch_flex.window(q, k, v, width=width), "forward", flop, peer=True)
    return Workload(f"causal window {width}, {n:,} tokens", [forward, trained, flex, _onnx(q, k, v, width, flop)], [
        share(forward, 0.62, 0.80),
        share(trained, 0.65, 0.82),
        speedup("forward", "FlexAttention", 1.9, 2.5),
        speedup("forward", "ONNX GQA"),
    ])


def short_window(settings):
    n, width = settings.n_tokens, settings.window
    q, k, v, dout = ours.inputs(n, HEAD_DIM, HEADS)
    pattern = sa.patterns.sliding_window(n, left=width - 1)
    flop, both = (ours.flop(pattern, HEADS, HEAD_DIM, a) for a in (FORWARD, FORWARD + BACKWARD))
    forward = Contestant("forward", lambda: ours.forward(q, k, v, pattern), flop=flop)
    trained = Contestant("forward + backward", lambda: ours.forward_backward(dout, q, k, v, pattern), flop=both)
    mask = np.ascontiguousarray(pattern.to_dense()[0, 0])
    peers = [
        _onnx(q, k, v, width, flop),
        Contestant("SDPA, mask", lambda: torch_sdpa.forward(q, k, v, mask=mask), "forward", flop, peer=True),
        Contestant("SDPA, mask + autograd", lambda: torch_sdpa.forward_backward(dout, q, k, v, mask=mask),
                   "forward + backward", both, peer=True),
        Contestant("scipy CSR", lambda: scipy_csr.forward(q, k, v, pattern), "forward", flop, peer=True),
        Contestant("NumPy, dense", lambda: numpy_dense.forward(q, k, v, pattern), "forward", flop, peer=True),
    ]
    questions = [share(forward), share(trained), speedup("forward + backward", "SDPA, mask + autograd")]
    questions += [speedup("forward", peer.name) for peer in peers if peer.like == "forward"]
    return Workload(f"causal window {width}, {n:,} tokens", [forward, trained, *peers], questions)


def _onnx(q, k, v, width, flop):
    return Contestant("ONNX GQA", lambda: onnx_gqa.forward(q, k, v, window=width), "forward", flop, peer=True,
                      shown=lambda out: onnx_gqa.heads_first(out, HEADS))
