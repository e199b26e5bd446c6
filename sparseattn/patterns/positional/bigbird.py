"""BigBird: window, global and random blocks."""

import numpy as np

from sparseattn.index_ops.cells import Cells, from_cells
from sparseattn.index_ops.masks import full_mask
from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import at_least_0, positive
from sparseattn.patterns.positional.bigbird_plans import general_plan, legacy_plan, uniform_plan


def bigbird(n_tokens, *, block_size=64, n_window=3, n_random=3, n_heads=1, seed=0, plan="uniform", rand_blocks=None,
            n_global=None, max_length=4096):
    """Each block of tokens attends its neighbours, the global blocks and some random blocks; global blocks attend all.

    Parameters
    ----------
    n_tokens : int
        Tokens; the last block may be short.
    block_size : int
        Tokens of a block. Whole blocks are attended, so it is part of the meaning.
    n_window : int
        Blocks of the window, odd: the block itself and ``n_window // 2`` on each side.
    n_random : int
        Random key blocks of each row of blocks, fewer where fewer exist.
    n_heads : int
        Heads, each with random blocks of its own.
    seed : int
        For the random blocks. The released models use the number of the layer.
    plan : {"uniform", "official", "legacy"}
        How random blocks are drawn: uniformly, as the theory needs; or as the released code draws them, by its
        general plan, or by the one it uses for lengths 1024, 3072 and 4096, where all lie in the first 1024 tokens.
    rand_blocks : array of int, (n_heads, n_rows - 2, n_random), optional
        The random blocks themselves, for rows 1 to n_rows - 2, as a checkpoint has them; -1: none.
    n_global : int, optional
        So many first blocks are global; None: the first and the last, as in the released code.
    max_length : int
        Tokens that the legacy plan is drawn for.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), one per head where `n_heads` > 1.

    Raises
    ------
    ValueError
        Where the official plan has too few blocks to draw from.

    Notes
    -----
    With R the block of the query and C that of the key, query i attends key j when R or C is global, ``abs(R - C) <=
    n_window // 2``, or C is random for R; rows 1 to n_rows - 2 have random blocks. O(n_heads * blocks) to build.
    `density_in_tiles` is 1 where blocks divide the sequence.

    Random blocks are by default the paper's: those of the released code all lie in the first blocks, so its graph
    lacks what random edges are for. For 2048 tokens Google's code takes the legacy plan, Transformers the general one.
    The paper's globals, all in front, are ``n_global=g``. Blocks are a set, the same in training and inference;
    released code counts a block that is drawn twice, or in the window too, twice in its softmax, and Transformers in
    evaluation mode draws block 0 for every row: ``rand_blocks`` of 0, and ``attend(..., bias=log_count(counts))`` of
    `sparseattn.bias` with the counts of all pairs. It attends densely up to ``(5 + 2 * n_random) * block_size`` tokens;
    this does not.

    References
    ----------
    .. [1] Zaheer et al., Big Bird, arXiv:2007.14062, section 2 and appendix D.
    """
    n, size = checking.count(n_tokens, "n_tokens"), positive(block_size, "block_size")
    n_heads, side = positive(n_heads, "n_heads"), _window_side(n_window)
    n_rows = -(-n // size)
    first, last = (1, 1) if n_global is None else (at_least_0(n_global, "n_global"), 0)
    first = min(first, n_rows)
    if rand_blocks is None:
        sizes = (n_rows, at_least_0(n_random, "n_random"), n_heads, seed)
        rand_blocks = _draw(plan, sizes, size, max_length, (first, last, side))
    rand_blocks = _checked(rand_blocks, n_rows, n_heads)
    shared = np.concatenate(_global_blocks(n_rows, first, last) + [_window_blocks(n_rows, side)])
    parts = []
    for head, blocks in enumerate(rand_blocks):
        row, which = np.nonzero(blocks >= 0)
        drawn = (row + 1) * n_rows + blocks[row, which]
        parts.append(np.unique(np.concatenate([shared, drawn])) + head * n_rows * n_rows)
    numbers = np.concatenate(parts)
    block = (size, size)
    cells = Cells((n, n), block, (1, len(rand_blocks)), numbers, np.zeros(numbers.size, np.int32), full_mask(block))
    return Pattern.from_parts([from_cells(cells)], (n, n), 1, n_heads)


def _window_side(n_window):
    n_window = positive(n_window, "n_window")
    if n_window % 2 == 0:
        raise ValueError(f"n_window is {n_window}; expected an odd number of blocks, the block itself in the middle")
    return n_window // 2


def _global_blocks(n_rows, first, last):
    """Numbers ``row * n_rows + col`` of blocks in global rows and columns."""
    every, picked = np.arange(n_rows), np.unique(np.r_[:first, max(n_rows - last, 0) : n_rows])
    return [(picked[:, None] * n_rows + every).ravel(), (every[:, None] * n_rows + picked).ravel()]


def _window_blocks(n_rows, side):
    row = np.repeat(np.arange(n_rows), 2 * side + 1)
    col = row + np.tile(np.arange(-side, side + 1), n_rows)
    good = (col >= 0) & (col < n_rows)
    return row[good] * n_rows + col[good]


def _draw(plan, sizes, size, max_length, layout):
    """Random blocks by a plan; sizes: (n_rows, n_random, n_heads, seed)."""
    if plan == "uniform":
        return uniform_plan(*sizes, *layout)
    if plan == "official":
        return general_plan(*sizes)
    if plan == "legacy":
        return legacy_plan(*sizes, size, max_length)
    raise ValueError(f'plan is {plan!r}; expected "uniform", "official" or "legacy"')


def _checked(rand_blocks, n_rows, n_heads):
    """int (n_heads | 1, n_rows - 2, n_random)."""
    blocks = checking.integers(rand_blocks, "rand_blocks")
    if blocks.ndim == 2:
        blocks = blocks[None]
    if blocks.ndim != 3 or blocks.shape[0] not in (1, n_heads) or blocks.shape[1] != max(n_rows - 2, 0):
        raise ValueError(f"rand_blocks has shape {np.shape(rand_blocks)}; expected (n_heads={n_heads}, n_rows - "
                         f"2={max(n_rows - 2, 0)}, "
                         f"n_random): one list a head and row of blocks, without the first and last row")
    if blocks.size and (blocks.min() < -1 or blocks.max() >= n_rows):
        raise ValueError(f"rand_blocks holds {blocks.min()} to {blocks.max()}; expected blocks from 0 to "
                         f"{n_rows - 1}, or -1 for none")
    return blocks
