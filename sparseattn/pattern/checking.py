"""What builders and `Pattern.check` verify: arguments in the user's words, and every rule of the structure."""

import numpy as np

from sparseattn.index_ops.algebra import as_blocks, intersection
from sparseattn.index_ops.pairs import pairs
from sparseattn.structure import BlockCSR, Order, Ranges


def count(n, name):
    """A number of tokens: a whole number >= 0."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} is {type(n).__name__}; expected a whole number of tokens")
    if not 0 <= n < 2**31:
        raise ValueError(f"{name} is {n}; expected 0 <= {name} < 2**31 tokens")
    return int(n)


def shape(value):
    """(n_queries, n_keys)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"shape is {value!r}; expected (n_queries, n_keys)")
    return count(value[0], "n_queries"), count(value[1], "n_keys")


def block_size(value):
    """A block size as (block_q, block_k)."""
    whole = isinstance(value, (int, np.integer))
    pair = (value, value) if whole else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or any(isinstance(b, bool) or not isinstance(b, (int, np.integer)) for b in pair):
        raise TypeError(f"block_size is {value!r}; expected a whole number or (block_q, block_k)")
    if not all(1 <= b <= 4096 for b in pair):
        raise ValueError(f"block_size is {value!r}; expected sides from 1 to 4096")
    return int(pair[0]), int(pair[1])


def integers(x, name):
    """An integer array of one to three axes."""
    x = np.asarray(x)
    if x.dtype == bool or not (np.issubdtype(x.dtype, np.integer) or x.size == 0):
        raise TypeError(f"{name} has dtype {x.dtype}; expected integers")
    if not 1 <= x.ndim <= 3:
        raise ValueError(f"{name} has {x.ndim} axes; expected (n,), (n_heads, n) or (batch, n_heads, n)")
    return x if x.size else x.astype(np.int64)


def booleans(x, name, least, most):
    """A boolean array of so many axes."""
    x = np.asarray(x)
    if x.dtype != bool:
        raise TypeError(f"{name} has dtype {x.dtype}; expected bool (compare with 0 if it holds numbers)")
    if not least <= x.ndim <= most:
        raise ValueError(f"{name} has {x.ndim} axes; expected {least} to {most}: ([[batch,] n_heads,] rows, columns)")
    return x


def csr(indptr, indices, n_keys):
    """Offsets that rise from 0 to the number of indices, and keys that exist."""
    count(n_keys, "n_keys")
    if indices.ndim != 1:
        raise ValueError(f"indices has {indices.ndim} axes; expected one, all rows behind each other")
    if indptr.shape[2] < 1:
        raise ValueError("indptr is empty; expected n_queries + 1 offsets")
    if indptr.size and (indptr[..., 0].min() < 0 or (np.diff(indptr, axis=2) < 0).any() or indptr.max() > indices.size):
        raise ValueError(f"indptr must rise from 0 to at most len(indices) = {indices.size} within each row")
    if indices.size and (indices.min() < 0 or indices.max() >= n_keys):
        wrong = indices[(indices < 0) | (indices >= n_keys)][0]
        raise ValueError(f"indices holds key {wrong}, but there are n_keys={n_keys} keys; expected 0 <= key < n_keys")


def blocks_shape(wanted, grid, size):
    """The tokens that a grid of blocks covers, the last of each side perhaps ragged."""
    whole = tuple(n * b for n, b in zip(grid, size))
    if wanted is None:
        return whole
    wanted = shape(wanted)
    for n, blocks, b, name in zip(wanted, grid, size, ("n_queries", "n_keys")):
        if -(-n // b) != blocks:
            raise ValueError(f"shape has {name} {n}, which takes {-(-n // b)} blocks of {b}, but the layout has "
                             f"{blocks}; give {(blocks - 1) * b + 1} to {blocks * b} tokens or another layout")
    return wanted


def check(pattern):
    """Raise ValueError for the first broken rule of a pattern."""
    for number, part in enumerate(pattern.parts):
        try:
            _check_part(part, pattern)
        except _Broken as broken:
            raise ValueError(f"part {number} of the pattern: {broken}") from None
    for i, a in enumerate(pattern.parts):
        for b in pattern.parts[i + 1 :]:
            if intersection(a, b, pattern.n_heads):
                raise ValueError(f"parts {i} and {pattern.parts.index(b)} of the pattern share pairs; subtract one "
                                 "from the other")


class _Broken(Exception):
    """A rule that a part breaks, in words."""


def _require(holds, words):
    if not holds:
        raise _Broken(words)


def _check_part(part, pattern):
    _require(isinstance(part, (BlockCSR, Ranges)), f"is a {type(part).__name__}; expected BlockCSR or Ranges")
    _require(tuple(part.shape) == tuple(pattern.shape), f"has shape {part.shape}, the pattern {pattern.shape}")
    for order, n, name in ((part.q_order, part.shape[0], "q_order"), (part.k_order, part.shape[1], "k_order")):
        if order is not None:
            _check_order(order, n, name)
    _require(part.q_order is None or not part.q_order.repeats, "q_order holds a token twice; a query has one row")
    if isinstance(part, Ranges):
        _check_ranges(part)
    else:
        _check_blocks(part)
    _check_axes(part, pattern)


def _array(x, dtype, n_axes, name):
    _require(isinstance(x, np.ndarray) and x.dtype == dtype and x.ndim == n_axes,
             f"{name} must be a {np.dtype(dtype)} array of {n_axes} axes")


def _check_order(order, n_tokens, name):
    _require(isinstance(order, Order) and order.n_tokens == n_tokens, f"{name} must be an Order of {n_tokens} tokens")
    if order.is_affine:
        fits = all(0 <= axis < len(order.grid) and size >= 0 for axis, size, _ in order.digits)
        _require(fits and len(order.origin) == len(order.grid), f"{name} has digits that do not fit its grid")
        return
    _array(order.tokens, np.int32, 3, name)
    _require(order.tokens.size == 0 or (order.tokens.min() >= -1 and order.tokens.max() < n_tokens),
             f"{name} holds tokens outside 0 to {n_tokens - 1} (-1 is nobody)")


def _check_ranges(part):
    for x, name in ((part.starts, "starts"), (part.stops, "stops")):
        _array(x, np.int32, 3, name)
        n_slots = part.shape[0] if part.q_order is None else part.q_order.n_slots
        _require(x.shape[2] == n_slots, f"{name} must have {n_slots} entries, one a query slot")
    _require(part.starts.shape == part.stops.shape, "starts and stops differ in shape")
    good = (part.starts >= 0) & (part.starts <= part.stops) & (part.stops <= part.n_k_slots)
    _require(good.all(), f"ranges must keep 0 <= start <= stop <= {part.n_k_slots}")
    if part.q_order is not None:
        nobody = part.q_order.listing() < 0
        _require(not (nobody & (part.stops > part.starts)).any(), "a slot of nobody has keys")
    if part.k_order is not None and part.k_order.repeats:
        _check_no_pair_twice(as_blocks(part))


def _check_blocks(part):
    block_q, block_k = part.block_size
    _array(part.indptr, np.int64, 3, "indptr")
    _array(part.indices, np.int32, 1, "indices")
    _require(block_q >= 1 and block_k >= 1, f"block size {part.block_size} must be positive")
    _require(part.n_rows == -(-part.n_q_slots // block_q), f"indptr has {part.n_rows} rows for {part.n_q_slots} "
                                                           "query slots")
    _require((np.diff(part.indptr, axis=2) >= 0).all() and part.indptr.size > 0, "indptr falls")
    _require(part.indptr.min() >= 0 and part.indptr.max() <= part.n_blocks, f"indptr leaves 0 to {part.n_blocks} "
                                                                            "blocks")
    _require(part.n_blocks == 0 or (part.indices.min() >= 0 and part.indices.max() < part.n_cols),
             f"indices leave 0 to {part.n_cols - 1}")
    inside = np.ones(max(part.n_blocks - 1, 0), bool)
    edges = part.indptr.ravel()
    inside[edges[(edges > 0) & (edges < part.n_blocks)] - 1] = False
    _require((np.diff(part.indices)[inside] > 0).all(), "indices must rise within a row")
    _require((part.mask_ids is None) == (part.masks is None), "mask_ids and masks come together")
    if part.masks is not None:
        _array(part.mask_ids, np.int32, 1, "mask_ids")
        _array(part.masks, np.uint32, 3, "masks")
        _require(part.masks.shape[1:] == (block_q, -(-block_k // 32)), f"masks do not fit blocks of {block_q} x "
                                                                       f"{block_k}")
        _require(part.mask_ids.shape == part.indices.shape, "mask_ids and indices differ in length")
        _require(part.n_blocks == 0 or (part.mask_ids.min() >= 0 and part.mask_ids.max() < len(part.masks)),
                 f"mask_ids leave 0 to {len(part.masks) - 1}")
    if part.k_order is not None and part.k_order.repeats:
        _check_no_pair_twice(part)


def _check_no_pair_twice(part):
    numbers = [((b * part.lead[1] + h) * part.shape[0] + q) * part.shape[1] + k for b, h, q, k in pairs(part)]
    numbers = np.sort(np.concatenate(numbers)) if numbers else np.zeros(0, np.int64)
    _require((np.diff(numbers) > 0).all(), "a pair stands twice, through a key at several slots")


def _check_axes(part, pattern):
    batch, heads = part.lead
    arrays = [part.starts.shape[:2] if isinstance(part, Ranges) else part.indptr.shape[:2]]
    arrays += [o.lead for o in (part.q_order, part.k_order) if o is not None]
    _require(all(b in (1, batch) and h in (1, heads) for b, h in arrays), f"axes {arrays} do not fit each other")
    _require(batch in (1, pattern.batch), f"has {batch} batch items, the pattern {pattern.batch}")
    if part.heads is None:
        _require(heads >= 1 and pattern.n_heads % heads == 0, f"has {heads} heads, the pattern {pattern.n_heads}")
        return
    _array(part.heads, np.int32, 1, "heads")
    _require(part.heads.size > 0 and (np.diff(part.heads) > 0).all(), "heads must rise")
    _require(part.heads[0] >= 0 and part.heads[-1] < pattern.n_heads, f"heads leave 0 to {pattern.n_heads - 1}")
    _require(heads in (1, part.heads.size), f"is about {part.heads.size} heads but has {heads}")
