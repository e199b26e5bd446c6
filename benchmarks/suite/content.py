"""Patterns by content at sizes that a model might have, and arrays with something to find in them."""

import numpy as np

from sparseattn import patterns


def topical(n_tokens, n_heads=8, head_dim=64, *, run=1, n_topics=64, strength=1.0, seed=0):
    """q, k, v, float32 (1, n_heads, n_tokens, head_dim), of tokens about topics: a query likes keys about its own.

    `run` neighbours share a topic; topics return anywhere. A token is `strength` times its topic's vector plus noise.
    """
    rng = np.random.default_rng(seed)
    topics = strength * rng.standard_normal((n_heads, n_topics, head_dim), dtype=np.float32)
    about = topics[:, rng.integers(0, n_topics, -(-n_tokens // run)).repeat(run)[:n_tokens]]
    q, k, v = rng.standard_normal((3, n_heads, n_tokens, head_dim), dtype=np.float32)
    return (q + about)[None], (k + about)[None], v[None]


def means_of(q, k, n_clusters, steps=10, seed=0):
    """Centres (n_heads, n_clusters, head_dim) of the unit vectors of q and k together, by Lloyd's steps from random
    tokens; q and k (1, n_heads, n_tokens, head_dim) of equally many heads."""
    x = np.concatenate([q[0], k[0]], axis=1)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    rng, means = np.random.default_rng(seed), []
    for head in x:
        centres = head[rng.choice(len(head), n_clusters, replace=False)]
        for _ in range(steps):
            nearest = np.argmax(head @ centres.T, axis=1)
            sums = np.zeros_like(centres)
            np.add.at(sums, nearest, head)
            length = np.linalg.norm(sums, axis=1, keepdims=True)
            centres = np.where(length > 0, sums / np.where(length > 0, length, 1), centres)
        means.append(centres)
    return np.stack(means)


def balanced(q, k):
    """q and k (1, n_heads, n_tokens, head_dim) made alike: without their means, and mapped so that both have one
    covariance while every product of a query with a key stays what it was (of equally many heads).

    Trained queries and keys lie around means of their own, which hold about half of their length and point elsewhere:
    where hashes and clusters look at directions, a query and its keys fall apart. The product with the mean key is the
    same for all keys of a query; that with the mean query, the same for all queries, is what the choice no longer sees.
    """
    q, k = (x[0] - x[0].mean(axis=1, keepdims=True) for x in (q, k))
    of_q, of_k = (x.swapaxes(1, 2) @ x / x.shape[1] for x in (q, k))
    root = _power(of_q, 0.5)
    a = _power(of_q, -0.5) @ _power(root @ of_k @ root, 0.25)
    return (q @ a)[None], (k @ np.linalg.inv(a).swapaxes(1, 2))[None]


def _power(covariance, exponent):
    """Powers of symmetric matrices (n, d, d), of which directions with hardly any variance are kept finite."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-4 * values[:, -1:])
    return (vectors * values[:, None] ** exponent) @ vectors.swapaxes(1, 2)


def factors(n):
    """A power of two as two factors, the second as large as the first or twice as large."""
    first = 1 << (n.bit_length() - 1) // 2
    return [first, n // first]


def lsh(q, k, *, n_hashes, chunk_length):
    """About two buckets a chunk, as recommended; causal. Where k is q, as published: no token is its own key."""
    n_buckets = 2 * (k.shape[-2] // chunk_length)
    return patterns.lsh(q, None if k is q else k, n_buckets=factors(n_buckets) if n_buckets > 64 else n_buckets,
                        n_hashes=n_hashes, chunk_length=chunk_length, causal=True)


def clusters(q, k, *, window, means=None):
    """Tokens / window clusters; causal."""
    means = means_of(q, k, k.shape[-2] // window) if means is None else means
    return patterns.clusters(q, k, means, window=window, causal=True)


def block_top_k(q, k, *, block_size, n_blocks):
    """q and k themselves as the indexer's, one of each group of query heads."""
    return patterns.block_top_k(q[:, :: q.shape[1] // k.shape[1]], k, block_size=block_size, n_blocks=n_blocks)


def indexer_top_k(q, k, *, n_selected, n_index_heads=2):
    """Some heads of q and one of k as the indexer's."""
    weights = np.ones((q.shape[0], n_index_heads, q.shape[2]), q.dtype)
    return patterns.indexer_top_k(q[:, :n_index_heads], k[:, 0], weights, n_selected=n_selected)
