"""The streaming pass over NumPy arrays: every sampled row exactly, over all its keys, and nothing kept of the keys but
sums. Memory is O(n_keys) a head."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from sparseattn.profiling.shapes import best_share
from sparseattn.selection.sharing import for_each
from sparseattn.xp import compute_dtype

ITEMS = 16  # work items of a head; what each adds up over its rows is added in their order
LEAST = 2.0**-20  # of scales that stay factors
NEAR = 1 << 18  # scores that are worked on at a time: what caches hold


@dataclass(frozen=True)
class Asked:
    """What is measured: rows (n_rows,) positions of queries, and what to look at in each.

    `is_open` (batch, n_keys) and `is_asked` (batch, n_rows): bool, keys and rows that are no padding. `coordinates`
    (n_axes, n): float64, places of the last n keys on a grid; no axis where there is none.
    """

    rows: np.ndarray
    causal: bool
    scale: float
    masses: np.ndarray
    quantiles: np.ndarray
    shares: np.ndarray
    block_sizes: tuple[int, ...]
    is_open: np.ndarray
    is_asked: np.ndarray
    coordinates: np.ndarray
    targets: np.ndarray  # int64 (batch, n_heads, n_rows), a key for each row or -1
    offset: int  # the key that query 0 sits at

    @property
    def places(self) -> np.ndarray:
        """The key that each row sits at, int64 (n_rows,)."""
        return self.rows + self.offset

    def stops(self, item: int) -> np.ndarray:
        """One more than the last key that each row of a batch item may see, int64 (n_rows,); 0 for rows left out."""
        n_keys = self.is_open.shape[1]
        stops = np.clip(self.places + 1, 0, n_keys) if self.causal else np.full(self.rows.size, n_keys)
        return np.where(self.is_asked[item], stops, 0)

    def n_open(self, item: int) -> np.ndarray:
        """Keys that each row of a batch item may see, int64 (n_rows,)."""
        return np.concatenate([[0], np.cumsum(self.is_open[item])])[self.stops(item)]


@dataclass(frozen=True)
class Measured:
    """Of each row, float64 with axes (batch, n_heads, n_rows, ...) and NaN where a row has no key: `stats` in the order
    of `compiled`; and sums over rows (batch, n_heads, ...)."""

    stats: np.ndarray
    keys: np.ndarray  # int64, 0 where a row has no key
    distances: np.ndarray
    held: np.ndarray
    axes: np.ndarray
    columns: np.ndarray
    offsets: np.ndarray  # of key less query, from -(n_keys - 1) on; up to 0 if causal
    block_shares: np.ndarray  # (batch, n_heads, n_block_sizes)

    @staticmethod
    def empty(batch, n_heads, asked: Asked, n_queries) -> Measured:
        """Arrays to be filled."""
        lead, n_keys = (batch, n_heads), asked.is_open.shape[1]
        n_axes, n_offsets = asked.coordinates.shape[0], n_keys if asked.causal else n_keys + n_queries - 1

        def of_rows(n, dtype=float):
            return np.zeros((*lead, asked.rows.size, n), dtype)

        return Measured(
            stats=of_rows(9), keys=of_rows(asked.masses.size, np.int64), distances=of_rows(asked.quantiles.size),
            held=of_rows(asked.shares.size), axes=of_rows(n_axes + 1 if n_axes else 0),
            columns=np.zeros((*lead, n_keys)), offsets=np.zeros((*lead, n_offsets)),
            block_shares=np.zeros((*lead, len(asked.block_sizes))),
        )


def measure(q, k, asked: Asked, advance) -> Measured:
    """The pass over q (batch, n_heads, n_queries, head_dim) and k (batch, n_kv_heads, n_keys, head_dim); `advance()` is
    called after each head."""
    from sparseattn.profiling.scores import panels_of

    batch, n_heads, n_queries, _ = q.shape
    found = Measured.empty(batch, n_heads, asked, n_queries)
    for b, kv_head in itertools.product(range(batch), range(k.shape[1])):
        own = readable(k[b, kv_head], asked.is_open[b])
        panels = panels_of(own)
        group = n_heads // k.shape[1]
        for h in range(kv_head * group, (kv_head + 1) * group):
            _measure_head(found, b, h, readable(q[b, h][asked.rows], asked.is_asked[b]), own, panels, asked)
            advance()
    return found


def readable(x, there):
    """Rows (n, head_dim) in the dtype that they are computed in, side by side; 0 for those that are not `there`."""
    x = np.ascontiguousarray(x, compute_dtype(x.dtype))
    return x if there.all() else np.where(there[:, None], x, x.dtype.type(0))


def _measure_head(found, b, h, q, k, panels, asked):
    """Fill in one head: q (n_rows, head_dim), k (n_keys, head_dim), the same in panels."""
    q, scale = _signed(q, asked.scale)
    tiles = Tiles(asked.rows, math.gcd(*asked.block_sizes), k.shape[0])
    work = Work(found, b, h, q, k, panels, scale, asked, tiles)
    work.reduce()
    if not np.isfinite(found.stats[b, h, work.n_open > 0, :8]).all():
        raise ValueError(f"scores of batch item {b}, head {h} are beyond {k.dtype}; pass float64 arrays, or smaller q "
                         "and k")
    found.block_shares[b, h] = tiles.shares(asked, b)


def _signed(q, scale):
    """q and a scale well above 0 that give the same scores: a key without weight is one with the lowest product."""
    factor, scale = (np.sign(scale), abs(scale)) if abs(scale) > LEAST else (scale, 1.0)
    return (q if factor == 1 else q * q.dtype.type(factor)), float(scale)


class Work:
    """One head while it is measured: what its work items share, and the memory that they use again and again."""

    def __init__(self, found, b, h, q, k, panels, scale, asked, tiles):
        self.q, self.k, self.panels, self.asked, self.scale, self.tiles = q, k, panels, asked, scale, tiles
        self.width = panels.shape[0] * panels.shape[2]
        self.closed = np.flatnonzero(~asked.is_open[b])
        self.stops, self.n_open, self.places = asked.stops(b), asked.n_open(b), asked.places
        self.targets = asked.targets[b, h]
        self.rows = [x[b, h] for x in (found.stats, found.keys, found.distances, found.held, found.axes)]
        self.sums = [x[b, h] for x in (found.columns, found.offsets)]
        self.parts = [np.zeros((ITEMS, x.size)) for x in self.sums]
        self.spare: list[np.ndarray] = []

    def reduce(self):
        """Take in all rows, in work items of whole lines of blocks."""
        edges = np.append(np.flatnonzero(np.diff(self.tiles.line_of, prepend=-1)), self.stops.size)
        starts = edges[np.unique(np.linspace(0, edges.size - 1, ITEMS + 1).astype(int))]

        def item(number):
            last = starts[number + 1]
            step = max(NEAR // self.width, 1)
            for first in range(starts[number], last, step):
                self._some(slice(first, min(first + step, last)), number)

        for_each(item, range(starts.size - 1)[::-1])  # causal rows get longer: the longest first
        for total, part in zip(self.sums, self.parts):
            total += part.sum(axis=0)

    def _some(self, rows, number):
        """A few rows: all but the ranks, then the ranks."""
        from sparseattn.profiling import compiled, ranks, scores

        asked, stops, n_open = self.asked, self.stops[rows], self.n_open[rows]
        n, width = stops.size, max(-(-int(stops.max()) // scores.SIDE), 1) * scores.SIDE
        try:
            memory = self.spare.pop()
        except IndexError:
            memory = np.empty((2, max(NEAR, self.width)), self.k.dtype)
        e, picked = memory[:, : n * width].reshape(2, n, width)
        scores.score(self.q[rows], self.panels, stops, self.closed, e)
        at, sums, again = e.argmax(axis=1), np.empty(n), e.dtype == np.float32
        stats, keys, distances, held, axes = (r[rows] for r in self.rows)
        compiled.reduce_rows(e, self.q[rows], self.k, self.scale, stops, self.places[rows], at, again, n_open,
                             asked.quantiles, asked.coordinates, self.targets[rows], self.tiles.base,
                             self.tiles.line_of[rows], sums, stats, distances, axes, *(p[number] for p in self.parts),
                             self.tiles.mass)
        wanted, above = (sums, n_open, asked.shares, asked.masses), np.empty((n, held.shape[1] + keys.shape[1], 3))
        bits = e.view(np.int32 if again else np.int64)
        picked = picked[:, : ranks.pick_rows(e, bits, stops, *wanted, picked, above)]
        picked.sort(axis=1)
        ranks.rank_rows(picked, *wanted, above, keys, held)
        self.spare.append(memory)


class Tiles:
    """Mass of blocks of `base` x `base` pairs of one head, of the rows that are looked at."""

    def __init__(self, rows, base, n_keys):
        self.base, self.n_cols = base, -(-n_keys // base)
        self.lines, self.line_of = np.unique(rows // base, return_inverse=True)
        self.mass = np.zeros((self.lines.size, self.n_cols))

    def add(self, rows, blocks):
        """Take in the mass of some rows in blocks of keys, (len(rows), n_cols)."""
        lines = self.line_of[rows.start : rows.stop]
        edges = [*np.flatnonzero(np.diff(lines, prepend=-1)), len(lines)]
        for first, last in itertools.pairwise(edges):
            self.mass[lines[first]] += blocks[first:last].sum(axis=0)

    def shares(self, asked, item):
        """For each block size, the share of the mass in the best tenth of such blocks that hold allowed pairs of the
        rows; of `n` blocks ceil(n / 10) are the best tenth."""
        n_keys, stops = asked.is_open.shape[1], np.zeros(self.lines.size, np.int64)
        np.maximum.at(stops, self.line_of, asked.stops(item))
        keys = np.where(asked.is_open[item], np.arange(n_keys), n_keys)
        blocks = {self.base: (self.mass, self.lines, stops, np.minimum.reduceat(keys, range(0, n_keys, self.base)))}
        for size in sorted(asked.block_sizes):
            finer = max(own for own in blocks if size % own == 0)
            blocks[size] = _coarser(size // finer, *blocks[finer])
        found = (blocks[size] for size in asked.block_sizes)
        return [best_share(mass[first < stops[:, None]]) for mass, _, stops, first in found]


def _coarser(times, mass, lines, stops, first):
    """Blocks of `times` x `times` of these: their mass (n_lines, n_cols), which lines they are, and for each line one
    more than the last key that counts, for each column the first."""
    starts, n_cols = np.flatnonzero(np.diff(lines // times, prepend=-1)), -(-first.size // times)
    wider = np.zeros((lines.size, n_cols))
    for column in range(times):
        own = mass[:, column::times]
        wider[:, : own.shape[1]] += own
    return (np.add.reduceat(wider, starts, axis=0), lines[starts] // times, np.maximum.reduceat(stops, starts),
            np.minimum.reduceat(first, range(0, first.size, times)))
