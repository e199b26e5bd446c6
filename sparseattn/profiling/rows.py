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

SCORES = 1 << 21  # that a matrix product gives at a time, of at most MOST rows
MOST = 512
ITEMS = 16  # work items of such a block of rows; what each adds up over its rows is added in their order
LEAST = 2.0**-20  # of scales that stay factors
NEAR = 1 << 17  # scores that are worked on at a time: what caches hold


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
    batch, n_heads, n_queries, _ = q.shape
    found = Measured.empty(batch, n_heads, asked, n_queries)
    for b, kv_head in itertools.product(range(batch), range(k.shape[1])):
        own = readable(k[b, kv_head], asked.is_open[b])
        group = n_heads // k.shape[1]
        for h in range(kv_head * group, (kv_head + 1) * group):
            _measure_head(found, b, h, readable(q[b, h][asked.rows], asked.is_asked[b]), own, asked)
            advance()
    return found


def readable(x, there):
    """Rows (n, head_dim) in the dtype that they are computed in, side by side; 0 for those that are not `there`."""
    x = np.ascontiguousarray(x, compute_dtype(x.dtype))
    return x if there.all() else np.where(there[:, None], x, x.dtype.type(0))


def _measure_head(found, b, h, q, k, asked):
    """Fill in one head: q (n_rows, head_dim), k (n_keys, head_dim)."""
    stops, base = asked.stops(b), math.gcd(*asked.block_sizes)
    q, scale = _signed(q, asked.scale)
    tiles = Tiles(asked.rows, base, k.shape[0])
    n_rows = min(max(SCORES // k.shape[0] // ITEMS, 1) * ITEMS, MOST)
    scores, work = np.empty(n_rows * k.shape[0], k.dtype), Work(found, b, h, q, k, scale, asked)
    for first in range(0, q.shape[0], n_rows):
        rows = range(first, min(first + n_rows, q.shape[0]))
        width = max(int(stops[rows.start : rows.stop].max()), 1)
        product = scores[: len(rows) * width].reshape(-1, width)
        with np.errstate(over="ignore", invalid="ignore"):
            np.matmul(q[rows.start : rows.stop], k[:width].T, out=product)
        work.reduce(rows, product, tiles)
    work.finish()
    if not np.isfinite(found.stats[b, h, asked.n_open(b) > 0, :8]).all():
        raise ValueError(f"scores of batch item {b}, head {h} are beyond {k.dtype}; pass float64 arrays, or smaller q "
                         "and k")
    found.block_shares[b, h] = [tiles.share(size // base, asked, b) for size in asked.block_sizes]


def _signed(q, scale):
    """q and a scale well above 0 that give the same scores: a key without weight is one with the lowest product."""
    factor, scale = (np.sign(scale), abs(scale)) if abs(scale) > LEAST else (scale, 1.0)
    return (q if factor == 1 else q * q.dtype.type(factor)), float(scale)


class Work:
    """One head while it is measured: what its work items share, and the memory that they use again and again."""

    def __init__(self, found, b, h, q, k, scale, asked):
        self.q, self.k, self.asked, self.scale = q, k, asked, scale
        self.closed = np.flatnonzero(~asked.is_open[b])
        self.stops, self.n_open, self.places = asked.stops(b), asked.n_open(b), asked.places
        self.targets = asked.targets[b, h]
        self.rows = [x[b, h] for x in (found.stats, found.keys, found.distances, found.held, found.axes)]
        self.sums = [x[b, h] for x in (found.columns, found.offsets)]
        self.parts = [np.zeros((ITEMS, x.size)) for x in self.sums]
        self.spare: list[np.ndarray] = []

    def reduce(self, rows, scores, tiles):
        """Take in a block of rows with their scores (n_rows, width)."""
        size = -(-len(rows) // ITEMS)
        starts = range(rows.start, rows.stop, size)
        blocks = np.empty((len(rows), tiles.n_cols))

        def item(number):
            last = min(starts[number] + size, rows.stop)
            step = min(max(NEAR // scores.shape[1], 1), size)
            for first in range(starts[number], last, step):
                self._some(slice(first, min(first + step, last)), number, scores, blocks, rows.start, tiles.base)

        for_each(item, range(len(starts)))
        tiles.add(rows, blocks)

    def finish(self):
        """Add up what the work items found."""
        for total, part in zip(self.sums, self.parts):
            total += part.sum(axis=0)

    def _some(self, rows, number, scores, blocks, begin, base):
        """A few rows: all but the ranks, then their weights in order and the ranks."""
        from sparseattn.profiling import compiled

        asked, here, stops = self.asked, slice(rows.start - begin, rows.stop - begin), self.stops[rows]
        own, again = scores[here], scores.dtype == np.float32
        n, width = len(own), max(int(stops.max()), 1)
        memory = self.spare.pop() if self.spare else np.empty(max(NEAR, self.k.shape[0]), scores.dtype)
        e = memory[: n * width].reshape(n, width)
        compiled.hide(own, stops)
        if self.closed.size:
            own[:, self.closed[: np.searchsorted(self.closed, width)]] = compiled.LOWEST
        at, sums, n_open = own.argmax(axis=1), np.empty(n), self.n_open[rows]
        stats, keys, distances, held, axes = (r[rows] for r in self.rows)
        compiled.reduce_rows(own, self.q[rows], self.k, self.scale, stops, self.places[rows], at, again, n_open,
                             asked.quantiles, asked.coordinates, self.targets[rows], base, e, sums, stats, distances,
                             axes, *(p[number] for p in self.parts), blocks[here])
        e.sort(axis=1)
        compiled.rank_rows(e, sums, n_open, asked.masses, asked.shares, keys, held)
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

    def share(self, times, asked, item):
        """Share of the mass in the best tenth of the blocks of `times` x `times` such blocks that hold allowed pairs of
        the rows; of `n` such blocks ceil(n / 10) are the best tenth."""
        starts = np.flatnonzero(np.diff(self.lines // times, prepend=-1))
        mass = np.add.reduceat(np.add.reduceat(self.mass, starts, axis=0), range(0, self.n_cols, times), axis=1)
        stops = np.zeros(self.lines.size, np.int64)
        np.maximum.at(stops, self.line_of, asked.stops(item))
        keys = np.where(asked.is_open[item], np.arange(asked.is_open.shape[1]), asked.is_open.shape[1])
        first = np.minimum.reduceat(keys, range(0, keys.size, self.base * times))
        return best_share(mass[first < np.maximum.reduceat(stops, starts)[:, None]])
