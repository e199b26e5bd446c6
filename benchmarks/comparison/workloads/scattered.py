"""Patterns that are scattered where they lie, each in the order in which it is dense. Peers have them only as masks."""

import sparseattn as sa
from comparison import ours
from comparison.contest import BACKWARD, FORWARD, Contestant, Question, Workload, share
from suite import cases

HEAD_DIM, DILATION, SWIN, NEIGHBORS = 64, 8, 16, 13


def scattered(settings):
    n, grid = settings.grid**2, (settings.grid, settings.grid)
    q, k, v, dout = cases.inputs(n, head_dim=HEAD_DIM)
    patterns = {
        f"window {settings.window}": sa.patterns.sliding_window(n, left=settings.window - 1),
        f"strided {settings.stride}": sa.patterns.strided(n, stride=settings.stride),
        f"dilated by {DILATION}": sa.patterns.sliding_window(n, left=settings.window - 1, dilation=DILATION),
        "axial columns": sa.patterns.axial(grid, 0),
        f"Swin {SWIN}": sa.patterns.swin(grid, window=SWIN),
        f"neighborhood {NEIGHBORS}": sa.patterns.neighborhood(grid, kernel_size=NEIGHBORS),
    }
    forward = [Contestant(name, lambda pattern=pattern: ours.forward(q, k, v, pattern),
                          flop=cases.flop(pattern, FORWARD, head_dim=HEAD_DIM)) for name, pattern in patterns.items()]
    trained = [Contestant(f"{name}, + backward", lambda pattern=pattern: ours.forward_backward(dout, q, k, v, pattern),
                          flop=cases.flop(pattern, FORWARD + BACKWARD, head_dim=HEAD_DIM))
               for name, pattern in patterns.items()]
    questions = [share(c, *bars(c.name)) for c in forward[1:]] + [share(c) for c in trained[1:]]
    questions += [time_per_pair(c, plain) for plain, *others in (forward, trained) for c in others]
    return Workload(f"scattered patterns, {n:,} tokens", forward + trained, questions)


def bars(name):
    """Floor and aim of a pattern's share: the neighbors of a patch of tokens are never all of its tiles."""
    return (0.27, 0.38) if name.startswith("neighborhood") else (0.45, 0.65)


def time_per_pair(contestant, plain):
    """How many times as long as in a plain causal window an attended pair takes."""
    def value(seconds):
        return plain.rate(seconds) / contestant.rate(seconds)

    return Question(f"{contestant.name}: time a pair over that of {plain.name}", (contestant.name, plain.name), value,
                    "x", 2.8 if contestant.name.startswith("neighborhood") else 1.6, at_most=True)
