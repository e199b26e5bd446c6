"""How many of the largest weights of a row hold some mass, and what mass some number of them holds, without sorting the
row. Compiled by Numba on first use; imported inside functions alone.

Positive floats are in the order of their bits. So weights are counted and added up in buckets by the leading bits of
what theirs are above the row's least; only those in a bucket where a wanted number or mass is reached need an order.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparseattn.kernels.numba_cpu.compile import cached
from sparseattn.kernels.numba_cpu.simd import data

MOST = 1024  # buckets of a row
SHARE = 8  # weights for each bucket, at least
COUNT, MASS, BEFORE = range(3)  # of what is above a bucket: weights, their sum, and those that are picked


@intrinsic
def tally(typingctx, sums, bucket, number):
    """Add (1, number) to the pair `bucket` of the memory `sums`, in one register."""

    def codegen(context, builder, sig, args):
        to, bucket, value = args
        pair = ir.VectorType(ir.DoubleType(), 2)
        place = builder.gep(builder.bitcast(to, pair.as_pointer()), [bucket])
        value = value if value.type == pair.element else builder.fpext(value, pair.element)
        both = builder.insert_element(ir.Constant(pair, [1.0, 0.0]), value, ir.IntType(32)(1))
        builder.store(builder.fadd(builder.load(place, align=8), both), place, align=8)
        return context.get_dummy_value()

    return types.void(sums, types.intp, number), codegen


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
    for c in range(pairs.shape[0] - 1, -1, -1):
        further, more, marks[c] = n + pairs[c, 0], mass + pairs[c, 1], 0
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
def pick_rows(e, bits, stops, counts, masses, picked, above):
    """For each row of weights e up to stops, whose bits are `bits`: those that need an order for `counts` (n_rows, ..)
    of the largest and `masses` (n_rows, ..), both rising, at the front of `picked`; above: of `reached`. Returns the
    most that are picked of a row; shorter ones get -1 behind."""
    places, n_picked = np.empty(e.shape[1], np.uint16), np.zeros(e.shape[0], np.int64)
    pairs, marks = np.empty((MOST, 2)), np.empty(MOST, np.uint8)
    for i in range(e.shape[0]):
        own, weights = bits[i, : stops[i]], e[i, : stops[i]]
        if not own.size:
            above[i] = 0.0
            continue
        low, high = bounds(own)
        n_buckets = deal(own, low, high, max(min(MOST, own.size // SHARE), 1), places)
        pairs[:n_buckets] = 0.0
        for j in range(own.size):
            tally(data(pairs), np.intp(places[j]), weights[j])
        reached(pairs[:n_buckets], counts[i], masses[i], marks, above[i])
        n_picked[i] = pick(weights, places, marks, picked[i])
    most = n_picked.max()
    for i in range(e.shape[0]):
        picked[i, n_picked[i] : most] = -1
    return most


@cached
def start(above, width):
    """How many weights are above a bucket, their sum, and where the bucket's largest lies among `width` that rise."""
    return np.int64(above[COUNT]), above[MASS], width - 1 - np.int64(above[BEFORE])


@cached
def rank_rows(ordered, counts, masses, above, keys, held):
    """From picked weights of rows, which rise: keys (n_rows, ..): how many of the largest weights of a row hold
    `masses`; held (n_rows, ..): what `counts` of them hold."""
    for i in range(ordered.shape[0]):
        for c in range(counts.shape[1]):
            n, mass, at = start(above[i, c], ordered.shape[1])
            for j in range(np.int64(counts[i, c]) - n):
                mass += ordered[i, at - j]
            held[i, c] = mass
        for t in range(masses.shape[1]):
            n, mass, at = start(above[i, counts.shape[1] + t], ordered.shape[1])
            while mass < masses[i, t] and at >= 0 and ordered[i, at] > 0:
                mass += ordered[i, at]
                n, at = n + 1, at - 1
            keys[i, t] = n
