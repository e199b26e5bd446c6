"""Builders of patterns: from parts, ranges, CSR, chosen blocks, buckets, masks, and from patterns per head or per
batch item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseattn.index_ops.algebra import is_empty
from sparseattn.index_ops.cells import Cells, from_cells
from sparseattn.index_ops.masks import distinct, full_mask, pack
from sparseattn.index_ops.ranges import canonical
from sparseattn.pattern import checking
from sparseattn.pattern.diagonal import block_diagonal
from sparseattn.pattern.slicing import concatenate
from sparseattn.structure import BlockCSR, Order, Ranges

if TYPE_CHECKING:
    from sparseattn.pattern.core import Pattern

STRIP = 1 << 24  # pairs of a mask looked at together


class Builders:
    """The ``from_*`` constructors of `Pattern`."""

    @classmethod
    def from_parts(cls, parts, shape, batch: int | None = None, n_heads: int | None = None) -> Pattern:
        """A pattern of disjoint parts, its axes inferred from theirs; parts without pairs are left out.

        Parameters
        ----------
        parts : iterable of BlockCSR or Ranges
            Pairwise disjoint; `Pattern.check` verifies it.
        shape : tuple of int
            (n_queries, n_keys).
        batch, n_heads : int, optional
            Entries of the axes; None: as many as the parts have.

        Returns
        -------
        Pattern
        """
        parts = list(parts)
        batch = batch or max([p.lead[0] for p in parts], default=1)
        n_heads = n_heads or max([p.lead[1] for p in parts], default=1)
        shape = (int(shape[0]), int(shape[1]))
        kept = tuple(p for p in parts if not is_empty(p))
        return cls(kept, shape, batch, n_heads)  # type: ignore[call-arg, return-value]

    @classmethod
    def from_ranges(cls, starts, stops, n_keys: int, *, block_size=None) -> Pattern:
        """Query i attends the keys ``starts[i] <= j < stops[i]``.

        Parameters
        ----------
        starts, stops : array of int, ([1 | batch, [1 | n_heads,]] n_queries)
            Bounds in keys, clipped to [0, n_keys]; an empty range attends nothing.
        n_keys : int
            Tokens on the key side.
        block_size : int or tuple of int, optional
            Tiles for the kernels; speed only.

        Returns
        -------
        Pattern
            O(n_queries) memory, no blocks until a kernel needs them.
        """
        starts = _lead_axes(checking.integers(starts, "starts"), 3)
        stops = _lead_axes(checking.integers(stops, "stops"), 3)
        checking.count(n_keys, "n_keys")
        if starts.shape[2] != stops.shape[2]:
            raise ValueError(f"starts are for {starts.shape[2]} queries and stops for {stops.shape[2]}; give one of "
                             "each a query")
        starts, stops = np.broadcast_arrays(starts, stops)
        starts, stops = canonical(np.clip(starts, 0, n_keys), np.clip(stops, 0, n_keys))
        size = None if block_size is None else checking.block_size(block_size)
        return cls.from_parts([Ranges((starts.shape[2], int(n_keys)), starts, stops, block_size=size)],
                              (starts.shape[2], n_keys), *starts.shape[:2])

    @classmethod
    def from_csr(cls, indptr, indices, n_keys: int, *, block_size=None) -> Pattern:
        """Query i attends the keys ``indices[indptr[i]:indptr[i + 1]]``, in any order, each once.

        Parameters
        ----------
        indptr : array of int, ([1 | batch, [1 | n_heads,]] n_queries + 1)
            Where each query's keys begin and end in `indices`.
        indices : array of int, (nnz,)
            Keys.
        n_keys : int
            Tokens on the key side.
        block_size : int or tuple of int, optional
            None: rows of single keys (block size (1, 1)); a size gathers the pairs into tiles, which pays from about
            a tenth of a tile's pairs on.

        Returns
        -------
        Pattern
            O(nnz) memory, O(nnz log nnz) time.
        """
        indptr = _lead_axes(checking.integers(indptr, "indptr"), 3).astype(np.int64)
        indices = checking.integers(indices, "indices").astype(np.int64)
        checking.csr(indptr, indices, n_keys)
        shape = (indptr.shape[2] - 1, int(n_keys))
        counts = np.diff(indptr, axis=2).ravel()
        line = np.repeat(np.arange(counts.size), counts)
        starts = indptr[..., :-1].ravel()
        at = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(line.size)
        numbers = np.sort(line * shape[1] + indices[at]) if line.size else line
        if (numbers[1:] == numbers[:-1]).any():
            twice = int(numbers[1:][numbers[1:] == numbers[:-1]][0])
            raise ValueError(f"key {twice % shape[1]} stands twice in row {twice // shape[1] % shape[0]}; list each "
                             "key of a query once")
        cells = Cells(shape, (1, 1), indptr.shape[:2], numbers, np.zeros(numbers.size, np.int32), full_mask((1, 1)))
        pattern = cls.from_parts([from_cells(cells)], shape, *indptr.shape[:2])
        return pattern if block_size is None else pattern.reblock(block_size)

    @classmethod
    def from_scipy(cls, matrix, *, block_size=None) -> Pattern:
        """The stored entries of a `scipy.sparse` matrix or array (n_queries, n_keys), whatever their values.

        Parameters
        ----------
        matrix : scipy.sparse array or matrix
            Every stored entry is a pair, explicit zeros included.
        block_size : int or tuple of int, optional
            As in `from_csr`.

        Returns
        -------
        Pattern
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"from_scipy takes a scipy.sparse matrix or array, got {type(matrix).__name__}; use "
                            "from_mask for a dense boolean array")
        csr = matrix.tocsr(copy=True)
        csr.sum_duplicates()
        return cls.from_csr(csr.indptr, csr.indices, csr.shape[1], block_size=block_size)

    @classmethod
    def from_blocks(cls, layout, *, block_size, shape: tuple[int, int] | None = None) -> Pattern:
        """Whole blocks: block (r, c) is attended where ``layout[..., r, c]`` is true.

        Parameters
        ----------
        layout : array of bool, ([[batch,] n_heads,] rows, cols)
            Chosen blocks.
        block_size : int or tuple of int
            (block_q, block_k) tokens of a block; here it is meaning, not only speed.
        shape : tuple of int, optional
            (n_queries, n_keys), where the last block is ragged; None: whole blocks.

        Returns
        -------
        Pattern
            O(layout) time, O(chosen blocks) memory.
        """
        layout = checking.booleans(layout, "layout", 2, 4)
        layout = _lead_axes(layout, 4)
        size = checking.block_size(block_size)
        rows, cols = layout.shape[2:]
        shape = checking.blocks_shape(shape, (rows, cols), size)
        cells = Cells(shape, size, layout.shape[:2], np.flatnonzero(layout), None, full_mask(size))
        cells.ids = np.zeros(cells.numbers.size, np.int32)
        return cls.from_parts([from_cells(cells)], shape, *layout.shape[:2])

    @classmethod
    def from_buckets(cls, q_class, k_class, *, block_size=None) -> Pattern:
        """Query i attends key j where their classes are equal; a negative class attends nothing.

        Parameters
        ----------
        q_class, k_class : array of int, ([1 | batch, [1 | n_heads,]] n)
            Class of each query and key.
        block_size : int or tuple of int, optional
            Tiles for the kernels; speed only.

        Returns
        -------
        Pattern
            Ranges in the order sorted by class. O(n log n) time, O(n) memory.
        """
        q_class = _lead_axes(checking.integers(q_class, "q_class"), 3)
        k_class = _lead_axes(checking.integers(k_class, "k_class"), 3)
        lead = np.broadcast_shapes(q_class.shape[:2], k_class.shape[:2])
        q_class, k_class = (np.broadcast_to(x, lead + x.shape[2:]) for x in (q_class, k_class))
        q_tokens, k_tokens = _by_class(q_class), _by_class(k_class)
        q_sorted, k_sorted = np.take_along_axis(q_class, q_tokens, 2), np.take_along_axis(k_class, k_tokens, 2)
        starts, stops = np.zeros(q_sorted.shape, np.int32), np.zeros(q_sorted.shape, np.int32)
        for at in np.ndindex(lead):
            starts[at] = np.searchsorted(k_sorted[at], q_sorted[at], side="left")
            stops[at] = np.searchsorted(k_sorted[at], q_sorted[at], side="right")
        starts, stops = canonical(starts, np.where(q_sorted < 0, 0, stops))
        shape = (q_class.shape[2], k_class.shape[2])
        size = None if block_size is None else checking.block_size(block_size)
        q_order, k_order = Order.listed(q_tokens, shape[0]), Order.listed(k_tokens, shape[1])
        part = Ranges(shape, starts, stops, q_order, k_order, block_size=size)
        return cls.from_parts([part], shape, *lead)

    @classmethod
    def from_mask(cls, mask, shape: tuple[int, int] | None = None, *, block_size=64) -> Pattern:
        """Query i attends key j where a boolean array or function says so.

        Parameters
        ----------
        mask : array of bool, ([[batch,] n_heads,] n_queries, n_keys), or callable
            A function is called as ``f(q_pos, k_pos)`` with int arrays (rows, 1) and (1, n_keys) and returns booleans
            that broadcast to (rows, n_keys).
        shape : tuple of int, optional
            (n_queries, n_keys); needed for a function.
        block_size : int or tuple of int
            Tiles for the kernels; speed only.

        Returns
        -------
        Pattern
            Looks at every pair once, some rows at a time: O(n_queries * n_keys) time, O(blocks) memory. Prefer ranges,
            blocks or a family where there is one.
        """
        size = checking.block_size(block_size)
        if callable(mask):
            if shape is None:
                raise ValueError("from_mask of a function needs shape=(n_queries, n_keys)")
            shape = checking.shape(shape)
            return cls.from_parts([_blocks_of(lambda rows: _asked(mask, rows, shape), (1, 1), shape, size)], shape)
        mask = _lead_axes(checking.booleans(mask, "mask", 2, 4), 4)
        if shape is not None and tuple(shape) != mask.shape[2:]:
            raise ValueError(f"mask is for {mask.shape[2:]} (n_queries, n_keys) but shape= says {tuple(shape)}; "
                             "leave shape out")
        part = _blocks_of(lambda rows: mask[:, :, rows], mask.shape[:2], mask.shape[2:], size)
        return cls.from_parts([part], mask.shape[2:], *mask.shape[:2])

    @staticmethod
    def per_head(patterns: Sequence[Pattern]) -> Pattern:
        """One pattern a head; heads of equal order share a part, and what is equal is stored once.

        Parameters
        ----------
        patterns : sequence of Pattern
            As many as the attention has heads (or key-value heads), each for one head.

        Returns
        -------
        Pattern
        """
        return concatenate(patterns, 1)

    @staticmethod
    def per_batch(patterns: Sequence[Pattern]) -> Pattern:
        """One pattern a batch item.

        Parameters
        ----------
        patterns : sequence of Pattern
            As many as the batch has items, each for one of them.

        Returns
        -------
        Pattern
            Parts of one kind become one, with an order for each item where these differ.
        """
        return concatenate(patterns, 0)

    @staticmethod
    def block_diagonal(patterns: Sequence[Pattern]) -> Pattern:
        """Patterns behind each other on the diagonal: each for a document of its own in a packed sequence.

        Parameters
        ----------
        patterns : sequence of Pattern
            One a document, in order, of any shapes; one without tokens is an empty document. Each is for 1 or for
            all batch items, and for 1 or for all heads.

        Returns
        -------
        Pattern
            Shape (sum of n_queries, sum of n_keys).

        Notes
        -----
        Query i of a document attends its key j when the document's own pattern says so, counting both from the
        document's first token. So a pattern of absolute positions (chunks, blocks, global tokens) restarts in each
        document, while ``pattern & documents(lengths)`` would cut one that runs through all; for windows, which know
        distances alone, the two are equal. Lengths that differ between batch items: `per_batch` of these.

        Parts of one kind become one, whatever the number of documents. Documents seldom begin on a border of blocks:
        blocks keep to their document by an order with slots of nobody between documents. O(blocks) time and memory.

        Examples
        --------
        >>> import sparseattn as sa
        >>> lengths = [300, 45, 120]
        >>> packed = sa.Pattern.block_diagonal([sa.patterns.block_local(n, block=64) for n in lengths])
        >>> packed.shape
        (465, 465)
        """
        return block_diagonal(patterns)


def _lead_axes(x, n_axes):
    """x with its missing leading axes put in as 1."""
    return x.reshape((1,) * (n_axes - x.ndim) + x.shape)


def _by_class(x):
    """Tokens sorted by class, int32. NumPy sorts short integers by their digits, several times as fast as long ones."""
    short = x.astype(np.int16)
    return np.argsort(short if np.array_equal(short, x) else x, axis=2, kind="stable").astype(np.int32)


def _asked(function: Callable[..., Any], rows, shape):
    """The function's answer for some rows, bool (1, 1, rows, n_keys)."""
    q_pos, k_pos = np.arange(rows.start, rows.stop)[:, None], np.arange(shape[1])[None, :]
    answer = np.asarray(function(q_pos, k_pos))
    if answer.dtype != bool:
        raise TypeError(f"the mask function must return booleans, got {answer.dtype}; compare instead of computing")
    try:
        return np.broadcast_to(answer, (rows.stop - rows.start, shape[1]))[None, None]
    except ValueError:
        raise ValueError(f"the mask function returned shape {answer.shape} for q_pos {q_pos.shape} and k_pos "
                         f"{k_pos.shape}; it must broadcast to {(rows.stop - rows.start, shape[1])}") from None


def _blocks_of(strip, lead, shape, block_size) -> BlockCSR:
    """Blocks of a boolean mask read in strips: strip(slice of rows) gives bool lead + (rows, n_keys)."""
    (block_q, block_k), (n_rows, n_cols) = block_size, (-(-n // b) for n, b in zip(shape, block_size))
    cells = Cells(shape, block_size, lead, None, None, None)
    step = max(STRIP // max(shape[1] * lead[0] * lead[1] * block_q, 1), 1)
    numbers, ids, masks, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [full_mask(block_size)], 1
    for first in range(0, n_rows, step):
        last = min(first + step, n_rows)
        rows = slice(first * block_q, min(last * block_q, shape[0]))
        padded = np.zeros(lead + ((last - first) * block_q, n_cols * block_k), bool)
        padded[:, :, : rows.stop - rows.start, : shape[1]] = strip(rows)
        tiles = padded.reshape(lead + (last - first, block_q, n_cols, block_k)).swapaxes(3, 4)
        b, h, row, col = np.nonzero(tiles.any(axis=(4, 5)))
        packed = pack(tiles[b, h, row, col])
        kept, which = distinct(packed)
        numbers.append(((b * lead[1] + h) * n_rows + first + row) * n_cols + col)
        ids.append(count + which)
        masks.append(packed[kept])
        count += kept.size
    cells.numbers, cells.ids, cells.masks = (np.concatenate(x) for x in (numbers, ids, masks))
    by_number = np.argsort(cells.numbers, kind="stable")
    cells.numbers, cells.ids = cells.numbers[by_number], cells.ids[by_number]
    return from_cells(cells)
