"""The fewest of the best that hold a share of the sum."""

import numpy as np


def cover(scores, share, allowed, *, first=None, crossing=True, at_least=0):
    """The best of each row until together they hold `share` of its sum: bool like scores (..., n), all >= 0.

    allowed: who may be taken and counts. first: who is taken before all others. crossing: whether the one with which
    the share is reached is taken too. Equal scores: the lower index first. Sums in float64.
    """
    scores = np.where(allowed, scores, 0).astype(np.float64)
    rank = np.where(allowed, -scores, 1)  # behind all others
    if first is not None:
        rank = np.where(first, -np.inf, rank)
    order = np.argsort(rank, axis=-1, kind="stable")
    running = np.cumsum(np.take_along_axis(scores, order, axis=-1), axis=-1)
    wanted = share * running[..., -1:]
    if crossing:
        enough = np.zeros(scores.shape, bool)
        np.less(running[..., :-1], wanted, out=enough[..., 1:])
        enough[..., :1] = wanted > 0
    else:
        enough = running <= wanted
    enough[..., :at_least] = True
    taken = np.empty(scores.shape, bool)
    np.put_along_axis(taken, order, enough, axis=-1)
    return (taken if first is None else taken | first) & allowed


def count_to_cover(scores, share):
    """How many of the largest scores (n,), all >= 0, it takes to hold `share` of their sum, the crossing one included.
    """
    running = np.cumsum(np.sort(scores)[::-1], dtype=np.float64)
    return min(int(np.searchsorted(running, share * running[-1])) + 1, scores.size)


def best(scores, count, first=0):
    """Increasing indices of the `count` largest scores (n,), the first `first` before all others, ties to the lower."""
    rank = -scores.astype(np.float64)
    rank[:first] = -np.inf
    return np.sort(np.argsort(rank, kind="stable")[:count])
