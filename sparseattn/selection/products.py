"""Scores whose bits depend on the two vectors alone.

A library's matrix product adds up in another order near the edges of an array, on another machine or with another
number of threads. That is harmless in a sum, but it would make equal keys unequal, and a choice between them a matter
of place. On a GPU a library's kernel adds up all products of whole tiles alike, and keys are padded to those.
"""

import numpy as np

from sparseattn.xp import address, library, namespace

PANEL = 256  # keys side by side; one panel stays in the nearest caches
TILE = 128  # keys that a GPU's kernels take together
ALIGNED = 256  # bytes
STEP = 4  # queries, and numbers of head_dim, that are worked on together


def packed(k):
    """k (..., n_keys, head_dim), float32 or float64, in panels: (..., n_panels, head_dim', width), 0 where padded.
    CuPy's stay keys (..., n_keys', head_dim), with zeros behind them."""
    if library(k) == "cupy":
        return padded(k, TILE)
    lead, (n_keys, head_dim) = k.shape[:-2], k.shape[-2:]
    width = min(PANEL, max(n_keys, 1))
    n_whole, rest = divmod(n_keys, width)
    panels = np.zeros((*lead, n_whole + (rest > 0), -(-head_dim // STEP) * STEP, width), k.dtype)
    whole = k[..., : n_whole * width, :].reshape(*lead, n_whole, width, head_dim)
    panels[..., :n_whole, :head_dim, :] = whole.swapaxes(-1, -2)
    if rest:
        panels[..., n_whole, :head_dim, :rest] = k[..., n_whole * width :, :].swapaxes(-1, -2)
    return panels


def products(q, panels, n_keys):
    """q[i] . k[j] of q (n_rows, head_dim) and at least the first `n_keys` of packed keys (n_panels, head_dim', width).

    (n_rows, n_keys or more), columns behind the keys 0. Each is the rounded products added in the order of head_dim.
    O(n_rows * n_keys * head_dim), at about a third of the rate of a library's product.
    """
    if library(q) == "cupy":
        if address(q) % ALIGNED:  # such arrays get a kernel that does not add up all alike
            q = q.copy()
        return q @ panels[: -(-n_keys // TILE) * TILE].T
    from sparseattn.selection.compiled import products as compiled

    panels = panels[: -(-n_keys // panels.shape[2])]
    n_rows, head_dim = q.shape
    rows = np.zeros((-(-n_rows // STEP) * STEP, panels.shape[1]), panels.dtype)
    rows[:n_rows, :head_dim] = q
    scores = np.empty((len(rows), len(panels) * panels.shape[2]), panels.dtype)
    compiled(rows, panels, scores)
    return scores[:n_rows]


def padded(k, size):
    """k (..., n_keys, head_dim) with zeros behind it up to a multiple of `size` keys."""
    whole = namespace(k).zeros((*k.shape[:-2], -(-k.shape[-2] // size) * size, k.shape[-1]), k.dtype)
    whole[..., : k.shape[-2], :] = k
    return whole
