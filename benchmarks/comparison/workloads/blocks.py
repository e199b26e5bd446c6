"""Whole blocks at random places: dense tiles, no mask, nothing regular between them."""

import numpy as np

import sparseattn as sa
from comparison import ours
from comparison.contest import BACKWARD, FORWARD, Contestant, Workload, share, speedup
from comparison.peers import torch_flex
from comparison.settings import HEADS

HEAD_DIM, BLOCK, DENSITY = 64, 64, 0.15


def random_blocks(settings):
    n = settings.n_tokens
    q, k, v, dout = ours.inputs(n, HEAD_DIM, HEADS)
    layout = _layout(n // BLOCK)
    pattern = sa.Pattern.from_blocks(layout, block_size=BLOCK)
    flop, both = (ours.flop(pattern, HEADS, HEAD_DIM, a) for a in (FORWARD, FORWARD + BACKWARD))
    forward = Contestant("forward", lambda: ours.forward(q, k, v, pattern), flop=flop)
    trained = Contestant("forward + backward", lambda: ours.forward_backward(dout, q, k, v, pattern), flop=both)
    flex = Contestant("FlexAttention", lambda: torch_flex.blocks(q, k, v, layout=layout, block_size=BLOCK), "forward",
                      flop, peer=True)
    return Workload(f"random blocks of {BLOCK}, density {layout.mean():.2f}, {n:,} tokens", [forward, trained, flex], [
        share(forward, 0.80, 0.95),
        share(trained, 0.82, 0.95),
        speedup("forward", "FlexAttention", 1.4),
    ])


def _layout(n):
    """Bool (n, n): as many blocks in every row, chosen at random, at least one."""
    rank = np.random.default_rng(1).random((n, n)).argsort(axis=1).argsort(axis=1)
    return rank < max(round(DENSITY * n), 1)
