"""Tiles with masks of their own as a block structure. Of either library."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.cells import as_structure
from sparseattn.index_ops.masks import distinct, full_mask
from sparseattn.xp import namespace


def masked_tiles(cells, states, masks):
    """The BlockCSR of cells whose numbers are given, each with a mask of `masks` (n, block_q, words) and what is known
    of it, int8 (n,): -1 it is empty, 1 it holds every pair of existing tokens, else 0."""
    xp = namespace(states)
    partial, kept = xp.flatnonzero(states == 0), states >= 0
    masks = masks if partial.size == states.size else masks[partial]
    first, which = distinct(masks)
    if first.size == partial.size:  # each its own: as they lie
        first, which = slice(None), xp.arange(partial.size)
    ids = xp.zeros(states.size, np.int32)
    ids[partial] = 1 + which
    masks = xp.concatenate([full_mask(cells.block_size, xp), masks[first]])
    return as_structure(replace(cells, numbers=cells.numbers[kept], ids=ids[kept], masks=masks))
