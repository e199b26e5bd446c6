"""The largest scores of each row, some rows at a time: never an array of all pairs."""

import numpy as np

CHUNK = 1 << 20  # scores held at a time


def row_slices(n_rows, n_cols):
    """Slices of rows, in order, with about CHUNK scores each."""
    step = max(CHUNK // max(n_cols, 1), 1)
    return [slice(at, min(at + step, n_rows)) for at in range(0, n_rows, step)]


def top_of_rows(scores, n_selected, limits=None):
    """The columns of the largest scores of each row, rising, -1 behind them where there are fewer.

    scores : float32 or float64 (..., n_rows, n_cols); limits : int (n_rows,), of row i only the first limits[i] columns
    count; None: all. Returns int32 (..., n_rows, n_selected). Of equal scores the lower column wins; NaN and -inf are
    never chosen. One pass over the scores, and for random ones about n_selected * log(n_cols / n_selected) steps a row.
    """
    from sparseattn.selection.compiled import top_of_rows as compiled

    lead, (n_rows, n_cols) = scores.shape[:-2], scores.shape[-2:]
    limits = np.full(n_rows, n_cols) if limits is None else np.clip(limits, 0, n_cols)
    chosen = np.full((*lead, n_rows, n_selected), -1, np.int32)
    if n_selected:
        flat = np.ascontiguousarray(scores).reshape(-1, n_rows, n_cols)
        for one, to in zip(flat, chosen.reshape(-1, n_rows, n_selected)):
            compiled(one, limits.astype(np.int64), to)
    return chosen


def top_by_chunks(scores_of, lead, n_rows, n_cols, n_selected, limits=None, width=None):
    """As `top_of_rows`, of scores that ``scores_of(at, rows, n_cols)`` makes for an index `at` of the leading axes, a
    slice of rows and at least the first n_cols columns; int32 lead + (n_rows, at most n_selected).

    width : numbers that the making of a row's scores takes; None: one a column.
    """
    n_selected = min(n_selected, n_cols)
    limits = np.full(n_rows, n_cols) if limits is None else np.clip(limits, 0, n_cols)
    chosen = np.full((*lead, n_rows, n_selected), -1, np.int32)
    for rows in row_slices(n_rows, width or n_cols) if n_selected else ():
        needed = int(limits[rows].max(initial=0))
        for at in np.ndindex(lead) if needed else ():
            with np.errstate(over="ignore", invalid="ignore"):  # such a score is infinite, or NaN and never chosen
                scores = scores_of(at, rows, needed)
            chosen[at][rows] = top_of_rows(scores, n_selected, limits[rows])
    return chosen
