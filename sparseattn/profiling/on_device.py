"""The pass over rows and the judging of candidates in functions that NumPy and CuPy share: what arrays on a GPU get.

Rows are taken in chunks, everything is float64, and the results come back as NumPy arrays, which waits for the GPU.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparseattn import patterns
from sparseattn.attention import attend
from sparseattn.profiling import costs
from sparseattn.profiling.evaluate import Judged, check, compared, first_scores, walk_head
from sparseattn.profiling.rows import Measured, Tiles
from sparseattn.xp import device_of, namespace, on_cpu, on_its_device

CHUNK = 1 << 22  # scores at a time


@on_its_device
def measure(q, k, asked, advance) -> Measured:
    """As `rows.measure`, for arrays of either library."""
    batch, n_heads, n_queries, _ = q.shape
    found, group = Measured.empty(batch, n_heads, asked, n_queries), n_heads // k.shape[1]
    base = math.gcd(*asked.block_sizes)
    for b, h in np.ndindex(batch, n_heads):
        tiles = Tiles(asked.rows, base, k.shape[2])
        keys = _readable(k[b, h // group], asked.is_open[b])
        step = max(CHUNK // k.shape[2], 1)
        for first in range(0, asked.rows.size, step):
            rows = slice(first, first + step)
            own = _readable(q[b, h][namespace(q).asarray(asked.rows[rows])], asked.is_asked[b, rows])
            _chunk(found, b, h, rows, own @ keys.T * asked.scale, asked, tiles)
        found.block_shares[b, h] = tiles.shares(asked, b)
        advance()
    return found


def _readable(x, there):
    xp = namespace(x)
    return xp.where(xp.asarray(there)[:, None], x.astype(np.float64), 0.0)


def _chunk(found, b, h, rows, s, asked, tiles):
    """Fill in some rows from their scores s (n_rows, n_keys)."""
    xp, n_keys = namespace(s), s.shape[1]
    stops, places, n_open = (xp.asarray(x[rows]) for x in (asked.stops(b), asked.places, asked.n_open(b)))
    cols, row = xp.arange(n_keys), xp.arange(s.shape[0])
    allowed = (cols < stops[:, None]) & xp.asarray(asked.is_open[b])
    s = xp.where(allowed, s, -np.inf)
    at = s.argmax(axis=1)
    m = xp.where(n_open > 0, s[row, at], 0.0)
    x = xp.where(allowed, s - m[:, None], 0.0)
    e = xp.where(allowed, xp.exp(x), 0.0)
    e[row, at] = 0.0
    rest, loss = e.sum(axis=1), -(e * x).sum(axis=1)
    e[row, at] = xp.where(n_open > 0, 1.0, 0.0)
    log_l, weight = xp.log1p(rest), 1 / (1 + rest)
    p, step = e * weight[:, None], cols - places[:, None]
    targets = xp.asarray(asked.targets[b, h, rows])
    aimed = xp.where(targets >= 0, p[row, xp.maximum(targets, 0)], np.nan)
    stats = [m + log_l, log_l + loss * weight, weight, (p * p).sum(axis=1), (p * abs(step)).sum(axis=1),
             (p * step).sum(axis=1), p[:, 0], (at - places).astype(float), aimed]
    ranked = -xp.sort(-p, axis=1)
    held = xp.cumsum(ranked, axis=1)
    keys = [xp.minimum((held < t).sum(axis=1) + 1, n_open) for t in asked.masses.tolist()] or [n_open]
    counts = xp.ceil(xp.asarray(asked.shares) * n_open[:, None]).astype(np.int64)
    found.stats[b, h, rows] = _of_rows(xp.stack(stats, axis=1), n_open)
    found.keys[b, h, rows] = on_cpu(xp.stack(keys, axis=1))[:, : asked.masses.size]
    found.held[b, h, rows] = _of_rows(xp.take_along_axis(held, xp.maximum(counts, 1) - 1, axis=1), n_open)
    found.distances[b, h, rows] = _of_rows(_within(p, places, asked), n_open)
    if asked.coordinates.shape[0]:
        found.axes[b, h, rows] = _of_rows(_along_axes(p, places, asked), n_open)
    found.columns[b, h] += on_cpu(p.sum(axis=0))
    found.offsets[b, h] += on_cpu(_by_offset(p, places, found.offsets.shape[2]))
    pad = -n_keys % tiles.base
    blocks = xp.pad(p, ((0, 0), (0, pad))).reshape(p.shape[0], -1, tiles.base).sum(axis=2)
    tiles.add(range(rows.start, rows.start + p.shape[0]), on_cpu(blocks))


def _of_rows(x, n_open):
    """NumPy, NaN in rows without a key."""
    return np.where(on_cpu(n_open)[:, None] > 0, on_cpu(x), np.nan)


def _within(p, places, asked):
    """Distance quantiles (n_rows, n), from sums over the keys up to each."""
    xp, n_keys = namespace(p), p.shape[1]
    sums = xp.pad(xp.cumsum(p, axis=1), ((0, 0), (1, 0)))
    furthest = int(max(asked.places.max(), n_keys - 1 - asked.places.min()))
    d, place = xp.arange(furthest + 1), places[:, None]
    last, first = xp.clip(place + d + 1, 0, n_keys), xp.clip(place - d, 0, n_keys)
    mass = xp.take_along_axis(sums, last, axis=1) - xp.take_along_axis(sums, first, axis=1)
    found = [xp.where(mass[:, -1] >= t, (mass >= t).argmax(axis=1), furthest) for t in asked.quantiles.tolist()]
    return xp.stack(found, axis=1).astype(float) if found else xp.zeros((p.shape[0], 0))


def _by_offset(p, places, n_offsets):
    """Sums over rows by key less query, from -(n_keys - 1) on."""
    xp, n_keys = namespace(p), p.shape[1]
    keys = places[:, None] + xp.arange(n_offsets) - (n_keys - 1)
    there = (keys >= 0) & (keys < n_keys)
    return xp.where(there, xp.take_along_axis(p, xp.clip(keys, 0, n_keys - 1), axis=1), 0.0).sum(axis=0)


def _along_axes(p, places, asked):
    """Mean distances on the grid (n_rows, n_axes + 1), NaN for rows before it."""
    xp, before = namespace(p), p.shape[1] - asked.coordinates.shape[1]
    own = p[:, before:] / p[:, before:].sum(axis=1, keepdims=True)
    coordinates, at = xp.asarray(asked.coordinates), xp.maximum(places - before, 0)
    steps = abs(coordinates[:, None] - coordinates[:, at][:, :, None])
    steps = [*steps, xp.sqrt((steps**2).sum(axis=0))]
    found = xp.stack([(own * x).sum(axis=1) for x in steps], axis=1)
    return xp.where(places[:, None] >= before, found, np.nan)


@on_its_device
def judge(candidate, inputs) -> Judged:
    """As `evaluate.judge`: attention over all queries on the device, of which the rows are taken; keys are counted on
    the CPU."""
    q, k, asked, v = inputs.q, inputs.k, inputs.asked, inputs.v
    pattern = candidate.build(q, k, asked.causal, asked.scale).to("cpu")
    check(candidate.name, pattern, q, k)
    cost = costs.of(pattern, candidate, q, k, v)
    allowed = pattern & _allowed(asked, q.shape[2])
    own = allowed if device_of(q) == "cpu" else allowed.to(q.device)
    out, lse = (on_cpu(x)[:, :, asked.rows].astype(float) for x in attend(q, k, k if v is None else v, own,
                                                                          scale=asked.scale, return_lse=True))
    mass, kept = np.zeros((2, *lse.shape)), np.zeros(lse.shape, np.int64)
    for b, h in np.ndindex(lse.shape[:2]):
        where = (b if pattern.batch > 1 else 0, h * pattern.n_heads // q.shape[1])
        walk_head(_nobody(inputs), pattern, where, b, h, mass[:, b, h], kept[b, h], None)
    mass[0] = np.exp(lse - inputs.lse)
    mass[1] *= np.exp(first_scores(q, k, asked) - inputs.lse)
    return compared(mass, kept, None if v is None else out, inputs, cost)


def _allowed(asked, n_queries):
    """What queries may see, as a pattern on the CPU."""
    n_keys = asked.is_open.shape[1]
    base = patterns.causal(n_queries, n_keys) if asked.causal else patterns.dense(n_queries, n_keys)
    return base if asked.is_open.all() else base & patterns.padding(asked.is_open, n_queries=n_queries)


def _nobody(inputs):
    """Inputs whose scores are all 0, for counting."""
    empty = functools.partial(np.zeros, dtype=np.float64)
    q, k = (empty((*x.shape[:3], 1)) for x in (inputs.q, inputs.k))
    return type(inputs)(q, k, None, inputs.asked, np.zeros(inputs.lse.shape), None)
