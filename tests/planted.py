"""Heads whose attention is known beforehand: q, k, v that make a head look at what its name says."""

import numpy as np

KINDS = ("local", "strided", "sink", "column", "clustered", "diffuse", "previous")
WIDTH = 8  # keys on each side that a local head looks at
STRIDE = 48
COLUMNS = 6  # keys that a column head looks at
CLUSTERS = 16
HEAD_DIM = 64


def heads(n_tokens, kinds=KINDS, *, seed=0, batch=1, dtype=np.float32, noise=0.1):
    """(q, k, v) of shape (batch, len(kinds), n_tokens, 64) for scale 1 / 8; nothing is causal in them.

    noise: of every number of q and k, so that no two tokens are the same. The seed draws noise, values and clusters;
    which columns and distances matter does not depend on it.
    """
    rng = np.random.default_rng(seed)
    q, k = (np.empty((batch, len(kinds), n_tokens, HEAD_DIM)) for _ in range(2))
    for b in range(batch):
        for h, kind in enumerate(kinds):
            q[b, h], k[b, h] = _MAKERS[kind](n_tokens, rng)
    q, k = (x + noise * rng.standard_normal(x.shape) for x in (q, k))
    v = rng.standard_normal(q.shape)
    return tuple(x.astype(dtype) for x in (q, k, v))


def columns(n_tokens):
    """The keys that a column head looks at."""
    return np.linspace(1, n_tokens // 2, COLUMNS).astype(int)


def clusters(n_tokens, rng):
    """The cluster of each token."""
    return rng.integers(0, CLUSTERS, n_tokens)


def _waves(positions, frequencies, strength):
    """Unit vectors times the root of 8 * strength: scores are strength at distance 0 and less elsewhere."""
    angle = np.multiply.outer(positions, frequencies)
    x = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * np.sqrt(8 * strength / frequencies.size)
    return np.pad(x, ((0, 0), (0, HEAD_DIM - x.shape[1])))


def _local(n, rng):
    x = _waves(np.arange(n), np.linspace(0.02, np.pi / WIDTH, 32), 12.0)
    return x, x


def _strided(n, rng):
    x = _waves(np.arange(n), 2 * np.pi / STRIDE * np.arange(1, STRIDE // 2), 12.0)
    return x, x


def _previous(n, rng):
    frequencies = np.linspace(0.05, 3.1, 32)
    return _waves(np.arange(n) - 1, frequencies, 16.0), _waves(np.arange(n), frequencies, 16.0)


def _towards(n, chosen, strength):
    """All queries look at the chosen keys alike."""
    q, k = np.zeros((2, n, HEAD_DIM))
    q[:, 0] = np.sqrt(8 * strength)
    k[chosen, 0] = np.sqrt(8 * strength)
    return q, k


def _sink(n, rng):
    return _towards(n, [0], 10.0)


def _column(n, rng):
    return _towards(n, columns(n), 10.0)


def _clustered(n, rng):
    directions = np.linalg.qr(rng.standard_normal((HEAD_DIM, CLUSTERS)))[0].T * np.sqrt(8 * 9.0)
    x = directions[clusters(n, rng)]
    return x, x


def _diffuse(n, rng):
    return np.zeros((2, n, HEAD_DIM))


_MAKERS = {"local": _local, "strided": _strided, "sink": _sink, "column": _column, "clustered": _clustered,
           "diffuse": _diffuse, "previous": _previous}
