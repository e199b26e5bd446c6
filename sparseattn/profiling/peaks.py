"""Where profiles peak: strides, diagonals, columns."""

from __future__ import annotations

import numpy as np

WIDTH = 2  # distances on both sides that belong to a diagonal
NEAR = 16  # shorter distances are a window's
MOST = 4  # strides
REPEATS = 4  # of a stride in the longest distance, at least
LEAST = 0.2  # mass times the logarithm of its lift, from which a stride is worth offering


def strides(offsets) -> list[int]:
    """Strides whose multiples hold much more mass than chance would give them, at most four, the best first.

    offsets : mass at each distance, (n_heads, n_distances). Among a stride and its multiples and divisors ``mass *
    log(mass / expected)`` is largest at the stride itself.
    """
    best: dict[int, float] = {}
    for head in np.atleast_2d(offsets):
        scores = _stride_scores(head)
        if scores.size and scores.max() > LEAST:
            stride = int(scores.argmax())
            best[stride] = max(best.get(stride, 0.0), float(scores[stride]))
    return sorted(sorted(best, key=best.__getitem__, reverse=True)[:MOST])


def _stride_scores(mass):
    """``mass * log(lift)`` of every stride, (n_distances // REPEATS,); strides and distances below NEAR count as 0."""
    n = mass.size
    far = np.where(np.arange(n) >= NEAR, mass, 0.0)
    scores = np.zeros(n // REPEATS)
    rest = (n - np.arange(n)).astype(float)  # queries that have a key so far behind
    rest[:NEAR] = 0.0
    for stride in range(NEAR, n // REPEATS):
        held = far[::stride].sum()
        expected = far.sum() * rest[::stride].sum() / rest.sum()
        scores[stride] = held * np.log(held / expected) if held > expected > 0 else 0.0
    return scores


def diagonals(offsets, count: int, size: int) -> list[list[int]]:
    """For each head the `count` distances outside a window of `size` around which most mass lies, rising."""
    return [_separate(head, count, size) for head in np.atleast_2d(offsets)]


def _separate(mass, count, size):
    """Largest first, each more than twice WIDTH from those taken before."""
    window = np.convolve(mass, np.ones(2 * WIDTH + 1), mode="same")
    window[: min(size, window.size)] = -1.0
    taken = []
    while len(taken) < count and window.max(initial=-1.0) >= 0:
        at = int(window.argmax())
        taken.append(at)
        window[max(at - 2 * WIDTH, 0) : at + 2 * WIDTH + 1] = -1.0
    return sorted(taken)


def largest(columns, count: int) -> list[list[int]]:
    """For each head the `count` keys with most mass, rising."""
    order = np.argsort(-np.atleast_2d(columns), axis=1, kind="stable")
    return np.sort(order[:, :count], axis=1).tolist()
