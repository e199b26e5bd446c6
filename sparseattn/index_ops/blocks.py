"""Operations on block structures that stay in their order: join two of them, transpose, cut into other block sizes. Of
either library."""

from dataclasses import replace
from math import gcd

import numpy as np

from sparseattn.index_ops.cells import Cells, common_lead, from_cells, lines, pointers, refuse_too_many_masks, to_cells
from sparseattn.index_ops.masks import pack, shared, unpack
from sparseattn.index_ops.sorting import repeated, stable_order
from sparseattn.structure import BlockCSR
from sparseattn.xp import library, namespace

CHUNK = {"numpy": 1 << 22, "cupy": 1 << 27}  # pairs written out at a time


def join(a, b, operation):
    """`a` and `b` ("and", "or", "sub") as one BlockCSR; aligned, of equal space and block size. O(blocks)."""
    lead, xp = common_lead(a, b), namespace(a.indptr)
    x, y = to_cells(a, lead), to_cells(b, lead)
    both, in_x, in_y = xp.intersect1d(x.numbers, y.numbers, assume_unique=True, return_indices=True)
    ids_x, ids_y = x.ids[in_x].astype(np.int64), y.ids[in_y].astype(np.int64)
    kinds, which = xp.unique(ids_x * len(y.masks) + ids_y, return_inverse=True)
    left, right = x.masks[kinds // len(y.masks)], y.masks[kinds % len(y.masks)]
    met = {"and": left & right, "or": left | right, "sub": left & ~right}[operation]
    numbers, ids, masks = [both], [which.reshape(-1)], [met]
    if operation != "and":
        alone = xp.ones(x.numbers.size, bool)
        alone[in_x] = False
        numbers.append(x.numbers[alone])
        ids.append(x.ids[alone] + len(met))
        masks.append(x.masks)
    if operation == "or":
        alone = xp.ones(y.numbers.size, bool)
        alone[in_y] = False
        numbers.append(y.numbers[alone])
        ids.append(y.ids[alone] + len(met) + len(x.masks))
        masks.append(y.masks)
    numbers, ids = xp.concatenate(numbers), xp.concatenate(ids)
    by_number = xp.argsort(numbers, kind="stable")
    return from_cells(replace(x, numbers=numbers[by_number], ids=ids[by_number], masks=xp.concatenate(masks)))


def transpose_blocks(part):
    """The BlockCSR of (key, query) pairs: rows become columns, orders change places. O(blocks)."""
    xp, lead, n_cols = namespace(part.indptr), part.lead, part.n_cols
    line, at = lines(part, lead)
    n_lines, cols = lead[0] * lead[1], part.indices[at]
    stored = xp.bincount(line, minlength=n_lines * part.n_rows).reshape(n_lines, part.n_rows).sum(axis=1)
    by_col = stable_order(cols, n_cols, stored)
    counts = xp.bincount(repeated(stored) * n_cols + cols, minlength=n_lines * n_cols)
    row_of_line = xp.tile(xp.arange(part.n_rows, dtype=np.int32), n_lines)
    return BlockCSR(
        part.shape[::-1], part.block_size[::-1], pointers(counts.reshape(*lead, n_cols)), row_of_line[line[by_col]],
        None if part.mask_ids is None else part.mask_ids[at][by_col],
        None if part.masks is None else _turned(part.masks, part.block_size[1]),
        part.k_order, part.q_order, part.heads,
    )


def _turned(masks, block_k):
    """Masks (n_masks, block_q, ..) of (key, query) pairs."""
    step = max(CHUNK[library(masks)] // (masks.shape[1] * block_k), 1)
    turned = [pack(unpack(masks[at : at + step], block_k).swapaxes(1, 2)) for at in range(0, len(masks), step)]
    return turned[0] if len(turned) == 1 else namespace(masks).concatenate(turned)


def reblock(part, block_size):
    """The same pairs in blocks of another size: cut to the common divisor, then put together. O(pairs of partial
    blocks)."""
    return part if tuple(block_size) == tuple(part.block_size) else from_cells(recut(part, block_size))


def recut(part, block_size):
    """The cells of another size that hold the pairs of a BlockCSR; empty ones may be among them."""
    common = tuple(gcd(a, b) for a, b in zip(part.block_size, block_size))
    return merge_cells(split_cells(to_cells(part), common), tuple(block_size))


def split_cells(cells, block_size):
    """Cells cut into smaller ones whose sides divide theirs; empty ones may be among them."""
    (n_q, n_k), (rows, cols) = (tuple(a // b for a, b in zip(cells.block_size, block_size)), cells.grid)
    if (n_q, n_k) == (1, 1):
        return cells
    xp, bits = namespace(cells.numbers), unpack(cells.masks, cells.block_size[1])
    bits = bits.reshape(len(bits), n_q, block_size[0], n_k, block_size[1]).swapaxes(2, 3)
    small = replace(cells, block_size=tuple(block_size), masks=pack(bits.reshape((-1,) + tuple(block_size))))
    some = bits.any(axis=(3, 4)).reshape(len(bits), n_q * n_k)
    of_mask = some.sum(axis=1)
    counts = of_mask[cells.ids]
    parent = repeated(counts)
    child = xp.nonzero(some)[1]
    first = (xp.cumsum(of_mask) - of_mask)[cells.ids]
    child = child[(first - (xp.cumsum(counts) - counts))[parent] + xp.arange(parent.size)]
    line, col = xp.divmod(cells.numbers[parent], cols)
    lead, row = xp.divmod(line, rows)
    row, col = row * n_q + child // n_k, col * n_k + child % n_k
    new_rows, new_cols = small.grid
    inside = (row < new_rows) & (col < new_cols)
    numbers = ((lead * new_rows + row) * new_cols + col)[inside]
    ids = (cells.ids[parent] * (n_q * n_k) + child)[inside]
    by_number = xp.argsort(numbers, kind="stable")
    return replace(small, numbers=numbers[by_number], ids=ids[by_number])


def merge_cells(cells, block_size):
    """Cells put together into larger ones whose sides are multiples of theirs."""
    (n_q, n_k), (rows, cols) = (tuple(b // a for a, b in zip(cells.block_size, block_size)), cells.grid)
    if (n_q, n_k) == (1, 1):
        return cells
    xp = namespace(cells.numbers)
    line, col = xp.divmod(cells.numbers, max(cols, 1))
    row = line % max(rows, 1)
    large = replace(cells, block_size=tuple(block_size))
    parent = _parents(cells, line, col, large)
    by_parent = xp.argsort(parent, kind="stable")
    parents, first = xp.unique(parent[by_parent], return_index=True)
    child = unpack(cells.masks, cells.block_size[1])
    masks, ids, count = [], [], 0
    step = max(CHUNK[library(parent)] // (block_size[0] * block_size[1]), 1)
    for at in range(0, parents.size, step):
        end = parent.size if at + step >= parents.size else int(first[at + step])
        members = by_parent[int(first[at]) : end]
        whole = xp.zeros((min(step, parents.size - at), n_q, n_k) + cells.block_size, bool)
        which = xp.searchsorted(parents, parent[members]) - at
        whole[which, row[members] % n_q, col[members] % n_k] = child[cells.ids[members]]
        packed = pack(whole.swapaxes(2, 3).reshape((-1,) + tuple(block_size)))
        kept, same = shared(packed)
        masks.append(packed[kept])
        ids.append(same + count)
        count += kept.size
        refuse_too_many_masks(count, block_size)
    empty = xp.zeros((1, block_size[0], -(-block_size[1] // 32)), np.uint32)
    return replace(large, numbers=parents, ids=xp.concatenate(ids or [parents]),
                   masks=xp.concatenate(masks) if masks else empty)


def _parents(cells, line, col, large):
    """The number among `large`, cells of a multiple of the size, of that which each cell lies in; line and col: its
    row, counted through all, and column."""
    (n_q, n_k), (n_rows, n_cols) = (tuple(b // a for a, b in zip(cells.block_size, large.block_size))), large.grid
    xp, rows = namespace(line), cells.grid[0]
    lead, row = xp.divmod(xp.arange(cells.lead[0] * cells.lead[1] * rows), max(rows, 1))
    return ((lead * n_rows + row // n_q) * n_cols)[line] + col // n_k


def count_reblocked(part, block_size):
    """How many blocks `reblock` gives, and those in which nobody's bits alone are set. O(blocks)."""
    common = tuple(gcd(a, b) for a, b in zip(part.block_size, block_size))
    cells = split_cells(to_cells(part), common)
    if common == tuple(block_size):
        return cells.numbers.size
    xp = namespace(cells.numbers)
    line, col = xp.divmod(cells.numbers, max(cells.grid[1], 1))
    parents = xp.sort(_parents(cells, line, col, replace(cells, block_size=tuple(block_size))))
    return int(xp.count_nonzero(xp.diff(parents))) + (parents.size > 0)


def from_pairs(like: Cells, numbers):
    """The BlockCSR in the space and block size of `like` whose pairs have these (1, 1)-cell numbers, unsorted."""
    single = replace(like, block_size=(1, 1), numbers=np.unique(numbers), masks=np.ones((1, 1, 1), np.uint32))
    single = replace(single, ids=np.zeros(single.numbers.size, np.int32))
    return from_cells(merge_cells(single, tuple(like.block_size)))
