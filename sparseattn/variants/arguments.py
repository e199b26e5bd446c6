"""What variants check before they compute: arrays that belong together."""

import numpy as np


def n_tokens(name, x):
    """Tokens of an array ([[batch,] n_heads,] n_tokens, head_dim)."""
    shape = np.shape(x)
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"{name} has shape {shape}; expected (batch, n_heads, n_tokens, head_dim), or without batch, "
                         "or without batch and heads")
    return shape[-2]


def check_pairs(why, pairs, axes=slice(None)):
    """Raise where two arrays of a pair ((name, x), (other_name, other)) differ in dtype or in these axes."""
    for (name, x), (other_name, other) in pairs:
        if getattr(x, "dtype", None) != getattr(other, "dtype", None):
            raise TypeError(f"{name} has dtype {getattr(x, 'dtype', type(x).__name__)} but {other_name} "
                            f"{getattr(other, 'dtype', type(other).__name__)}; {why}")
        if np.ndim(x) != np.ndim(other) or np.shape(x)[axes] != np.shape(other)[axes]:
            raise ValueError(f"{name} has shape {np.shape(x)} but {other_name} {np.shape(other)}; {why}")
