"""A pattern as a picture of blocks: full, partial, empty."""

import sys

import numpy as np

from sparseattn.index_ops.algebra import as_blocks
from sparseattn.index_ops.axes import select
from sparseattn.index_ops.pairs import pairs
from sparseattn.index_ops.ranges import at_queries
from sparseattn.structure import Ranges

CELLS = 128  # blocks drawn a side, at most
COLORS = ("#f4f1ea", "#8fb8d8", "#1f4e79")  # empty, partial, full


def plot(pattern, ax=None, head=0, batch=0):
    """Draw one head of a pattern on matplotlib axes."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plotting needs matplotlib; install it with: pip install 'sparseattn[plot]'") from None
    shares = coverage(pattern[batch, head])
    if ax is None:
        ax = _new_axes(Figure)
    state = np.where(shares >= 1, 2, np.where(shares > 0, 1, 0))
    n_q, n_k = pattern.shape
    ax.imshow(state, cmap=ListedColormap(COLORS), vmin=0, vmax=2, extent=(0, n_k, n_q, 0), aspect="auto",
              interpolation="nearest")
    ax.set(xlabel="key", ylabel="query", title=f"{pattern.density:.2%} of {n_q} x {n_k}")
    return ax


def _new_axes(figure_class):
    """Axes of a new figure: pyplot's where it is in use (notebooks show it), else a figure of its own."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot.subplots(figsize=(4, 4))[1] if pyplot else figure_class(figsize=(4, 4)).subplots()


def coverage(pattern, cells=CELLS):
    """Share of attended pairs in each cell of a grid over the pattern (one head), float (rows, cols), at most `cells`
    a side."""
    n_q, n_k = pattern.shape
    rows, cols = min(cells, n_q), min(cells, n_k)
    counts = np.zeros((rows, cols))
    if rows and cols:
        q_edges, k_edges = np.arange(rows + 1) * n_q // rows, np.arange(cols + 1) * n_k // cols
        for part in pattern.parts:
            counts += _counts(part, q_edges, k_edges)
        counts /= np.diff(q_edges)[:, None] * np.diff(k_edges)[None, :]
    return counts


def _counts(part, q_edges, k_edges):
    """Pairs of a part in each cell of a grid given by its edges."""
    if isinstance(part, Ranges) and part.k_order is None:
        starts, stops = (x[0, 0].astype(np.int64) for x in at_queries(select(part, [0], [0]), None))
        inside = np.clip(stops[:, None], None, k_edges[1:]) - np.clip(starts[:, None], k_edges[:-1], None)
        return np.add.reduceat(np.maximum(inside, 0), q_edges[:-1], axis=0)
    counts = np.zeros((q_edges.size - 1, k_edges.size - 1))
    for _, _, q, k in pairs(as_blocks(part)):
        row, col = np.searchsorted(q_edges, q, side="right") - 1, np.searchsorted(k_edges, k, side="right") - 1
        counts += np.bincount(row * counts.shape[1] + col, minlength=counts.size).reshape(counts.shape)
    return counts
