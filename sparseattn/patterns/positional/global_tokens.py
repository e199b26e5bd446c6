"""Tokens that see all and are seen by all."""

import numpy as np

from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import tiles
from sparseattn.structure import Order, Ranges
from sparseattn.xp import on_cpu


def global_tokens(n_tokens, positions, *, block_size=None):
    """Global tokens attend every token, and every token attends them.

    Parameters
    ----------
    n_tokens : int
        Tokens.
    positions : sequence of int, or array of bool (n_tokens,) or (batch, n_tokens)
        The global tokens, of all sequences or of each batch item; an array of CuPy is copied to the CPU.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), shared by all heads.

    Notes
    -----
    Query i attends key j when i or j is global. Two parts: the global queries, and the global keys gathered side by
    side. O(n_tokens) to build. `density_in_tiles` is 0.99 for 64 global tokens of 16,384; less for a few, which fill no
    tile.

    References
    ----------
    .. [1] Beltagy et al., Longformer, arXiv:2004.05150, section 3.1.
    .. [2] Ainslie et al., ETC, arXiv:2004.08483, section 3.
    """
    n = checking.count(n_tokens, "n_tokens")
    flags = _flags(positions, n)
    batch = flags.shape[0]
    listed = _listed(flags)
    size = tiles(block_size)
    each = np.broadcast_to(np.int32(flags.sum(axis=1))[:, None, None], (batch, 1, n))
    stops = np.where(flags[:, None, :], np.int32(0), each)
    columns = Ranges((n, n), np.zeros_like(stops), stops, None, _contiguous_or(listed, n), block_size=size)
    if columns.k_order is None:  # neighbouring tokens lie side by side already
        first = listed[0, 0, 0]
        shifted = (np.where(stops > 0, first + x, np.int32(0)) for x in (np.int32(0), stops))
        columns = Ranges((n, n), *shifted, block_size=size)
    return Pattern.from_parts([columns, _rows(listed, n, size)], (n, n), batch)


def global_queries(n_tokens, positions, *, block_size=None):
    """The rows alone: global tokens attend every token, the others nothing; arguments as in `global_tokens`."""
    n = checking.count(n_tokens, "n_tokens")
    listed = _listed(_flags(positions, n))
    return Pattern.from_parts([_rows(listed, n, tiles(block_size))], (n, n), listed.shape[0])


def _rows(listed, n, size):
    """Every key for each of the listed queries, as Ranges in their order."""
    whole = np.where(listed >= 0, np.int32(n), np.int32(0))
    return Ranges((n, n), np.zeros_like(whole), whole, Order.listed(listed, n), None, block_size=size)


def _flags(positions, n):
    """Which tokens are global, bool (1 | batch, n_tokens)."""
    positions = on_cpu(positions)
    if positions.dtype == bool:
        if positions.ndim not in (1, 2) or positions.shape[-1] != n:
            raise ValueError(f"positions has shape {positions.shape}; expected bool ({n},) or (batch, {n})")
        return positions if positions.ndim == 2 else positions[None]
    if positions.size and (not np.issubdtype(positions.dtype, np.integer) or positions.ndim != 1):
        raise TypeError(f"positions is an array of {positions.dtype} with {positions.ndim} axes; expected a list of "
                        "tokens, or bool (batch, n_tokens)")
    if positions.size and (positions.min() < 0 or positions.max() >= n):
        raise ValueError(f"positions holds {positions.min()} to {positions.max()}; expected tokens from 0 to {n - 1}")
    flags = np.zeros((1, n), bool)
    flags[0, positions.astype(np.int64)] = True
    return flags


def _listed(flags):
    """The global tokens of each batch item, int32 (batch, 1, most), -1 behind the shorter lists."""
    listed = np.full((flags.shape[0], 1, int(flags.sum(axis=1).max(initial=0))), -1, np.int32)
    for b, row in enumerate(flags):
        tokens = np.flatnonzero(row)
        listed[b, 0, : tokens.size] = tokens
    return listed


def _contiguous_or(listed, n):
    """None where all lists are one run of neighbouring tokens, else their order."""
    one_run = listed.shape[0] == 1 and listed.size and listed[0, 0, -1] - listed[0, 0, 0] == listed.size - 1
    return None if one_run else Order.listed(listed, n)
