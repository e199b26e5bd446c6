"""Arrays for families that choose by content: near tokens are alike, and all queries like two of the keys."""

from functools import cache

import numpy as np


@cache
def inputs(n, dim=16, block=4):
    """By name, what the code lines of the gallery take, for n tokens of one head."""
    random = np.random.default_rng(0)
    k = np.cumsum(random.standard_normal((n, dim)), axis=0)
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    q = 12 * k + random.standard_normal((n, dim))
    k[[0, n // 3]] += q.mean(0) / np.linalg.norm(q.mean(0))
    q, k = (x.astype(np.float32)[None, None] for x in (q, k))
    means = k.reshape(1, 1, n // block, block, dim).mean(3)
    block_scores = q.reshape(1, 1, n // block, block, dim).mean(3) @ means.swapaxes(2, 3)
    return {"q": q, "k": k, "block_scores": block_scores, "index_k": k[:, 0], "index_w": np.ones((1, 1, n), np.float32),
            "means": k[0, :, :: round(n**0.5)], "probabilities": _probabilities(q, means, block)}


def _probabilities(q, compressed_k, block):
    """Softmax of the queries over the compressed keys that end no later."""
    n, n_compressed = q.shape[2], compressed_k.shape[2]
    seen = (np.arange(n_compressed) + 1) * block <= np.arange(1, n + 1)[:, None]
    weights = np.where(seen, np.exp(q @ compressed_k.swapaxes(2, 3) / q.shape[3] ** 0.5), 0)
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)
