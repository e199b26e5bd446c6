"""sparseattn's side of every workload, and the arrays all contestants get."""

import numpy as np

import sparseattn as sa


def inputs(n_tokens, head_dim, n_heads, dtype=np.float32, count=4):
    """q, k, v, dout (as many as `count`): random, seeded, (1, n_heads, n_tokens, head_dim)."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, n_heads, n_tokens, head_dim), dtype=np.float32).astype(dtype)
            for _ in range(count)]


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


def flop(pattern, n_heads, head_dim, a_pair):
    """Useful FLOP of a call: `a_pair` for each attended pair and head_dim, the pattern shared by all heads."""
    return pattern.nnz * n_heads * head_dim * a_pair
