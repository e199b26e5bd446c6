"""The loops over the keys of a row, compiled by Numba on first use. Imported inside functions alone.

Scores come from a matrix product in the dtype of the arrays; all that follows is float64.
"""

import math

import numpy as np
from numba import njit

LOWEST = np.float32(-3e38)  # a score that gets no weight
LEAST = -1e30  # a finite number whose exponential is 0
CHUNK = 64  # keys or distances side by side
NEAR = 64.0  # a float32 score whose key has more than this part of its row's entropy is computed again, in float64
# of a row; COLLISION: sum of squared weights, BEST: the largest weight's key less the query, TARGET: a target's weight
LSE, ENTROPY, LARGEST, COLLISION, DISTANCE, OFFSET, SINK, BEST, TARGET = STATS = range(9)

WHOLE = {"reassoc", "contract", "nsz", "nnan"}  # sums in the order that registers like, the same in every call


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def hide(scores, stops):
    """Keys from stops[i] on get the lowest of all scores in row i."""
    for i in range(scores.shape[0]):
        scores[i, stops[i] :] = LOWEST


@njit(cache=True, nogil=True)
def shift(scores, q, k, scale, at, again, x, m):
    """x[i] = scale * scores[i] - m[i], where m[i] is that of key at[i]; `again`: computed in float64."""
    for i in range(scores.shape[0]):
        row, out = scores[i, : x.shape[1]], x[i]
        m[i] = scale * (product(q[i], k[at[i]]) if again else np.float64(row[at[i]]))
        for j in range(row.size):
            own = scale * row[j] - m[i]
            out[j] = own if own > LEAST else LEAST
        out[at[i]] = 0.0


@njit(cache=True, nogil=True, fastmath=WHOLE)
def moments(e, x, place):
    """Sums over keys of e, -e * x, e * e, e * distance and e * offset."""
    one, two, square, after = 0.0, 0.0, 0.0, 0.0
    distance = 0.0
    for j in range(e.size):
        one += e[j]
        two -= e[j] * x[j]
        square += e[j] * e[j]
        after += e[j] * (j - place)
        distance += e[j] * abs(j - place)
    return one, two, square, distance, after


@njit(cache=True, nogil=True)
def above(e, x, limit, log_l):
    """How many keys have a part ``e * (log_l - x)`` of the entropy above `limit`."""
    n = 0
    for j in range(e.size):
        n += e[j] * (log_l - x[j]) > limit
    return n


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def within(e, place, targets, found):
    """found[t] = the least distance from `place` within which e adds up to targets[t], rising."""
    n, t, held, first = e.size, 0, 0.0, 0
    furthest = max(place, n - 1 - place)
    found[:] = furthest
    while t < targets.size and first <= furthest:
        stop = first + CHUNK
        before = e[max(place - stop + 1, 0) : min(max(place - first + 1, 0), n)]
        behind = e[min(max(place + max(first, 1), 0), n) : min(max(place + stop, 0), n)]
        more = total(before) + total(behind)
        if held + more >= targets[t]:
            for d in range(first, stop):
                if 0 <= place - d < n:
                    held += e[place - d]
                if d > 0 and 0 <= place + d < n:
                    held += e[place + d]
                while t < targets.size and held >= targets[t]:
                    found[t], t = d, t + 1
                if t == targets.size:
                    break
        else:
            held += more
        first = stop


@njit(cache=True, nogil=True)
def ranked(ordered, targets, counts, keys, held):
    """keys[t] = how many of the largest weights add up to targets[t]; held[c] = the sum of the counts[c] largest. All
    rise, weights too."""
    n, mass, t, c = 0, 0.0, 0, 0
    while n < ordered.size and (t < targets.size or c < counts.size):
        last = ordered.size - n
        own = ordered[max(last - CHUNK, 0) : last]
        more = total(own)
        if own[-1] == 0:
            break
        if (t < targets.size and mass + more >= targets[t]) or (c < counts.size and n + own.size >= counts[c]):
            s = mass
            for i in range(own.size - 1, -1, -1):
                if own[i] == 0:
                    break
                s += own[i]
                n += 1
                while t < targets.size and s >= targets[t]:
                    keys[t], t = n, t + 1
                while c < counts.size and n >= counts[c]:
                    held[c], c = s, c + 1
        else:
            n += own.size
        mass += more
    keys[t:], held[c:] = n, mass


@njit(cache=True, nogil=True, fastmath=WHOLE)
def spread(e, weight, columns, offsets):
    for j in range(e.size):
        p = e[j] * weight
        columns[j] += p
        offsets[j] += p


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


@njit(cache=True, nogil=True)
def weigh(x, e, q, k, scale, stops, places, m, at, again, n_open, sums):
    """sums (n_rows, 6) of rows of weights e = exp(x), where x are scores less the largest one of the row: what
    `moments` gives without the largest, and the largest. With `again`, weights that carry much of the entropy are
    computed again from scores in float64, in place."""
    for i in range(x.shape[0]):
        if not n_open[i]:
            continue
        own, logs = e[i, : stops[i]], x[i, : stops[i]]
        own[at[i]] = 0.0
        rest, loss, square, distance, offset = moments(own, logs, places[i])
        l, log_l, most = 1.0 + rest, math.log1p(rest), 0.0
        limit = (log_l + loss / l) * l / NEAR
        if again and rest > 0 and log_l > limit:  # the largest key has the largest part
            most = correct(own, logs, q[i], k, scale, m[i], at[i], limit, log_l)
        if most > 0:
            rest, loss, square, distance, offset = moments(own, logs, places[i])
        own[at[i]] = 1.0
        sums[i] = np.array([rest, loss, square, distance, offset, max(most, 1.0)])


@njit(cache=True, nogil=True)
def reduce_rows(e, ordered, sums, stops, places, m, at, n_open, masses, quantiles, shares, coordinates, targets, block,
                stats, keys, distances, held, axes, columns, offsets, blocks):
    """All that a profile says of rows of one head, from weights e, the same in rising order, and `sums` of `weigh`.

    stops, places, n_open: for each row one more than the last key it may see, the key it sits at (which may be no key),
    how many it may see. targets: a key for each row, or -1. Written, a row a query: stats (.., 9), keys (.., masses),
    distances (.., quantiles), held (.., shares): the most that shares of the keys can hold, axes, blocks (.., n): mass
    of `block` keys side by side. Added up over rows: columns (n_keys,) and offsets (n_offsets,), key less query
    from -(n_keys - 1) on.
    """
    n_keys, counts = columns.size, np.empty(shares.size)
    for i in range(e.shape[0]):
        stop, place, blocks[i] = stops[i], places[i], 0.0
        if not n_open[i]:
            stats[i], distances[i], held[i], axes[i], keys[i] = np.nan, np.nan, np.nan, np.nan, 0
            continue
        own, step = e[i, :stop], at[i] - place
        rest, loss, square, distance, offset, most = sums[i]
        l, log_l = 1.0 + rest, math.log1p(rest)
        weight = 1.0 / l
        stats[i, LSE], stats[i, ENTROPY], stats[i, LARGEST] = m[i] + log_l, log_l + loss * weight, most * weight
        stats[i, COLLISION] = (square + 1.0) * weight * weight
        stats[i, DISTANCE], stats[i, OFFSET] = (distance + abs(step)) * weight, (offset + step) * weight
        stats[i, SINK], stats[i, BEST], stats[i, TARGET] = own[0] * weight, step, np.nan
        if targets[i] >= 0:
            stats[i, TARGET] = own[targets[i]] * weight if targets[i] < stop else 0.0
        spread(own, weight, columns[:stop], offsets[n_keys - 1 - place :][:stop])
        within(own, place, quantiles * l, distances[i])
        for c in range(shares.size):
            counts[c] = math.ceil(shares[c] * n_open[i])
        ranked(ordered[i], masses * l, counts, keys[i], held[i])
        for c in range(shares.size):
            held[i, c] *= weight
        for first in range(0, stop, block):
            blocks[i, first // block] = total(own[first : first + block]) * weight
        if coordinates.shape[0]:
            before = n_keys - coordinates.shape[1]  # keys that are not on the grid
            axes[i] = np.nan
            if place >= before:
                along_axes(own[before:], coordinates, coordinates[:, place - before], axes[i])
