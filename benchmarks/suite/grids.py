"""Patterns over a two-dimensional grid of tokens in raster order, each stored in the order in which it is dense."""

import numpy as np

from sparseattn import Pattern
from sparseattn.structure import Order, Ranges


def axial_columns(n_rows, n_cols):
    """Each token attends the tokens of its own column."""
    order = Order.affine((n_rows, n_cols), ((1, n_cols, 1), (0, n_rows, 1)))
    return _equal_classes(order, n_rows)


def swin_windows(n_rows, n_cols, side):
    """Each token attends the tokens of its own window of side x side; `side` divides the grid."""
    order = Order.affine((n_rows, n_cols), ((0, n_rows // side, side), (1, n_cols // side, side),
                                            (0, side, 1), (1, side, 1)))
    return _equal_classes(order, side * side)


def _equal_classes(order, length):
    """Each run of `length` slots attends itself."""
    starts = np.arange(order.n_slots, dtype=np.int32)[None, None] // length * length
    shape = (order.n_tokens, order.n_tokens)
    return Pattern.from_parts([Ranges(shape, starts, starts + np.int32(length), order, order)], shape)
