"""Softmax of rows of scores, and its exact rows for the last queries: what prefill estimators judge keys by."""

import numpy as np

from sparseattn.xp import library, namespace


def softmax(s):
    """s (..., n) made probabilities in place; a score that is no finite number counts as none, a row of none gives 0.
    """
    if not s.size:
        return s
    xp, m = namespace(s), s.max(axis=-1, keepdims=True)
    if library(s) == "cupy" or not np.isfinite(m).all():  # asking a GPU would wait for it
        s[~xp.isfinite(s)] = -np.inf
        m = s.max(axis=-1, keepdims=True)
        m[m == -np.inf] = 0
    s -= m
    xp.exp(s, out=s)
    total = s.sum(axis=-1, keepdims=True)
    s /= xp.where(total > 0, total, 1)
    return s


def last_rows(q, k, count, scale):
    """Causal softmax rows (rows, n_keys) of the last `count` queries of one head; the last sits at the last key."""
    q = q[max(q.shape[0] - count, 0):]
    s = (q * q.dtype.type(scale)) @ k.T
    hide_later(s)
    return softmax(s)


def hide_later(s):
    """Scores (rows, n) of keys after the row's own are -inf, in place; the last row's own is the last key."""
    place = namespace(s).arange(s.shape[0])
    s[:, s.shape[1] - s.shape[0] :][place > place[:, None]] = -np.inf


def diagonal_sums(rows):
    """Sums (n_keys,) of causal rows (rows, n_keys) by distance, 0 first, float64; the last row sits at the last key."""
    n_rows, n_keys = rows.shape
    turned = namespace(rows).zeros((n_rows, n_keys + n_rows))
    turned[:, :n_keys] = rows[:, ::-1]
    # in lines of one number less each row begins one place later than the row before it
    moved = turned.ravel()[: n_rows * (n_keys + n_rows - 1)].reshape(n_rows, -1)
    return moved.sum(axis=0)[max(n_rows - 1, 0) :]
