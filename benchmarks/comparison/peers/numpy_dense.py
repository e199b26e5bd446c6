"""Dense attention in NumPy, a head at a time: every score, and a mask."""

import numpy as np


def forward(q, k, v, pattern):
    """A job for (1, n_heads, n_tokens, head_dim) arrays and a pattern shared by all heads."""
    hidden = ~pattern.to_dense()[0, 0]

    def job():
        return np.stack([_one_head(q[0, h], k[0, h], v[0, h], hidden) for h in range(q.shape[1])])[None]

    return job


def _one_head(q, k, v, hidden):
    scores = (q * q.shape[1] ** -0.5) @ k.T
    scores[hidden] = -np.inf
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores @ v
