"""Pairs on a grid that are paired on every axis: blocks of the whole grid from blocks of each axis."""

import numpy as np

from sparseattn.index_ops.cells import refuse_too_many_masks
from sparseattn.index_ops.masks import full_mask, pack, unpack
from sparseattn.structure import BlockCSR


def product(parts, shape, q_order, k_order):
    """The Kronecker product of BlockCSRs, one an axis: a BlockCSR of `shape` in these orders. O(blocks).

    Blocks, and slots within a block, are numbered with the last axis fastest, and so must the orders be. The parts are
    shared by all heads. Masks are multiplied once for each combination that occurs.
    """
    block_size = tuple(int(np.prod(sides)) for sides in zip(*(p.block_size for p in parts)))
    line, indices, ids, kinds = _cells(parts)
    n_rows = int(np.prod([p.n_rows for p in parts]))
    indptr = np.zeros((1, 1, n_rows + 1), np.int64)
    np.cumsum(np.bincount(line, minlength=n_rows), out=indptr[0, 0, 1:])
    refuse_too_many_masks(kinds[0].size, block_size)
    masked = kinds[0].size > 1
    return BlockCSR(shape, block_size, indptr, indices, ids if masked else None,
                    _masks(parts, kinds, block_size) if masked else None, q_order, k_order)


def _cells(parts):
    """Row, column and mask number of each block, and for each mask number which mask of every part it is made of."""
    rows = np.unravel_index(np.arange(np.prod([p.n_rows for p in parts])), [p.n_rows for p in parts])
    line = np.arange(rows[0].size)
    col, code = np.zeros((2, line.size), np.int64)
    for part, row in zip(parts, rows):
        begin, end = part.indptr[0, 0, row[line]], part.indptr[0, 0, row[line] + 1]
        counts = end - begin
        parent = np.repeat(np.arange(line.size), counts)
        at = np.arange(parent.size) + np.repeat(begin - (np.cumsum(counts) - counts), counts)
        line, col = line[parent], col[parent] * part.n_cols + part.indices[at]
        code = code[parent] * _n_masks(part) + (0 if part.mask_ids is None else part.mask_ids[at])
    used, ids = np.unique(np.append(0, code), return_inverse=True)  # 0, full on every axis, comes first
    kinds = np.unravel_index(used, [_n_masks(p) for p in parts])
    return line, col.astype(np.int32), ids.reshape(-1)[1:].astype(np.int32), kinds


def _n_masks(part):
    return 1 if part.masks is None else len(part.masks)


def _masks(parts, kinds, block_size):
    """uint32 masks of whole blocks; the first is all ones."""
    bits = np.ones((kinds[0].size, 1, 1), bool)
    for part, kind in zip(parts, kinds):
        axis = unpack(full_mask(part.block_size) if part.masks is None else part.masks, part.block_size[1])[kind]
        bits = bits[:, :, None, :, None] & axis[:, None, :, None, :]
        bits = bits.reshape(bits.shape[0], bits.shape[1] * bits.shape[2], -1)
    return pack(bits)
