"""Parts seen through a window of tokens: slices of a pattern, and patterns set into a larger one."""

from dataclasses import dataclass, replace

import numpy as np

from sparseattn.index_ops.axes import gathered
from sparseattn.index_ops.cells import from_cells, to_cells
from sparseattn.index_ops.ranges import canonical, keep_keys
from sparseattn.structure import Order, Ranges


@dataclass(frozen=True)
class Window:
    """New token t is old token ``start + step * t``, for ``size`` tokens; start may be negative, step is positive."""

    start: int
    step: int
    size: int

    def is_whole(self, n_tokens):
        """Whether it changes nothing."""
        return (self.start, self.step, self.size) == (0, 1, n_tokens)

    def lies_within(self, n_tokens):
        """Whether all its tokens are old ones."""
        return self.start >= 0 and self.start + self.step * (self.size - 1) < n_tokens

    def renamed(self, tokens):
        """New numbers of old tokens, -1 outside."""
        number, rest = np.divmod(tokens - np.int64(self.start), self.step)
        good = (tokens >= 0) & (rest == 0) & (number >= 0) & (number < self.size)
        return np.where(good, number, -1).astype(np.int32)


def relocate(part, q_window, k_window):
    """The part seen through windows of its queries and keys."""
    shape = (q_window.size, k_window.size)
    if isinstance(part, Ranges):
        part = _keys_of_ranges(_queries_of_ranges(part, q_window), k_window)
        return replace(part, shape=shape)
    return _blocks(part, q_window, k_window, shape)


def _queries_of_ranges(part, window):
    if window.is_whole(part.shape[0]):
        return part
    if part.q_order is None and window.lies_within(part.shape[0]):
        rows = slice(window.start, window.start + window.step * window.size, window.step)
        return replace(part, starts=part.starts[..., rows], stops=part.stops[..., rows])
    if part.q_order is None:
        old = window.start + window.step * np.arange(window.size)
        good, at = (old >= 0) & (old < part.shape[0]), np.clip(old, 0, max(part.shape[0] - 1, 0))
        if part.shape[0] == 0:
            starts = stops = np.zeros(part.starts.shape[:2] + (window.size,), np.int32)
        else:
            starts, stops = (np.where(good, x[..., at], 0) for x in (part.starts, part.stops))
        return replace(part, starts=starts, stops=stops)
    tokens = window.renamed(part.q_order.listing())
    kept = np.flatnonzero((tokens >= 0).any(axis=(0, 1)))
    tokens = tokens[..., kept]
    starts, stops = (np.where(tokens >= 0, x[..., kept], 0) for x in (part.starts, part.stops))
    return replace(part, starts=starts, stops=stops, q_order=Order.listed(tokens, window.size))


def _keys_of_ranges(part, window):
    if window.is_whole(part.shape[1]):
        return part
    if part.k_order is None:
        starts, stops = (_bounds_within(x, window) for x in (part.starts, part.stops))
        starts, stops = canonical(starts, stops)
        return replace(part, starts=starts, stops=stops)
    part = keep_keys(part, window.renamed(part.k_order.listing()) >= 0)
    return replace(part, k_order=Order.listed(window.renamed(part.k_order.listing()), window.size))


def _bounds_within(x, window):
    """Bounds of key ranges in the window's tokens."""
    if window.start == 0 and window.step == 1:
        return np.minimum(x, window.size)
    return np.clip(-((window.start - x.astype(np.int64)) // window.step), 0, window.size)


def _blocks(part, q_window, k_window, shape):
    q_order, rows = _side(part.q_order, part.shape[0], part.block_size[0], q_window)
    k_order, cols = _side(part.k_order, part.shape[1], part.block_size[1], k_window)
    stay = np.flatnonzero(rows >= 0)
    if part.q_order is None and stay.size:  # touch only the rows that stay
        part, rows = _crop(part, stay[0], stay[-1] + 1), rows[stay[0] : stay[-1] + 1]
    cells = to_cells(part)
    b, h, row, col = cells.coordinates()
    row, col = rows[row], cols[col]
    inside = (row >= 0) & (col >= 0)
    new = replace(cells, shape=shape, q_order=q_order, k_order=k_order)
    n_rows, n_cols = new.grid
    numbers = (((b * cells.lead[1] + h) * n_rows + row) * n_cols + col)[inside]
    return from_cells(replace(new, numbers=numbers, ids=cells.ids[inside]))


def _crop(part, first, last):
    """Rows of blocks first to last of a part in the natural order, as a part of fewer queries."""
    starts = part.indptr[..., first:last]
    indptr, at = gathered(starts, np.diff(part.indptr[..., first : last + 1], axis=2))
    ids = None if part.mask_ids is None else part.mask_ids[at]
    n_queries = min(last * part.block_size[0], part.shape[0]) - first * part.block_size[0]
    return replace(part, shape=(int(n_queries), part.shape[1]), indptr=indptr, indices=part.indices[at], mask_ids=ids)


def _side(order, n_tokens, block, window):
    """The order after the window and, for each row (or column) of blocks, its new number or -1."""
    n_slots = n_tokens if order is None else order.n_slots
    lines = np.arange(-(-n_slots // block))
    if window.is_whole(n_tokens):
        return order, lines
    if order is None and window.step == 1:
        return _natural_side(n_tokens, block, window, lines)
    tokens = np.arange(n_tokens, dtype=np.int32).reshape(1, 1, -1) if order is None else order.listing()
    tokens = window.renamed(tokens)
    padded = np.full(tokens.shape[:2] + (lines.size * block,), -1, np.int32)
    padded[..., :n_slots] = tokens
    padded = padded.reshape(tokens.shape[:2] + (lines.size, block))
    alive = (padded >= 0).any(axis=(0, 1, 3))
    kept = padded[:, :, alive].reshape(tokens.shape[:2] + (-1,))
    return Order.listed(kept, window.size), np.where(alive, np.cumsum(alive) - 1, -1)


def _natural_side(n_tokens, block, window, lines):
    """Contiguous tokens: still natural where blocks fall on blocks, else the same slots, shifted, by an affine
    order."""
    first = max(window.start, 0) // block
    last = -(-min(window.start + window.size, n_tokens) // block)
    ends_inside = window.start + window.size > n_tokens
    if window.start % block == 0 and not (ends_inside and n_tokens % block):
        numbers = lines - window.start // block
        return None, np.where((numbers >= 0) & (lines < last), numbers, -1)
    n_slots = max(min(last * block, n_tokens) - first * block, 0)
    order = Order.affine((window.size,), ((0, n_slots, 1),), (first * block - window.start,))
    return order, np.where((lines >= first) & (lines < last), lines - first, -1)
