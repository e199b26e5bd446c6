"""A BlockCSR written out as a sorted list of numbered cells, and the way back: every operation on blocks goes through
it. Of either library.

The number of a cell is ``((b * heads + h) * n_rows + row) * n_cols + col``, so sorted numbers are sorted rows.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseattn.index_ops.masks import distinct, full_mask, pack
from sparseattn.index_ops.sorting import repeated
from sparseattn.structure import BlockCSR
from sparseattn.xp import library, namespace

MASK_LIMIT = 1 << 30  # bytes of distinct masks that one structure may take
KINDS = {"numpy": 1 << 12, "cupy": 1 << 16}  # masks looked at together

Array = Any


@dataclass
class Cells:
    """Cells of a block structure: numbers (sorted, int64), ids into masks (0 = full), and what they are cells of."""

    shape: tuple
    block_size: tuple
    lead: tuple
    numbers: Array
    ids: Array
    masks: Array
    q_order: Any = None
    k_order: Any = None
    heads: Array | None = None

    @property
    def slots(self):
        """(query slots, key slots)."""
        orders = zip((self.q_order, self.k_order), self.shape)
        return tuple(n if order is None else order.n_slots for order, n in orders)

    @property
    def grid(self):
        """(n_rows, n_cols) of blocks."""
        return tuple(-(-n // block) for n, block in zip(self.slots, self.block_size))

    def coordinates(self):
        """(b, h, row, col) of each cell."""
        n_rows, n_cols = self.grid
        xp = namespace(self.numbers)
        line, col = xp.divmod(self.numbers, max(n_cols, 1))
        lead, row = xp.divmod(line, max(n_rows, 1))
        b, h = xp.divmod(lead, self.lead[1])
        return b, h, row, col


def common_lead(a, b):
    """(1 | batch, 1 | heads) of two aligned parts together."""
    return max(a.lead[0], b.lead[0]), max(a.lead[1], b.lead[1])


def to_cells(part, lead=None):
    """Cells of a BlockCSR over its own lead axes, or over these wider ones."""
    line, at = lines(part, lead or part.lead)
    numbers = line * part.n_cols + part.indices[at]
    if part.mask_ids is None:
        xp = namespace(numbers)
        ids, masks = xp.zeros(numbers.size, np.int32), full_mask(part.block_size, xp)
    else:
        ids, masks = part.mask_ids[at], part.masks
    return Cells(part.shape, part.block_size, lead or part.lead, numbers, ids, masks, part.q_order, part.k_order,
                 part.heads)


def lines(part, lead):
    """Of each block of a BlockCSR over these lead axes: the row it is in, counted through all, and where it stands."""
    xp = namespace(part.indptr)
    counts = xp.broadcast_to(xp.diff(part.indptr, axis=2), lead + (part.n_rows,)).ravel()
    line = repeated(counts)
    if part.indptr.shape[:2] == lead:
        return line, slice(None)
    starts = xp.broadcast_to(part.indptr[..., :-1], lead + (part.n_rows,)).ravel()
    return line, (starts - (xp.cumsum(counts) - counts))[line] + xp.arange(line.size)


def pointers(counts):
    """The indptr of rows of `counts` blocks, (1 | batch, 1 | heads, n_rows), row after row."""
    xp = namespace(counts)
    ends = xp.cumsum(counts, dtype=np.int64).reshape(counts.shape)
    indptr = xp.zeros((*counts.shape[:2], counts.shape[2] + 1), np.int64)
    if counts.shape[2]:
        indptr[..., 0], indptr[..., 1:] = ends[..., 0] - counts[..., 0], ends
    return indptr


def live_slots(order, n_slots, block, xp=np):
    """Which slots of each block hold a token: ids (1 | batch, 1 | heads, n_blocks) into a bool table; row 0 is all. Of
    the natural order in the library `xp`, of another in its own."""
    if order is not None:
        return order.memo.get(("live", block), lambda: _live_in_list(order, block))
    n_blocks = -(-n_slots // block)
    ids, table = xp.zeros((1, 1, n_blocks), np.int64), xp.ones((1, block), bool)
    if n_slots % block:
        ids[0, 0, -1] = 1
        table = xp.stack([table[0], xp.arange(block) < n_slots % block])
    return ids, table


def _live_in_list(order, block):
    tokens = order.listing()
    xp, n_blocks = namespace(tokens), -(-tokens.shape[2] // block)
    if tokens.shape[2] % block == 0 and order.is_full:
        return xp.zeros((1, 1, n_blocks), np.int64), xp.ones((1, block), bool)
    live = xp.zeros(tokens.shape[:2] + (n_blocks * block,), bool)
    live[..., : tokens.shape[2]] = tokens >= 0
    rows = xp.concatenate([xp.ones((1, block), bool), live.reshape(-1, block)])
    if library(tokens) == "cupy":  # as in `masks.shared`
        ids = xp.where(rows.all(axis=1), 0, xp.arange(len(rows)))
        return ids[1:].reshape(tokens.shape[:2] + (n_blocks,)), rows
    first, which = distinct(pack(rows[:, None])[:, 0])
    rank = np.argsort(np.argsort(first))  # the row of ones in front gets number 0
    return rank[which[1:]].reshape(tokens.shape[:2] + (n_blocks,)), rows[np.sort(first)]


def from_cells(cells):
    """The canonical BlockCSR: no empty block, whole blocks unmasked, masks distinct and used."""
    (numbers, ids, partial), xp = _judged(cells), namespace(cells.numbers)
    used, which = xp.unique(ids[partial], return_inverse=True)
    first, same = distinct(cells.masks[used])
    new_ids = xp.zeros(ids.size, np.int32)
    new_ids[partial] = 1 + same[which.reshape(-1)]
    masks = xp.concatenate([full_mask(cells.block_size, xp), cells.masks[used][first]])
    return as_structure(replace(cells, numbers=numbers, ids=new_ids, masks=masks))


def pruned(cells):
    """As `from_cells`, with masks as they are, alike or unused: for kernels of a GPU, where to compare masks takes
    longer than it saves."""
    (numbers, ids, partial), xp = _judged(cells), namespace(cells.numbers)
    ids = xp.where(partial, 1 + ids, 0).astype(np.int32)
    masks = xp.concatenate([full_mask(cells.block_size, xp), cells.masks])
    return as_structure(replace(cells, numbers=numbers, ids=ids, masks=masks))


def as_structure(cells):
    """The BlockCSR of cells that are canonical already."""
    numbers, ids, n_rows, xp = cells.numbers, cells.ids, cells.grid[0], namespace(cells.numbers)
    line, col = xp.divmod(numbers, max(cells.grid[1], 1))
    counts = xp.bincount(line, minlength=cells.lead[0] * cells.lead[1] * n_rows)
    masked = bool(ids.any())
    return BlockCSR(
        cells.shape, tuple(cells.block_size), pointers(counts.reshape(cells.lead + (n_rows,))), col.astype(np.int32),
        ids if masked else None, cells.masks if masked else None, cells.q_order, cells.k_order, cells.heads,
    )


def _judged(cells):
    """Numbers and ids of the cells that are not empty, and which of them are partial."""
    xp = namespace(cells.numbers)
    full = full_mask(cells.block_size, xp)
    state = xp.where((cells.masks == full).all(axis=(1, 2)), 1, xp.where(cells.masks.any(axis=(1, 2)), 0, -1))
    state = state.astype(np.int8)
    verdict = state[cells.ids]  # 1 complete, -1 empty
    _judge_with_dead_slots(cells, verdict)
    keep = xp.flatnonzero(verdict >= 0)
    if keep.size == verdict.size:
        return cells.numbers, cells.ids, verdict == 0
    return cells.numbers[keep], cells.ids[keep], verdict[keep] == 0


def _judge_with_dead_slots(cells, verdict):
    """Correct the verdict of cells with slots beyond the end or of nobody, whose bits mean nothing."""
    some, which, kinds = live_kinds(cells, only_dead=True)
    xp = namespace(verdict)
    result = [xp.where(wanted.any(axis=(1, 2)), (wanted == live).all(axis=(1, 2)), -1) for wanted, live in kinds]
    if result:
        verdict[some] = xp.concatenate(result)[which]


def live_kinds(cells, only_dead=False):
    """Cells sorted by what counts in them: (cells looked at, kind of each, iterator over pieces of the kinds).

    A piece gives (wanted, live) masks: the pairs of existing tokens that are attended, and all of existing tokens.
    only_dead: look at cells with slots of no token alone.
    """
    xp = namespace(cells.numbers)
    (q_ids, q_table), (k_ids, k_table) = (live_slots(order, n, block, xp) for order, n, block in zip(
        (cells.q_order, cells.k_order), cells.slots, cells.block_size))
    if only_dead and len(q_table) == len(k_table) == 1:
        return xp.zeros(0, np.int64), xp.zeros(0, np.int64), []
    b, h, row, col = cells.coordinates()
    q_live = q_ids[b % q_ids.shape[0], h % q_ids.shape[1], row]
    k_live = k_ids[b % k_ids.shape[0], h % k_ids.shape[1], col]
    some = xp.flatnonzero(q_live | k_live) if only_dead else xp.arange(q_live.size)
    kinds, which = _kinds(cells.ids[some], q_live[some], k_live[some], len(q_table), len(k_table))
    return some, which, _masks_of_kinds(cells.masks, *kinds, q_table, pack(k_table[:, None]))


def _kinds(ids, q_live, k_live, n_q, n_k):
    """The different triples of a mask and numbers below n_q and n_k, as three arrays, and which of them each one is; on
    a GPU all of them, as in `masks.shared`."""
    if library(ids) == "cupy":
        return (ids, q_live, k_live), slice(None)
    codes, which = np.unique((ids.astype(np.int64) * n_q + q_live) * n_k + k_live, return_inverse=True)
    rest, k_kind = np.divmod(codes, n_k)
    return (*np.divmod(rest, n_q), k_kind), which.reshape(-1)


def _masks_of_kinds(masks, ids, q_kind, k_kind, q_table, k_words):
    step = KINDS[library(ids)]
    for at in range(0, ids.size, step):
        piece = slice(at, at + step)
        live = namespace(ids).where(q_table[q_kind[piece]][:, :, None], k_words[k_kind[piece]], np.uint32(0))
        yield masks[ids[piece]] & live, live


def refuse_too_many_masks(n_masks, block_size):
    """Raise where masks of their own for every block would take more than MASK_LIMIT bytes."""
    size = n_masks * block_size[0] * -(-block_size[1] // 32) * 4
    if size > MASK_LIMIT:
        raise ValueError(
            f"the result needs {n_masks} different masks of {block_size[0]} x {block_size[1]} pairs, "
            f"{size / 2**30:.1f} GiB, "
            f"over the limit of {MASK_LIMIT >> 30} GiB; combine sparser patterns, or build it with larger regular "
            "pieces"
        )
