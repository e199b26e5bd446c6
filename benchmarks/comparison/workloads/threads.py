"""Two threads beside one, calls back to back."""

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Missing, Question, Workload
from suite import cases
from sparseattn.pool import n_threads

HEAD_DIM = 64


def two_threads(settings):
    n, n_long = settings.n_tokens, settings.n_long
    patterns = {"causal": sa.patterns.causal(n),
                "window": sa.patterns.sliding_window(n_long, left=settings.window - 1)}
    contestants, questions = [], []
    for name, pattern in patterns.items():
        q, k, v, dout = cases.inputs(pattern.shape[0], head_dim=HEAD_DIM)
        for way, job in ((f"{name} forward", ours.forward(q, k, v, pattern)),
                         (f"{name} forward + backward", ours.forward_backward(dout, q, k, v, pattern))):
            one, two = f"{way}, 1 thread", f"{way}, 2 threads"
            contestants += [Contestant(one, lambda job=job: _with(1, job)),
                            Contestant(two, lambda job=job: _with(2, job), one, tolerance=0.0)]
            questions.append(Question(f"{way}, two threads against one", (one, two),
                                      lambda s, one=one, two=two: s[one] / s[two], "x", 1.8, 1.95))
    return Workload(f"two threads, causal {n:,} and window {n_long:,} tokens", contestants, questions)


def _with(n, job):
    if n > n_threads():
        raise Missing(f"{n} threads asked of {n_threads()} CPUs")

    def limited():
        with sa.threads(n):
            return job()

    return limited
