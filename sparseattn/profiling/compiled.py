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

LEAST = -1e30  # a finite number whose exponential is 0
CHUNK = 64  # keys side by side
NEAR = 64.0  # a float32 score whose key has more than this part of its row's entropy is computed again, in float64
# of a row; COLLISION: sum of squared weights, BEST: the largest weight's key less the query, TARGET: a target's weight
LSE, ENTROPY, LARGEST, COLLISION, DISTANCE, OFFSET, SINK, BEST, TARGET = STATS = range(9)

WHOLE = {"reassoc", "contract", "nsz", "nnan"}  # sums in the order that registers like, the same in every call


@njit(cache=True, nogil=True, fastmath=WHOLE)
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
def exponentials(scores, top, scale, more, place, x, sums):
    """Scores become e = exp(x), x = scale * (score - top) + more; sums[c] = that of PART of these from PART * c on.
    The scale counts in full, though a float32 is less. Returns sums of e, -e * x, e * e, e * distance, e * offset."""
    e, logs, lanes = data(scores), data(x), lanes_of(data(scores))
    high = scores.dtype.type(scale)
    best, factor, rest = splat(e, top), splat(e, high), splat(e, scores.dtype.type(scale - high))
    added, least = splat(e, more), splat(e, LEAST / scale)
    ones = losses = squares = distances = offsets = alike(0.0)
    steps, further = counted(np.float64(-place)), alike(np.float64(PART))
    for c in range(sums.size):
        for j in range(PART * c, PART * c + PART, lanes):
            value = maximum(least, sub(load(e, j), best))  # where NaN stays
            value = fma(factor, value, fma(rest, value, added))
            store(logs, j, value)
            store(e, j, exp(value))
        w = widen(e, PART * c)
        sums[c] = sum_of(w)
        ones, losses, squares = add(ones, w), fma(w, widen(logs, PART * c), losses), fma(w, w, squares)
        distances, offsets = fma(w, size_of(steps), distances), fma(w, steps, offsets)
        steps = add(steps, further)
    return sum_of(ones), -sum_of(losses), sum_of(squares), sum_of(distances), sum_of(offsets)


@cached
def above(e, x, limit, log_l):
    """How many keys have a part ``e * (log_l - x)`` of the entropy above `limit`."""
    n = 0
    for j in range(e.size):
        n += e[j] * (log_l - x[j]) > limit
    return n


@cached
def correct(e, x, q, k, scale, m, place, limit, log_l, sums):
    """Compute the scores again in float64 of keys whose part ``e * (log_l - x)`` is above `limit`. Returns how much
    more the sums of `exponentials` are then, and the largest e of these; 0 if there are none."""
    one = loss = square = distance = offset = most = 0.0
    for first in range(0, k.shape[0], CHUNK):
        last = min(first + CHUNK, k.shape[0])
        if not above(e[first:last], x[first:last], limit, log_l):
            continue
        for j in range(first, last):
            old, was = np.float64(e[j]), np.float64(x[j])
            if old * (log_l - was) > limit:
                now = scale * product(q, k[j]) - m
                e[j] = math.exp(now)
                new = np.float64(e[j])
                more, most = new - old, max(most, new)
                one, loss, square = one + more, loss + old * was - new * now, square + more * (new + old)
                distance, offset = distance + more * abs(j - place), offset + more * (j - place)
                sums[j // PART] += more
    return one, loss, square, distance, offset, most


@cached
def add_up(sums, before):
    """before[c] = the sum of all before sums[c], and so for what comes behind the last."""
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
def add_blocks(x, size, weight, sums):
    """Add those of `size` numbers of x side by side, weighted, to sums."""
    if size == 1:
        add_row(x, weight, sums)
        return
    for c in range(-(-x.size // size)):
        s = 0.0
        for j in range(c * size, min(c * size + size, x.size)):
            s += x[j]
        sums[c] += s * weight


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
def weigh(scores, q, k, scale, m, at, again, place, x, sums):
    """Scores of one row become e = exp(x), x the scores less the largest one, which is m, of key `at`; sums: of PART
    side by side. Returns what `exponentials` gives without that key, and the largest e. With `again`, m is a product in
    float64 as are, in the end, the scores of keys that carry much of the entropy."""
    top, most = scores[at], 0.0
    scores[at] = -np.inf
    rest, loss, square, distance, offset = exponentials(scores, top, scale, scale * top - m, place, x, sums)
    l, log_l = 1.0 + rest, math.log1p(rest)
    limit = (log_l + loss / l) * l / NEAR
    if again and rest > 0 and log_l > limit:  # the largest key has the largest part
        one, less, two, far, off, most = correct(scores, x, q, k, scale, m, place, limit, log_l, sums)
        rest, loss, square, distance, offset = rest + one, loss + less, square + two, distance + far, offset + off
    scores[at] = 1.0
    sums[at // PART] += 1.0
    return rest, loss, square, distance, offset, max(most, 1.0)


@cached
def reduce_rows(scores, q, k, scale, stops, places, at, again, n_open, quantiles, coordinates, targets, block, lines,
                sums, stats, distances, axes, columns, offsets, mass):
    """Of rows of one head: their scores (n_rows, a multiple of PART), which become weights whose sums are `sums`, and
    all that a profile says of them but the ranks.

    stops, places, at, n_open: for each row one more than the last key it may see, the key it sits at (which may be no
    key), that of its largest score, how many it may see. again: whether scores that count most are computed again, in
    float64. targets: a key for each row, or -1. lines: the row of `mass` that it belongs to. Written, a row a query:
    stats (.., 9), distances (.., quantiles), axes. Added up over rows: columns (n_keys,), offsets (n_offsets,), key
    less query from -(n_keys - 1) on, and mass (n_lines, n_blocks) of `block` keys side by side.
    """
    n_keys, width = columns.size, scores.shape[1]
    x, of_parts, before = np.empty(width, scores.dtype), np.empty(width // PART), np.empty(width // PART + 1)
    for i in range(scores.shape[0]):
        stop, place = stops[i], places[i]
        if not n_open[i]:
            stats[i], distances[i], axes[i], scores[i], sums[i] = np.nan, np.nan, np.nan, 0.0, np.inf
            continue
        n_parts, step = -(-stop // PART), at[i] - place
        m = scale * (product(q[i], k[at[i]]) if again else np.float64(scores[i, at[i]]))
        rest, loss, square, distance, offset, most = weigh(scores[i, : n_parts * PART], q[i], k[:stop], scale, m, at[i],
                                                           again, place, x, of_parts[:n_parts])
        scores[i, n_parts * PART :] = 0.0
        own, l, log_l = scores[i, :stop], 1.0 + rest, math.log1p(rest)
        sums[i], weight = l, 1.0 / l
        stats[i, LSE], stats[i, ENTROPY], stats[i, LARGEST] = m + log_l, log_l + loss * weight, most * weight
        stats[i, COLLISION] = (square + 1.0) * weight * weight
        stats[i, DISTANCE], stats[i, OFFSET] = (distance + abs(step)) * weight, (offset + step) * weight
        stats[i, SINK], stats[i, BEST], stats[i, TARGET] = own[0] * weight, step, np.nan
        if targets[i] >= 0:
            stats[i, TARGET] = own[targets[i]] * weight if targets[i] < stop else 0.0
        add_up(of_parts[:n_parts], before)
        within(own, before, n_parts, place, quantiles, l, distances[i])
        if block % PART:
            add_blocks(own, block, weight, mass[lines[i]])
        else:
            add_blocks(of_parts[:n_parts], block // PART, weight, mass[lines[i]])
        if coordinates.shape[0]:
            first = n_keys - coordinates.shape[1]  # that is on the grid
            axes[i] = np.nan
            if place >= first:
                along_axes(own[first:], coordinates, coordinates[:, place - first], axes[i])
    spread(scores, 1.0 / sums, columns[:width])
    spread_steps(scores, 1.0 / sums, stops, n_keys - 1 - places, offsets)
