"""Softmax of rows of scores, and its exact rows for the last queries: what prefill estimators judge keys by."""

import numpy as np


def softmax(s):
    """s (..., n) made probabilities in place; a score that is no finite number counts as none, a row of none gives 0.
    """
    m = s.max(axis=-1, keepdims=True, initial=-np.inf)
    if not np.isfinite(m).all():
        s[~np.isfinite(s)] = -np.inf
        m = s.max(axis=-1, keepdims=True, initial=-np.inf)
        m[m == -np.inf] = 0
    s -= m
    np.exp(s, out=s)
    total = s.sum(axis=-1, keepdims=True)
    s /= np.where(total > 0, total, 1)
    return s


def last_rows(q, k, count, scale):
    """Causal softmax rows (rows, n_keys) of the last `count` queries of one head; the last sits at the last key."""
    q = q[max(q.shape[0] - count, 0):]
    s = (q * q.dtype.type(scale)) @ k.T
    hide_later(s)
    return softmax(s)


def hide_later(s):
    """Scores (rows, n) of keys after the row's own are -inf, in place; the last row's own is the last key."""
    n = s.shape[0]
    s[:, s.shape[1] - n :][np.arange(n) > np.arange(n)[:, None]] = -np.inf


def diagonal_sums(rows):
    """Sums (n_keys,) of causal rows (rows, n_keys) by distance, 0 first, float64; the last row sits at the last key."""
    n_rows, n_keys = rows.shape
    sums = np.zeros(n_keys)
    for row in range(n_rows):
        reach = n_keys - n_rows + row + 1
        sums[:reach] += rows[row, reach - 1::-1] if reach else 0
    return sums
