"""Patterns that are scattered where they lie, each in the order in which it is dense. Peers have them only as masks."""

import sparseattn as sa
from comparison import ours
from comparison.contest import BACKWARD, FORWARD, Contestant, Workload, share
from suite import cases
from suite.grids import axial_columns, swin_windows

HEAD_DIM, DILATION, SWIN = 64, 8, 16


def scattered(settings):
    n, grid = settings.grid**2, (settings.grid, settings.grid)
    q, k, v, dout = cases.inputs(n, head_dim=HEAD_DIM)
    patterns = {
        f"strided {settings.stride}": sa.patterns.strided(n, stride=settings.stride),
        f"dilated by {DILATION}": sa.patterns.sliding_window(n, left=settings.window - 1, dilation=DILATION),
        "axial columns": axial_columns(*grid),
        f"Swin {SWIN}": swin_windows(*grid, SWIN),
    }
    forward = [Contestant(name, lambda pattern=pattern: ours.forward(q, k, v, pattern),
                          flop=cases.flop(pattern, FORWARD, head_dim=HEAD_DIM)) for name, pattern in patterns.items()]
    trained = [Contestant(f"{name}, + backward", lambda pattern=pattern: ours.forward_backward(dout, q, k, v, pattern),
                          flop=cases.flop(pattern, FORWARD + BACKWARD, head_dim=HEAD_DIM))
               for name, pattern in patterns.items()]
    return Workload(f"scattered patterns, {n:,} tokens", forward + trained,
                    [share(c, 0.45, 0.65) for c in forward] + [share(c) for c in trained])
