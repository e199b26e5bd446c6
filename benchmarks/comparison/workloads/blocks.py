"""Whole blocks at random places: dense tiles, no mask, nothing regular between them."""

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Workload, share, speedup
from comparison.peers import torch_flex
from suite import cases

HEAD_DIM, BLOCK, DENSITY = 64, 64, 0.15


def random_blocks(settings):
    n = settings.n_tokens
    q, k, v, dout = cases.inputs(n, head_dim=HEAD_DIM)
    layout = cases.block_layout(n // BLOCK, max(round(DENSITY * n / BLOCK), 1))
    pattern = sa.Pattern.from_blocks(layout, block_size=BLOCK)
    forward, trained = ours.both_ways(q, k, v, dout, pattern)
    flex = Contestant("FlexAttention", lambda: torch_flex.blocks(q, k, v, layout=layout, block_size=BLOCK), "forward",
                      forward.flop, peer=True)
    return Workload(f"random blocks of {BLOCK}, density {layout.mean():.2f}, {n:,} tokens", [forward, trained, flex], [
        share(forward, 0.80, 0.95),
        share(trained, 0.82, 0.95),
        speedup("forward", "FlexAttention", 1.4),
    ])
