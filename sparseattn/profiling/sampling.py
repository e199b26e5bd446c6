"""Which queries a profile looks at."""

from __future__ import annotations

import numpy as np

ALL = 2048  # queries, up to which all are looked at
SAMPLED = 1024  # of more than that
STRATA = 8
LAST = 64
RUN = 16  # neighbours that are taken together: a row of blocks
GOLDEN = 0.6180339887498949


def rows_of(rows, n_queries: int) -> np.ndarray:
    """Positions of the queries to look at, int64, rising.

    rows : None for all of at most 2048 queries, else 1024; an int: how many; a list: themselves.
    """
    if rows is None:
        rows = n_queries if n_queries <= ALL else SAMPLED
    if isinstance(rows, (bool, np.bool_)) or not isinstance(rows, (int, np.integer, list, tuple, range, np.ndarray)):
        raise TypeError(f"rows is {rows!r}; expected None, how many queries to look at, or a list of their positions")
    if isinstance(rows, (int, np.integer)):
        if rows < 1:
            raise ValueError(f"rows is {rows}; expected at least 1 query to look at, or None")
        return stratified(int(rows), n_queries)
    return _given(np.asarray(rows), n_queries)


def _given(rows, n_queries):
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise TypeError(f"rows is an array of {rows.dtype} with shape {rows.shape}; expected a list of positions")
    if not rows.size:
        raise ValueError("rows is empty; give at least one query to look at, or None")
    if rows.min() < 0 or rows.max() >= n_queries:
        raise ValueError(f"rows go from {rows.min()} to {rows.max()}; expected 0 to {n_queries - 1}, the queries of q")
    chosen = np.unique(rows).astype(np.int64)
    if chosen.size < rows.size:
        raise ValueError("rows names a query twice; give each once")
    return chosen


def stratified(count: int, n_queries: int) -> np.ndarray:
    """About `count` queries, as many from each eighth of the sequence, and the last 64; all where that is no fewer.

    They are runs of 16 that begin at multiples of 16, of fewer than 256 single ones and the last. The sequence falls
    into cells of equal length with one run a cell, at places that the golden ratio spreads, so that no period of the
    text or of a pattern meets them in step.
    """
    if count >= n_queries:
        return np.arange(n_queries)
    cells = max(round((count - LAST) / (STRATA * RUN)), 1) * STRATA
    if count < 4 * LAST or cells >= n_queries // RUN:
        return np.union1d(_spread(count - 1, n_queries - 1), n_queries - 1) if count > 1 else np.array([n_queries - 1])
    begin = _spread(cells, n_queries // RUN)
    return np.union1d((begin[:, None] * RUN + np.arange(RUN)).ravel(), np.arange(n_queries - LAST, n_queries))


def _spread(cells, n):
    """One number of each of some cells of range(n)."""
    edges = np.arange(cells + 1) * n // cells
    turn = np.arange(1, cells + 1) * GOLDEN % 1
    return edges[:-1] + (turn * np.diff(edges)).astype(np.int64)
