"""Small calls: what a call costs before any work, and what a decoding step with a growing cache adds to it."""

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Question, Workload, speedup
from comparison.peers import torch_sdpa
from suite import cases

HEAD_DIM, SMALL, FIRST = 64, 64, 512  # FIRST: keys in the cache before the first step


def small_call(settings):
    n = settings.n_calls
    q, k, v = cases.inputs(SMALL, count=3, n_heads=1, head_dim=HEAD_DIM)
    pattern = sa.patterns.dense(SMALL)
    contestants = [
        Contestant("attend", lambda: _repeat(ours.forward(q, k, v, pattern), n), calls=n),
        Contestant("SDPA", lambda: _repeat(torch_sdpa.forward(q, k, v), n), "attend", calls=n, peer=True),
    ]
    return Workload(f"small call: {SMALL} tokens, 1 head, {n:,} calls back to back", contestants, [
        Question("a call", ("attend",), lambda s: s["attend"] * 1e6, "us", 60.0, at_most=True),
        speedup("attend", "SDPA"),
    ])


def growing_cache(settings):
    """The step's time is its overhead and the kernel's; the same steps with patterns made before separate the two."""
    n = settings.n_calls
    q, k, v = cases.inputs(FIRST + n, count=3, n_heads=1, head_dim=HEAD_DIM)
    last = q[:, :, :1]
    prepared = [sa.patterns.causal(1, FIRST + i + 1).prepare(backward=False) for i in range(n)]
    alone = sa.patterns.causal(1, 1).prepare(backward=False)

    def steps(pattern_of):
        for i in range(n):
            keys = FIRST + i + 1
            out = sa.attend(last, k[:, :, :keys], v[:, :, :keys], pattern_of(i))
        return out

    contestants = [
        Contestant("step", lambda: lambda: steps(lambda i: sa.patterns.causal(1, FIRST + i + 1)), calls=n),
        Contestant("step, pattern made before", lambda: lambda: steps(lambda i: prepared[i]), "step", calls=n),
        Contestant("call on one key", lambda: _repeat(lambda: sa.attend(last, k[:, :, :1], v[:, :, :1], alone), n),
                   calls=n),
    ]
    names = tuple(c.name for c in contestants)
    return Workload(f"decode step, 1 head, cache growing from {FIRST:,} to {FIRST + n:,} keys", contestants, [
        Question("overhead: new pattern and call", names, lambda s: 1e6 * (s[names[0]] - s[names[1]] + s[names[2]]),
                 "us", 50.0, at_most=True),
        Question("whole step", names[:1], lambda s: 1e6 * s[names[0]], "us"),
    ])


def _repeat(job, n):
    def calls():
        for _ in range(n):
            result = job()
        return result

    return calls
