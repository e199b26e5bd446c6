"""What shapes maps of attention have: descriptors of sums over rows."""

from __future__ import annotations

import numpy as np


def verticality(column_mean):
    """Entropy of the mean row (..., n_keys), negative."""
    a = column_mean
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, a * np.log(a), 0.0).sum(axis=-1)


def best_tenth(mass, possible):
    """Share of a mass (batch, n_heads, n) on the largest tenth of the entries that are `possible` (batch, n) > 0."""
    found = np.empty(mass.shape[:2])
    for b, h in np.ndindex(found.shape):
        found[b, h] = best_share(mass[b, h][possible[b] > 0])
    return found


def best_share(mass):
    """Share of a mass that the largest tenth of its entries (rounded up) hold."""
    n, whole = -(-mass.size // 10), mass.sum()
    return float(np.partition(mass, -n)[-n:].sum() / whole) if whole else np.nan


def quantile(x, there, q):
    """The q-quantile over rows of x (m, batch, n_heads, n_rows), of those that are `there` (batch, n_heads, n_rows)."""
    found = np.full(x.shape[:3], np.nan)
    for b, h in np.ndindex(there.shape[:2]):
        if there[b, h].any():
            found[:, b, h] = np.quantile(x[:, b, h][:, there[b, h]], q, axis=1)
    return found


def between(share, shares, held):
    """What `share` (m, ...) of the keys hold at most, from what `shares` hold, (..., n): straight lines between those,
    (0, 0) and (1, 1)."""
    at = np.array([0.0, *shares, 1.0])
    known = np.concatenate([np.zeros((*held.shape[:-1], 1)), held, np.ones((*held.shape[:-1], 1))], axis=-1)
    low = np.clip(np.searchsorted(at, share, side="right") - 1, 0, at.size - 2)
    known = np.broadcast_to(known, (*share.shape, at.size))
    begin, end = (np.take_along_axis(known, i[..., None], axis=-1)[..., 0] for i in (low, low + 1))
    return begin + (end - begin) * (share - at[low]) / (at[low + 1] - at[low])
