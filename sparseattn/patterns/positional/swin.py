"""Windows of a grid, plain and shifted."""

import math

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import positive, ranges_pattern, reach
from sparseattn.patterns.positional.grids import lengths, per_axis, runs, spaced, tile
from sparseattn.structure import Order


def swin(shape, *, window, shift=0, pad="drop", block_size=None):
    """Each token of a grid attends the tokens of its own window.

    Parameters
    ----------
    shape : tuple of int
        Lengths of the grid's axes, any number of them; tokens are in raster order, the last axis fastest.
    window : int or sequence of int
        Side of a window, one for all axes or one for each.
    shift : int or sequence of int
        By how many tokens the windows are moved, less than `window`; the published models use ``window // 2`` in every
        second layer.
    pad : {"drop", "attend"}
        Where windows do not divide an axis: "drop" has short windows at the border. "attend" is for models that pad the
        end of each axis to a whole number of windows and let the padding be attended: the pattern is for the padded
        grid.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens) with ``n_tokens = prod(shape)``, of the padded grid for "attend"; shared by all
        heads.

    Raises
    ------
    ValueError
        If a shift is not less than its window, or a number of values is neither 1 nor that of the axes.

    Notes
    -----
    With x[a] the coordinate along axis a, query i attends key j when ``floor((x_i[a] - shift[a]) / window[a])`` equals
    that of x_j on every axis a. This is the published construction (roll, cut, mask what came from the other side)
    without rolling: a shifted axis has one more window, short at both ends. An axis that fits into one window is one,
    unshifted; the first release of Swin does so on both axes as soon as the shorter one fits. O(n_tokens) to build,
    O(n_tokens log n_tokens) if shifted or short.

    For "attend" give q, k, v of ``ceil(length / window) * window`` tokens an axis, those behind the end made like the
    others from padded features (zeros after the layer norm, so q, k and v of padding are the biases of their
    projections), and drop their rows of the result.

    Windows lie one behind the other in the stored order, larger ones first, whole ones filled up with nobody where
    tiles would not fit. `density_in_tiles` of whole windows is at least 0.97 from 9 tokens on, and 1 where their tokens
    are made of equal shares of up to 64 (7 x 7, 8 x 8, 12 x 12, 16 x 16 ...); it is 0.93 for 8 x 8 shifted by 4 on
    128 x 128, and 1 for 16 x 16 shifted by 8.

    Swin's table of relative positions is ``bias=sparseattn.bias.relative_2d(table, shape, window)``, for "attend" with
    the padded shape. For Swin V2 pass q and k of unit length, q times its factor ``exp(min(logit_scale, ln 100))``,
    ``scale=1`` and the finished table.

    References
    ----------
    .. [1] Liu et al., Swin Transformer, arXiv:2103.14030, section 3.2.
    .. [2] Liu et al., Swin Transformer V2, arXiv:2111.09883.
    """
    shape, window, shift = _sizes(shape, window, shift)
    if pad not in ("drop", "attend"):
        raise ValueError(f'pad is {pad!r}; expected "drop" or "attend"')
    if pad == "attend":
        shape = tuple(-(-length // w) * w for length, w in zip(shape, window))
    if any(shift) or any(length % w for length, w in zip(shape, window)):
        return _listed(shape, window, shift, block_size)
    digits = [(a, length // w, w) for a, (length, w) in enumerate(zip(shape, window))]
    digits += [(a, w, 1) for a, w in enumerate(window)]
    order = Order.affine(shape, digits)
    return runs(math.prod(shape), math.prod(window), None if _in_a_row(shape, window) else order, block_size)


def _sizes(shape, window, shift):
    """Lengths, windows clipped to them, and shifts, 0 where one window holds the axis."""
    shape = lengths(shape)
    window, shift = per_axis(window, len(shape), "window", positive), per_axis(shift, len(shape), "shift", _shift)
    for axis, (w, s) in enumerate(zip(window, shift)):
        if s >= w:
            raise ValueError(f"shift is {s} along axis {axis}, where the window is {w}; expected 0 <= shift < window")
    shift = tuple(0 if w >= length else s for length, w, s in zip(shape, window, shift))
    return shape, tuple(min(length, w) for length, w in zip(shape, window)), shift


def _shift(value, name):
    if value is None:
        raise TypeError(f"{name} is None; expected a whole number of tokens")
    return reach(value, name)


def _in_a_row(shape, window):
    """Whether the tokens of a window follow each other as they lie: it holds every axis behind its first long one."""
    first = next((a for a, w in enumerate(window) if w > 1), len(shape))
    return window[first + 1:] == shape[first + 1:]


def _listed(shape, window, shift, block_size) -> Pattern:
    """Shifted or short windows."""
    number, size = _windows(shape, window, shift)
    n, area = number.size, math.prod(window)
    if _in_a_row(shape, window):
        starts, stops = _equal_to(number)
        return ranges_pattern(starts[None, None], stops[None, None], (n, n), block_size)
    # larger windows in front: whole ones fill whole tiles, and of two sizes the smaller often divides the other
    number = (area - size) * (number[-1] + 1) + number
    tokens, n_whole = np.argsort(number, kind="stable"), np.count_nonzero(size == area)
    side = tile(area) if block_size is None else None
    whole, *bounds = spaced(tokens[:n_whole], area, side)
    rest = _equal_to(number[tokens[n_whole:]])
    starts, stops = (np.append(x, whole.size + y)[None, None] for x, y in zip(bounds, rest))
    order = Order.listed(np.append(whole, tokens[n_whole:]), n)
    return ranges_pattern(starts, stops, (n, n), block_size or side, order, order)


def _equal_to(number):
    """Where the run of each number of a sorted list begins and ends."""
    return np.searchsorted(number, number, "left"), np.searchsorted(number, number, "right")


def _windows(shape, window, shift):
    """Of each token, in raster order: the number of its window, in raster order too, and that window's tokens."""
    number, size = np.zeros(shape, np.int64), np.ones(shape, np.int64)
    for axis, (length, w, s) in enumerate(zip(shape, window, shift)):
        along = (np.arange(length) + (w - s) % w) // w
        counts = np.bincount(along)
        spread = (-1,) + (1,) * (len(shape) - axis - 1)
        number = number * counts.size + along.reshape(spread)
        size = size * counts[along].reshape(spread)
    return number.ravel(), size.ravel()
