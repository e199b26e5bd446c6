"""The fewest of the best that hold a share of the sum."""

import numpy as np

from sparseattn.xp import namespace


def cover(scores, share, allowed, *, first=None, crossing=True, at_least=0):
    """The best of each row until together they hold `share` of its sum: bool like scores (..., n), all >= 0.

    allowed: who may be taken and counts. first: who is taken before all others. crossing: whether the one with which
    the share is reached is taken too. Equal scores: the lower index first. Sums in float64.
    """
    xp = namespace(scores)
    scores = xp.where(allowed, scores, 0).astype(np.float64)
    rank = xp.where(allowed, -scores, 1)  # behind all others
    if first is not None:
        rank = xp.where(first, -np.inf, rank)
    order = xp.argsort(rank, axis=-1, kind="stable")
    running = xp.cumsum(xp.take_along_axis(scores, order, axis=-1), axis=-1)
    wanted = share * running.max(axis=-1, keepdims=True)  # a GPU's running sums need not rise to their end
    within = running < wanted if crossing else running <= wanted
    count = xp.maximum(within.sum(axis=-1, keepdims=True) + (crossing & (wanted > 0)), at_least)
    taken = xp.empty(scores.shape, bool)
    xp.put_along_axis(taken, order, xp.broadcast_to(xp.arange(order.shape[-1]) < count, order.shape), axis=-1)
    return (taken if first is None else taken | first) & allowed


def count_to_cover(scores, share):
    """How many of the largest scores (n,), all >= 0, it takes to hold `share` of their sum, the crossing one included:
    a number, on a GPU an array of one."""
    xp = namespace(scores)
    running = xp.cumsum(xp.sort(scores)[::-1], dtype=np.float64)
    return xp.minimum((running < share * running.max()).sum() + 1, scores.size)


def best(scores, count, first=0):
    """Increasing indices of the `count` largest scores (n,), the first `first` before all others, ties to the lower."""
    return namespace(scores).sort(_best_first(scores, first)[:count])


def among_best(scores, count, first=0):
    """Which of the scores (n,) are among the `count`, as from `count_to_cover`, that `best` takes: bool (n,)."""
    order = _best_first(scores, first)
    place = namespace(scores).empty_like(order)
    place[order] = namespace(scores).arange(order.size)
    return place < count


def _best_first(scores, first):
    rank = -scores.astype(np.float64)
    rank[:first] = -np.inf
    return rank.argsort(kind="stable")
