"""Random key blocks for each row of blocks."""

import numpy as np

from sparseattn.index_ops.cells import Cells, from_cells
from sparseattn.index_ops.masks import full_mask
from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import at_least_0, positive, sizes


def random_blocks(n_queries, n_keys=None, *, per_row, block_size=64, n_heads=1, seed=0):
    """Each block of queries attends `per_row` key blocks drawn at random, in each head others.

    Parameters
    ----------
    n_queries, n_keys : int
        Tokens. `n_keys` defaults to `n_queries`; the last block of each may be short.
    per_row : int
        Key blocks of each row of blocks; all of them where there are no more.
    block_size : int or tuple of int
        Tokens of a block. Whole blocks are attended, so it is part of the meaning.
    n_heads : int
        Heads, each with draws of its own.
    seed : int
        For the draws; equal arguments give equal blocks.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), one per head where `n_heads` > 1.

    Notes
    -----
    Query i attends key j when the block of j is among those of the row of i: `per_row` distinct blocks, every choice of
    them equally likely, drawn from ``numpy.random.default_rng(seed)`` by Floyd's method. For t from 0 to per_row - 1
    one array (n_heads, rows) of uniform numbers from 0 to m = blocks - per_row + t; a row takes its number, or m if it
    holds that number already. O(n_heads * rows * per_row ** 2) to build. `density_in_tiles` is 1 where blocks divide
    the sequence.

    References
    ----------
    .. [1] Zaheer et al., Big Bird, arXiv:2007.14062, section 2.
    .. [2] Bentley and Floyd, A Sample of Brilliance, Communications of the ACM 30(9), 1987.
    """
    shape, size = sizes(n_queries, n_keys), checking.block_size(block_size)
    per_row, n_heads = at_least_0(per_row, "per_row"), positive(n_heads, "n_heads")
    rows, cols = (-(-n // b) for n, b in zip(shape, size))
    drawn = distinct(np.random.default_rng(seed), np.full((n_heads, rows), cols), min(per_row, cols))
    line = np.arange(n_heads * rows).reshape(n_heads, rows, 1)
    numbers = np.sort((line * cols + drawn).ravel())
    cells = Cells(shape, size, (1, n_heads), numbers, np.zeros(numbers.size, np.int32), full_mask(size))
    return Pattern.from_parts([from_cells(cells)], shape, 1, n_heads)


def distinct(rng, sizes, count):
    """`count` distinct numbers below each of `sizes`, int64 sizes.shape + (count,); -1 where there are fewer."""
    drawn = np.full(sizes.shape + (count,), -1, np.int64)
    wanted = np.minimum(sizes, count)
    for t in range(count):
        most = sizes - wanted + t
        number = rng.integers(0, np.maximum(most, 0), endpoint=True)
        taken = (drawn[..., :t] == number[..., None]).any(-1)
        drawn[..., t] = np.where(t < wanted, np.where(taken, most, number), -1)
    return drawn
