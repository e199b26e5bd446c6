"""Attention along the axes of a grid."""

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.patterns.positional.grids import axes_of, lengths, runs
from sparseattn.structure import Order


def axial(shape, axes, *, causal_axes=(), block_size=None):
    """Each token of a grid attends the tokens that differ from it along one axis alone.

    Parameters
    ----------
    shape : tuple of int
        Lengths of the grid's axes, any number of them; tokens are in raster order, the last axis fastest.
    axes : int or sequence of int
        The axis, or several: their union, one softmax in which the token itself counts once. Negative ones count from
        behind.
    causal_axes : int or sequence of int
        Those of `axes` along which no token sees a later one.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens) with ``n_tokens = prod(shape)``, shared by all heads.

    Raises
    ------
    ValueError
        For an axis that the grid lacks or that stands twice, and for causal axes that are none of `axes`.

    Notes
    -----
    With x[a] the coordinate along axis a, query i attends key j when for some a of `axes` ``x_i[b] == x_j[b]`` on every
    other axis b, and ``x_j[a] <= x_i[a]`` if a is causal. O(n_tokens) to build.

    Each axis is stored in the order in which its tokens follow each other, filled up with nobody where tiles would not
    fit. `density_in_tiles` of one axis is at least 0.95 from 9 tokens on, and 1 where the length is made of equal
    shares of up to 64 (64, 96, 126, 128 ...); a last axis of 1,024 or more tokens is left as it lies, with at least
    0.89. It is 0.8 for a causal axis of 128 tokens, 0.94 for one of 512, and 0.99 for the union of both axes of
    128 x 128.

    "Axial attention" names three more functions of one axis at a time: axes in sequence, as in the paper (two calls,
    the second on the first one's output), their sum (`sparseattn.variants.axial_sum`), and their mean. The union is the
    criss-cross attention of CCNet. The official code's causal layers also shift their inputs by one token.

    References
    ----------
    .. [1] Ho et al., Axial Attention in Multidimensional Transformers, arXiv:1912.12180, section 3.
    .. [2] Huang et al., CCNet: Criss-Cross Attention for Semantic Segmentation, arXiv:1811.11721.
    """
    shape = lengths(shape)
    axes = axes_of(axes, len(shape), "axes")
    causal_axes = axes_of(causal_axes, len(shape), "causal_axes")
    if not axes:
        raise ValueError("axes is empty; expected at least one axis of the grid")
    if not set(causal_axes) <= set(axes):
        raise ValueError(f"causal_axes {causal_axes} are not all among axes {axes}; leave the others out")
    first, *others = (_along(shape, axis, axis in causal_axes, block_size) for axis in axes)
    for pattern in others:
        first = first | pattern
    return first


def _along(shape, axis, causal, block_size) -> Pattern:
    """One axis, in the order where it is the fastest."""
    digits = [(a, shape[a], 1) for a in range(len(shape)) if a != axis] + [(axis, shape[axis], 1)]
    natural = all(length == 1 for length in shape[axis + 1:])
    order = None if natural else Order.affine(shape, digits)
    return runs(int(np.prod(shape)), shape[axis], order, block_size, causal)
