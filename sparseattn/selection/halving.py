"""The largest numbers of each row by array functions alone, which run on a GPU and ask it nothing: the least of them is
found bit by bit, halving what is left of its range."""

import numpy as np

from sparseattn.xp import namespace


def ordered(scores):
    """Unsigned whole numbers in the order of scores, float32 or float64; 0 for NaN and -inf, which are never chosen."""
    xp, unsigned = namespace(scores), np.dtype(f"u{scores.itemsize}")
    bits = (scores + 0.0).view(unsigned)  # -0.0 becomes 0.0
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    return xp.where(scores > -np.inf, xp.where(scores < 0, ~bits, bits | sign), unsigned.type(0))


def largest(keys, n_selected):
    """The columns of the n_selected largest keys, unsigned (n_rows, n_cols), of each row: int32 (n_rows, n_selected),
    rising, -1 behind them where there are fewer. Of equal keys the lower column wins; 0 is never chosen.

    A pass over the keys for each of their bits.
    """
    xp, n_cols = namespace(keys), keys.shape[1]
    least = _least_chosen(keys, n_selected)
    above, equal = keys > least, keys == least
    running, before = _counted(equal)
    taken = above | (equal & (running - before <= n_selected - above.sum(axis=1, keepdims=True)))
    running, before = _counted(taken)
    wanted = before + xp.arange(1, n_selected + 1, dtype=np.int32)
    at = xp.searchsorted(running.ravel(), wanted.ravel()).reshape(wanted.shape)
    return xp.where(wanted <= running[:, -1:], at % n_cols, -1).astype(np.int32)


def _least_chosen(keys, n_selected):
    """The n_selected-th largest key of each row, (n_rows, 1); 1 where there are fewer above 0."""
    xp, number = namespace(keys), keys.dtype.type
    least = xp.zeros((len(keys), 1), keys.dtype)
    for bit in reversed(range(8 * keys.itemsize)):
        tried = least | number(1 << bit)
        enough = (keys >= tried).sum(axis=1, keepdims=True) >= n_selected
        least = xp.where(enough, tried, least)
    return xp.maximum(least, number(1))


def _counted(flags):
    """How many flags (n_rows, n_cols) are set up to each, through all rows, and how many before each row (n_rows, 1).
    """
    running = namespace(flags).cumsum(flags.ravel(), dtype=np.int32).reshape(flags.shape)
    return running, running[:, -1:] - flags.sum(axis=1, keepdims=True, dtype=np.int32)
