"""How many of the largest weights of a row hold some mass, and what mass some number of them holds, without sorting the
row. Compiled by Numba on first use; imported inside functions alone.

Positive floats are in the order of their bits. So weights are counted and added up in buckets by the leading bits of
what theirs are above the row's least; only those in a bucket where a wanted number or mass is reached need an order.
"""

import math

import numpy as np

from sparseattn.kernels.numba_cpu.compile import cached
from sparseattn.kernels.numba_cpu.simd import data
from sparseattn.kernels.numba_cpu.wide import tally

MOST = 1024  # buckets of a row
SHARE = 4  # weights for each bucket, at least
GROUP = 4  # buckets that are passed by at once where nothing is reached
COUNT, MASS, BEFORE = range(3)  # of what is above a bucket: weights, their sum, and those that are picked


@cached
def bounds(bits):
    """The least of those above 0, and the largest."""
    high = bits[0]
    for j in range(bits.size):
        high = max(high, bits[j])
    low = high
    for j in range(bits.size):
        low = min(low, bits[j] if bits[j] > 0 else high)
    return low, high


@cached
def deal(bits, low, high, n_buckets, places):
    """places[j] = the bucket of bits[j], rising with it from `low` and 0 on; `high` is in the last. Returns how many
    buckets there are, at most n_buckets."""
    step = 0
    while (high - low) >> step >= n_buckets:
        step += 1
    for j in range(bits.size):
        places[j] = (max(bits[j], low) - low) >> step
    return ((high - low) >> step) + 1


@cached
def reached(pairs, counts, masses, marks, above):
    """For each of `counts` and then of `masses`, both rising: above[t] = COUNT, MASS and BEFORE of the bucket where so
    many of the largest weights, or so much mass, are reached, which gets its mark; the first bucket takes the rest."""
    n, mass, picked, t, u = 0.0, 0.0, 0.0, 0, counts.size
    for first in range(pairs.shape[0] - GROUP, -1, -GROUP):
        few = (pairs[first, 0] + pairs[first + 1, 0]) + (pairs[first + 2, 0] + pairs[first + 3, 0])
        little = (pairs[first, 1] + pairs[first + 1, 1]) + (pairs[first + 2, 1] + pairs[first + 3, 1])
        if first and (t == counts.size or counts[t] > n + few) and (
                u == above.shape[0] or masses[u - counts.size] > mass + little):
            n, mass = n + few, mass + little
            continue
        for c in range(first + GROUP - 1, first - 1, -1):
            further, more = n + pairs[c, 0], mass + pairs[c, 1]
            while t < counts.size and (counts[t] <= further or c == 0):
                above[t, COUNT], above[t, MASS], above[t, BEFORE] = n, mass, picked
                marks[c], t = 1, t + 1
            while u < above.shape[0] and (masses[u - counts.size] <= more or c == 0):
                above[u, COUNT], above[u, MASS], above[u, BEFORE] = n, mass, picked
                marks[c], u = 1, u + 1
            if marks[c]:
                picked += pairs[c, 0]
            n, mass = further, more


@cached
def pick(e, places, marks, picked):
    """The weights whose bucket has a mark go to the front of `picked`. Returns how many they are."""
    n = np.uint64(0)
    for j in range(e.size):
        picked[n] = e[j]
        n += np.uint64(marks[np.uint64(places[j])])
    return n


@cached
def pick_rows(e, bits, stops, sums, n_open, shares, masses, picked, above):
    """For each row of weights e up to stops, whose bits are `bits` and sum in `sums`: those that need an order, at the
    front of `picked`; above: of `reached`, for shares of the n_open keys and parts of the sum. Returns the most that
    are picked of a row; shorter ones get -1 behind."""
    places, n_picked = np.empty(e.shape[1], np.uint16), np.zeros(e.shape[0], np.int64)
    pairs, marks = np.empty((MOST, 2)), np.empty(MOST, np.uint8)
    counts, parts = np.empty(shares.size), np.empty(masses.size)
    for i in range(e.shape[0]):
        if not n_open[i]:
            continue
        own, weights = bits[i, : stops[i]], e[i, : stops[i]]
        low, high = bounds(own)
        n_buckets = deal(own, low, high, max(min(MOST, own.size // SHARE), 1), places)
        n_buckets += -n_buckets % GROUP
        pairs[:n_buckets], marks[:n_buckets] = 0.0, 0
        for j in range(own.size):
            tally(data(pairs), np.intp(places[j]), weights[j])
        for c in range(shares.size):
            counts[c] = math.ceil(shares[c] * n_open[i])
        for t in range(masses.size):
            parts[t] = masses[t] * sums[i]
        reached(pairs[:n_buckets], counts, parts, marks, above[i])
        n_picked[i] = pick(weights, places, marks, picked[i])
    most = n_picked.max()
    for i in range(e.shape[0]):
        picked[i, n_picked[i] : most] = -1
    return most


@cached
def rank_rows(ordered, sums, n_open, shares, masses, above, keys, held):
    """From picked weights of rows, which rise: keys (n_rows, masses): how many of the largest weights of a row, whose
    sum is in `sums`, hold these masses; held (n_rows, shares): the most that shares of the n_open keys can hold. 0 and
    NaN where there is no key."""
    last = ordered.shape[1] - 1
    for i in range(ordered.shape[0]):
        if not n_open[i]:
            keys[i], held[i] = 0, np.nan
            continue
        n, mass, before, at = 0.0, 0.0, -1.0, last
        for c in range(shares.size):
            if above[i, c, BEFORE] != before:  # else on from where the one before is reached
                n, mass, before = above[i, c]
                at = last - np.int64(before)
            while n < math.ceil(shares[c] * n_open[i]):
                mass += ordered[i, at]
                n, at = n + 1, at - 1
            held[i, c] = mass / sums[i]
        before = -1.0
        for t in range(masses.size):
            if above[i, shares.size + t, BEFORE] != before:
                n, mass, before = above[i, shares.size + t]
                at = last - np.int64(before)
            while mass < masses[t] * sums[i] and at >= 0 and ordered[i, at] > 0:
                mass += ordered[i, at]
                n, at = n + 1, at - 1
            keys[i, t] = n
