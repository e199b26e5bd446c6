"""Neighborhood attention: the nearest tokens of a grid, as many for every query."""

import math

import numpy as np

from sparseattn.index_ops.boxes import product
from sparseattn.index_ops.tiles import cut
from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import positive, tiles
from sparseattn.patterns.positional.grids import lengths, per_axis
from sparseattn.patterns.positional.patches import Axis, chosen, order


def neighborhood(shape, *, kernel_size, stride=1, dilation=1, is_causal=False, block_size=None):
    """Each token of a grid attends the `kernel_size` tokens around it, moved inside at the borders.

    Parameters
    ----------
    shape : tuple of int
        Lengths of the grid's axes, any number of them; tokens are in raster order, the last axis fastest.
    kernel_size : int or sequence of int
        Keys along each axis, the token's own included. An even number has one more before than behind.
    stride : int or sequence of int
        So many neighbouring queries share the window of the one in their middle (of the last one if causal).
    dilation : int or sequence of int
        Distance between attended keys; only tokens of equal ``x % dilation`` meet.
    is_causal : bool or sequence of bool
        Keys up to the query alone, along that axis.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens) with ``n_tokens = prod(shape)``, shared by all heads.

    Raises
    ------
    ValueError
        Unless ``kernel_size * dilation`` is at most the length and ``stride`` at most `kernel_size`, on every axis.

    Notes
    -----
    On an axis of length L with kernel_size k, stride s and dilation d, the token at i stands at place ``x = i // d`` of
    group ``g = i % d``, which has ``n = ceil((L - g) / d)`` tokens. It attends the places ``lo <= y < hi`` of its
    group::

        lead = min(x // s * s + s // 2, n - 1)           lo = clip(lead - k // 2, 0, n - k)   hi = lo + k
        lead = min(x // s * s + s - 1, n - 1), causal    lo = max(lead - k + 1, 0)            hi = x + 1

    Query i attends key j when that holds on every axis. So windows are moved inside at the borders, not cut as
    `sliding_window` does, and each query has k keys an axis; a causal axis cuts at its start, and with a stride its
    queries have ``k - e`` keys, e places before the end of their stride.

    One axis is ranges in the order of its groups, O(n_tokens) to build. Several axes are blocks of query patches and
    key patches, chosen for the sizes at hand, multiplied from the axes: O(blocks) to build, one mask for each
    combination of masks along the axes. `density_in_tiles` is 0.66 for 13 x 13 on 64 x 64, 0.38 for 7 x 7, and 0.43 for
    5 x 5 x 5 on 16 x 32 x 32; on one axis 0.89 for 257 of 16,384.

    References
    ----------
    .. [1] Hassani et al., Neighborhood Attention Transformer, arXiv:2204.07143.
    .. [2] Hassani and Shi, Dilated Neighborhood Attention Transformer, arXiv:2209.15001.
    .. [3] Hassani et al., Generalized Neighborhood Attention, arXiv:2504.16922 (stride).
    """
    axes = _axes(shape, kernel_size, stride, dilation, is_causal)
    block_size = tiles(block_size)
    n_tokens = math.prod(axis.length for axis in axes)
    part = _patched(axes, block_size) if len(axes) > 1 else axes[0].ranges(block_size=block_size)
    pattern = Pattern.from_parts([part], (n_tokens, n_tokens))
    return pattern.reblock(block_size) if block_size and len(axes) > 1 else pattern


def _axes(shape, kernel_size, stride, dilation, is_causal):
    """The checked arguments, axis by axis."""
    shape = lengths(shape)
    values = [per_axis(value, len(shape), name, read) for value, name, read in (
        (kernel_size, "kernel_size", positive), (stride, "stride", positive), (dilation, "dilation", positive),
        (is_causal, "is_causal", _flag))]
    axes = tuple(Axis(*of_axis) for of_axis in zip(shape, *values))
    for number, axis in enumerate(axes):
        if axis.kernel * axis.dilation > axis.length:
            raise ValueError(f"kernel_size {axis.kernel} with dilation {axis.dilation} needs "
                             f"{axis.kernel * axis.dilation} tokens along axis {number}, which has {axis.length}; "
                             "expected kernel_size * dilation <= length")
        if axis.stride > axis.kernel:
            raise ValueError(f"stride is {axis.stride} along axis {number}, where kernel_size is {axis.kernel}; "
                             "expected stride <= kernel_size")
    return axes


def _flag(value, name):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def _patched(axes, block_size):
    """Patches of queries by patches of keys."""
    q_sides, k_sides, shifts = chosen(axes, block_size)
    parts = [cut(axis.ranges(q_side, k_side, shift), (q_side, k_side))
             for axis, q_side, k_side, shift in zip(axes, q_sides, k_sides, shifts)]
    n_tokens = math.prod(axis.length for axis in axes)
    return product(parts, (n_tokens, n_tokens), order(axes, q_sides, [0] * len(axes)), order(axes, k_sides, shifts))
