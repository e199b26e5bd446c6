"""The largest scores of each row, some rows at a time: never an array of all pairs."""

import numpy as np

from sparseattn.selection import largest
from sparseattn.xp import library, namespace

CHUNK = {"numpy": 1 << 20, "cupy": 1 << 25}  # scores held at a time


def row_slices(n_rows, n_cols, chunk=CHUNK["numpy"]):
    """Slices of rows, in order, with about `chunk` scores each."""
    step = max(chunk // max(n_cols, 1), 1)
    return [slice(at, min(at + step, n_rows)) for at in range(0, n_rows, step)]


def top_of_rows(scores, n_selected, limits=None):
    """The columns of the largest scores of each row, rising, -1 behind them where there are fewer.

    scores : float32 or float64 (..., n_rows, n_cols); limits : int (n_rows,), NumPy's, of row i only the first
    limits[i] columns count; None: all. Returns int32 (..., n_rows, n_selected). Of equal scores the lower column wins;
    NaN and -inf are never chosen. One pass over the scores, and for random ones about n_selected * log(n_cols /
    n_selected) steps a row; of CuPy four passes, seven of float64.
    """
    lead, (n_rows, n_cols) = scores.shape[:-2], scores.shape[-2:]
    limits = np.full(n_rows, n_cols) if limits is None else np.clip(limits, 0, n_cols)
    if library(scores) == "cupy":
        return largest.of_rows(scores, n_selected, limits)
    from sparseattn.selection.compiled import top_of_rows as compiled

    chosen = np.full((*lead, n_rows, n_selected), -1, np.int32)
    if chosen.size and n_cols:
        flat = np.ascontiguousarray(scores).reshape(-1, n_rows, n_cols)
        for one, to in zip(flat, chosen.reshape(-1, n_rows, n_selected)):
            compiled(one, limits.astype(np.int64), to)
    return chosen


def top_by_chunks(scores_of, q, n_cols, n_selected, limits=None, width=None):
    """As `top_of_rows`, of scores that ``scores_of(at, rows, n_cols)`` makes for an index `at` of the first axes of q
    (batch, heads, n_rows, any), a slice of rows and at least the first n_cols columns. They are in q's library, and so
    is what is chosen: int32 (batch, heads, n_rows, at most n_selected).

    width : numbers that the making of a row's scores takes; None: one a column.
    """
    lead, n_rows, n_selected, xp = q.shape[:2], q.shape[2], min(n_selected, n_cols), namespace(q)
    limits = np.full(n_rows, n_cols) if limits is None else np.clip(limits, 0, n_cols)
    lines, width, chunk = list(np.ndindex(lead)), width or n_cols, CHUNK[library(q)]
    chosen = xp.full((len(lines), n_rows, n_selected), -1, np.int32)
    for rows in row_slices(n_rows, width, chunk) if n_selected else ():
        needed = int(limits[rows].max(initial=0))
        step = max(chunk // ((rows.stop - rows.start) * width), 1)  # heads together, where each has little to do
        for first in range(0, len(lines), step) if needed else ():
            with np.errstate(over="ignore", invalid="ignore"):  # such a score is infinite, or NaN and never chosen
                scores = [scores_of(at, rows, needed) for at in lines[first : first + step]]
            scores = xp.stack(scores) if len(scores) > 1 else scores[0][None]
            chosen[first : first + step, rows] = top_of_rows(scores, n_selected, limits[rows])
    return chosen.reshape(*lead, n_rows, n_selected)
