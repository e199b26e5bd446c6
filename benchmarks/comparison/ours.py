"""sparseattn's side of every workload."""

import sparseattn as sa
from comparison.contest import BACKWARD, FORWARD, Contestant
from suite import cases


def forward(q, k, v, pattern, **options):
    """A job; the pattern is prepared, so that no call meets a first use."""
    pattern.prepare(backward=False)
    return lambda: sa.attend(q, k, v, pattern, **options)


def forward_backward(dout, q, k, v, pattern, **options):
    """A job that gives dq, dk, dv."""
    pattern.prepare()

    def job():
        out, lse = sa.attend(q, k, v, pattern, return_lse=True, **options)
        return sa.attend_backward(dout, q, k, v, out, lse, pattern, **options)[:3]

    return job


def both_ways(q, k, v, dout, pattern):
    """The contestants of a pattern shared by all heads: forward, and forward and backward."""
    flop, both = (cases.flop(pattern, a, q.shape[1], q.shape[3]) for a in (FORWARD, FORWARD + BACKWARD))
    return (Contestant("forward", lambda: forward(q, k, v, pattern), flop=flop),
            Contestant("forward + backward", lambda: forward_backward(dout, q, k, v, pattern), flop=both))
