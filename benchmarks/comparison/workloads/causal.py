"""Dense causal attention: what a dense kernel does too, so nothing excuses a lower rate."""

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Workload, share, speedup
from comparison.peers import onnx_gqa, torch_sdpa
from suite import cases
from suite.cases import HEADS


def causal(settings, head_dim):
    n = settings.n_tokens
    q, k, v, dout = cases.inputs(n, head_dim=head_dim)
    pattern = sa.patterns.causal(n)
    forward, trained = ours.both_ways(q, k, v, dout, pattern)
    peers = [
        Contestant("SDPA", lambda: torch_sdpa.forward(q, k, v, causal=True), "forward", forward.flop, peer=True),
        Contestant("SDPA + autograd", lambda: torch_sdpa.forward_backward(dout, q, k, v, causal=True),
                   "forward + backward", trained.flop, peer=True),
        Contestant("ONNX GQA", lambda: onnx_gqa.forward(q, k, v), "forward", forward.flop, peer=True,
                   shown=lambda out: onnx_gqa.heads_first(out, HEADS)),
    ]
    return Workload(f"causal, {n:,} tokens, head_dim {head_dim}", [forward, trained, *peers], [
        share(forward, 0.85, 0.98),
        share(trained, 0.85, 1.02),
        speedup("forward", "SDPA", 1.15, 1.3),
        speedup("forward + backward", "SDPA + autograd", 1.25, 1.4),
        speedup("forward", "ONNX GQA"),
    ])
