"""The loops over the keys of a row, compiled by Numba on first use. Imported inside functions alone.

Scores come from a matrix product in the dtype of the arrays, and so do weights, save those that count most; all sums
are float64.
"""

import math

import numpy as np
from numba import njit

from sparseattn.kernels.numba_cpu.compile import cached
from sparseattn.kernels.numba_cpu.lanewise import exp
from sparseattn.kernels.numba_cpu.simd import add, data, fma, lanes_of, load, maximum, splat, store, sub
from sparseattn.kernels.numba_cpu.wide import PART, alike, counted, size_of, sum_of, widen

LOWEST = np.float32(-3e38)  # a score that gets no weight
LEAST = -1e30  # a finite number whose exponential is 0
CHUNK = 64  # keys side by side
NEAR = 64.0  # a float32 score whose key has more than this part of its row's entropy is computed again, in float64
# of a row; COLLISION: sum of squared weights, BEST: the largest weight's key less the query, TARGET: a target's weight
LSE, ENTROPY, LARGEST, COLLISION, DISTANCE, OFFSET, SINK, BEST, TARGET = STATS = range(9)

WHOLE = {"reassoc", "contract", "nsz", "nnan"}  # sums in the order that registers like, the same in every call


@cached
def product(x, y):
    """x . y in float64."""
    total = 0.0
    for d in range(x.size):
        total += np.float64(x[d]) * np.float64(y[d])
    return total


@njit(cache=True, nogil=True, fastmath=WHOLE)
def total(x):
    s = 0.0
    for j in range(x.size):
        s += x[j]
    return s


@cached
def hide(scores, stops):
    """Keys from stops[i] on get the lowest of all scores in row i."""
    for i in range(scores.shape[0]):
        scores[i, stops[i] :] = LOWEST


@cached
def exponentials(scores, top, scale, more, x, e):
    """x = scale * (scores - top) + more, and e = exp(x). The scale counts in full, though a float32 is less."""
    own, logs, weights, lanes = data(scores), data(x), data(e), lanes_of(data(e))
    high = scores.dtype.type(scale)
    low, whole = scores.dtype.type(scale - high), e.size - e.size % lanes
    best, factor, rest = splat(own, top), splat(own, high), splat(own, low)
    added, least = splat(own, more), splat(own, LEAST)
    for j in range(0, whole, lanes):
        value = sub(load(own, j), best)
        value = maximum(least, fma(factor, value, fma(rest, value, added)))  # where NaN stays
        store(logs, j, value)
        store(weights, j, exp(value))
    for j in range(whole, e.size):
        x[j] = max(scale * (scores[j] - top) + more, LEAST)
        e[j] = math.exp(x[j])


@cached
def moments(e, x, place):
    """Sums over keys of e, -e * x, e * e, e * distance and e * offset."""
    weights, logs, whole = data(e), data(x), e.size - e.size % PART
    ones = losses = squares = distances = offsets = alike(0.0)
    steps, further = counted(np.float64(-place)), alike(np.float64(PART))
    for j in range(0, whole, PART):
        w = widen(weights, j)
        ones, losses, squares = add(ones, w), fma(w, widen(logs, j), losses), fma(w, w, squares)
        distances, offsets = fma(w, size_of(steps), distances), fma(w, steps, offsets)
        steps = add(steps, further)
    one, loss, square = sum_of(ones), -sum_of(losses), sum_of(squares)
    distance, offset = sum_of(distances), sum_of(offsets)
    for j in range(whole, e.size):
        w = np.float64(e[j])
        one, loss, square = one + w, loss - w * x[j], square + w * w
        distance, offset = distance + w * abs(j - place), offset + w * (j - place)
    return one, loss, square, distance, offset


@cached
def above(e, x, limit, log_l):
    """How many keys have a part ``e * (log_l - x)`` of the entropy above `limit`."""
    n = 0
    for j in range(e.size):
        n += e[j] * (log_l - x[j]) > limit
    return n


@cached
def correct(e, x, q, k, scale, m, at, limit, log_l):
    """Compute the scores again in float64 of keys, but `at`, whose part ``e * (log_l - x)`` is above `limit`. Returns
    the largest e of these; 0 if there are none."""
    most = 0.0
    for first in range(0, e.size, CHUNK):
        own, logs = e[first : first + CHUNK], x[first : first + CHUNK]
        if not above(own, logs, limit, log_l):
            continue
        for j in range(own.size):
            if own[j] * (log_l - logs[j]) > limit and first + j != at:
                logs[j] = scale * product(q, k[first + j]) - m
                own[j] = math.exp(logs[j])
                most = max(most, own[j])
    return most


@cached
def parts(x, sums):
    """sums[c] = that of the PART numbers from PART * c on."""
    numbers = data(x)
    for c in range(sums.size):
        sums[c] = sum_of(widen(numbers, PART * c))


@cached
def add_up(x, sums, before):
    """sums[c] = that of the PART numbers, or what is left, from PART * c on; before[c] = that of all before these."""
    whole = x.size // PART
    parts(x, sums[:whole])
    sums[whole:] = total(x[whole * PART :])
    held = before[0] = 0.0
    for c in range(sums.size):
        held += sums[c]
        before[c + 1] = held


@cached
def up_to(e, before, key):
    """Sum of e over the keys before `key`, or over none or all."""
    key = min(max(key, 0), e.size)
    return before[key // PART] + total(e[key - key % PART : key])


@cached
def within(e, before, last, place, masses, whole, found):
    """found[t] = the least distance from `place` within which e adds up to masses[t] * whole, rising; before: of
    `add_up`, up to before[last]."""
    middle, turn = place // PART, place % PART
    furthest, steps, d = max(place, e.size - 1 - place), max(middle, last - middle), 0
    for t in range(masses.size):
        target = masses[t] * whole
        least, most = d // PART, steps  # parts on each side; no fewer, no more
        while least < most:
            some = (least + most) // 2
            if before[min(max(middle + some + 1, 0), last)] - before[min(max(middle - some, 0), last)] < target:
                least = some + 1
            else:
                most = some
        d = max(d, (least - 1) * PART + min(turn, PART - 1 - turn) + 1)  # no smaller distance reaches as far as that
        held = up_to(e, before, place + d + 1) - up_to(e, before, place - d)
        while held < target and d < furthest:
            d += 1
            if place - d >= 0 and place - d < e.size:
                held += e[place - d]
            if place + d >= 0 and place + d < e.size:
                held += e[place + d]
        found[t] = d = min(d, furthest)


@cached
def largest(ordered, after, n):
    """The sum of the n largest weights; after: of `ranked`."""
    key = ordered.size - n
    c = (key - ordered.size % PART + PART - 1) // PART
    return after[c] + total(ordered[key : c * PART + ordered.size % PART])


@cached
def ranked(ordered, after, masses, whole, shares, n_open, keys, held):
    """keys[t] = how many of the largest weights, which rise, add up to masses[t] * whole; held[c] = what part of
    `whole` ceil(shares[c] * n_open) of them hold. after (n_parts + 1,): for sums from a part on to the end."""
    first, n_parts = ordered.size % PART, after.size - 1  # where the first part begins
    parts(ordered[first:], after[:n_parts])
    after[n_parts] = 0.0
    for c in range(n_parts - 1, -1, -1):
        after[c] += after[c + 1]
    for c in range(shares.size):
        held[c] = largest(ordered, after, math.ceil(shares[c] * n_open)) / whole
    for t in range(masses.size):
        target, low, high = masses[t] * whole, 0, n_parts
        while low < high:  # to the first part from which on there is too little
            c = (low + high) // 2
            low, high = (c + 1, high) if after[c] >= target else (low, c)
        mass, key = after[low], first + low * PART
        while mass < target and key > 0 and ordered[key - 1] > 0:
            key -= 1
            mass += ordered[key]
        while mass < target and key < ordered.size and ordered[key] == 0:
            key += 1
        keys[t] = ordered.size - key


@njit(cache=True, nogil=True, fastmath=WHOLE)
def spread(e, weights, columns):
    """Add the weighted rows of e to columns, four at a time."""
    for i in range(0, e.shape[0] - 3, 4):
        a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        x, y, z, w = e[i], e[i + 1], e[i + 2], e[i + 3]
        for j in range(columns.size):
            columns[j] += a * x[j] + b * y[j] + c * z[j] + d * w[j]
    for i in range(e.shape[0] - e.shape[0] % 4, e.shape[0]):
        add_row(e[i], weights[i], columns)


@njit(cache=True, nogil=True, fastmath=WHOLE)
def add_row(e, weight, sums):
    for j in range(e.size):
        sums[j] += weight * e[j]


@njit(cache=True, nogil=True, fastmath=WHOLE)
def spread_steps(e, weights, stops, firsts, offsets):
    """Add the weighted rows of e, up to stops, to offsets from firsts on, where four rows in turn often begin one
    further left than the row before."""
    i = 0
    while i < e.shape[0]:
        n = 0  # offsets that all four have
        if i + 4 <= e.shape[0] and firsts[i] - firsts[i + 3] == 3:
            n = min(stops[i], stops[i + 1] - 1, stops[i + 2] - 2, stops[i + 3] - 3)
        if n <= 0:
            add_row(e[i, : stops[i]], weights[i], offsets[firsts[i] :])
            i += 1
            continue
        a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        x, y, z, w, sums = e[i], e[i + 1, 1:], e[i + 2, 2:], e[i + 3, 3:], offsets[firsts[i] :]
        for j in range(n):
            sums[j] += a * x[j] + b * y[j] + c * z[j] + d * w[j]
        for row in range(4):
            own, weight, first = e[i + row], weights[i + row], firsts[i + row]
            add_row(own[:row], weight, offsets[first:])
            add_row(own[row + n : stops[i + row]], weight, offsets[first + row + n :])
        i += 4


@cached
def blocks_of(x, size, weight, sums):
    """Set sums to those of `size` numbers of x side by side, weighted."""
    for first in range(0, x.size, size):
        s = 0.0
        for j in range(first, min(first + size, x.size)):
            s += x[j]
        sums[first // size] = s * weight


@njit(cache=True, nogil=True, fastmath=WHOLE)
def along_axes(e, coordinates, own, found):
    """found (n_axes + 1,): mean distance along each axis of a grid, and through space, of weights e of its first keys.
    """
    n_axes, space, whole = coordinates.shape[0], 0.0, total(e)
    for j in range(e.size):
        square = 0.0
        for a in range(n_axes):
            step = coordinates[a, j] - own[a]
            square += step * step
        space += e[j] * math.sqrt(square)
    for a in range(n_axes):
        line, s = coordinates[a], 0.0
        for j in range(e.size):
            s += e[j] * abs(line[j] - own[a])
        found[a] = s / whole
    found[n_axes] = space / whole


@cached
def weigh(scores, top, q, k, scale, m, at, again, place, e, x):
    """e = exp(x), x the scores of one row less the largest one, which is m, of key `at`. Returns what `moments` gives
    without that key, and the largest e. With `again`, m is a product in float64 as are, in the end, the scores of keys
    that carry much of the entropy."""
    exponentials(scores, top, scale, scale * top - m, x, e)
    e[at] = x[at] = 0.0
    rest, loss, square, distance, offset = moments(e, x, place)
    l, log_l, most = 1.0 + rest, math.log1p(rest), 0.0
    limit = (log_l + loss / l) * l / NEAR
    if again and rest > 0 and log_l > limit:  # the largest key has the largest part
        most = correct(e, x, q, k, scale, m, at, limit, log_l)
    if most > 0:
        rest, loss, square, distance, offset = moments(e, x, place)
    e[at] = 1.0
    return rest, loss, square, distance, offset, max(most, 1.0)


@cached
def reduce_rows(scores, q, k, scale, stops, places, at, again, n_open, quantiles, coordinates, targets, block, e, sums,
                stats, distances, axes, columns, offsets, blocks):
    """Of rows of one head, from their scores: weights e (n_rows, width) whose sums are `sums`, and all that a profile
    says of them but the ranks.

    stops, places, at, n_open: for each row one more than the last key it may see, the key it sits at (which may be no
    key), that of its largest score, how many it may see. again: whether scores that count most are computed again, in
    float64. targets: a key for each row, or -1. Written, a row a query: stats (.., 9), distances (.., quantiles), axes,
    blocks (.., n): mass of `block` keys side by side. Added up over rows: columns (n_keys,) and offsets (n_offsets,),
    key less query from -(n_keys - 1) on.
    """
    n_keys, width = columns.size, e.shape[1]
    x, of_parts, before = np.empty(width, e.dtype), np.empty(width // PART + 1), np.empty(width // PART + 2)
    for i in range(e.shape[0]):
        stop, place, blocks[i] = stops[i], places[i], 0.0
        if not n_open[i]:
            stats[i], distances[i], axes[i], e[i], sums[i] = np.nan, np.nan, np.nan, 0.0, np.inf
            continue
        own, step, top = e[i, :stop], at[i] - place, scores[i, at[i]]
        e[i, stop:] = 0.0
        m = scale * (product(q[i], k[at[i]]) if again else np.float64(top))
        rest, loss, square, distance, offset, most = weigh(scores[i], top, q[i], k, scale, m, at[i], again, place, own,
                                                           x[:stop])
        l, log_l = 1.0 + rest, math.log1p(rest)
        sums[i], weight = l, 1.0 / l
        stats[i, LSE], stats[i, ENTROPY], stats[i, LARGEST] = m + log_l, log_l + loss * weight, most * weight
        stats[i, COLLISION] = (square + 1.0) * weight * weight
        stats[i, DISTANCE], stats[i, OFFSET] = (distance + abs(step)) * weight, (offset + step) * weight
        stats[i, SINK], stats[i, BEST], stats[i, TARGET] = own[0] * weight, step, np.nan
        if targets[i] >= 0:
            stats[i, TARGET] = own[targets[i]] * weight if targets[i] < stop else 0.0
        n_parts = -(-stop // PART)
        add_up(own, of_parts[:n_parts], before)
        within(own, before, n_parts, place, quantiles, l, distances[i])
        if block % PART:
            blocks_of(own, block, weight, blocks[i])
        else:
            blocks_of(of_parts[:n_parts], block // PART, weight, blocks[i])
        if coordinates.shape[0]:
            first = n_keys - coordinates.shape[1]  # that is on the grid
            axes[i] = np.nan
            if place >= first:
                along_axes(own[first:], coordinates, coordinates[:, place - first], axes[i])
    spread(e, 1.0 / sums, columns[:width])
    spread_steps(e, 1.0 / sums, stops, n_keys - 1 - places, offsets)


@cached
def rank_rows(ordered, sums, n_open, masses, shares, keys, held):
    """keys (n_rows, masses): how many of the largest weights of a row, which rise and have a sum in `sums`, hold these
    masses; held (n_rows, shares): the most that shares of the n_open keys can hold. 0 and NaN where there is no key."""
    after = np.empty(ordered.shape[1] // PART + 1)
    for i in range(ordered.shape[0]):
        if n_open[i]:
            ranked(ordered[i], after, masses, sums[i], shares, n_open[i], keys[i], held[i])
        else:
            keys[i], held[i] = 0, np.nan
