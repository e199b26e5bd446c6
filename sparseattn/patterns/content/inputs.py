"""What content patterns read: arrays of heads, checked before any work, and the scale of their scores."""

import math
import numbers

import numpy as np

from sparseattn.xp import compute_dtype, library, on_cpu


def heads(**arrays):
    """Arrays by name, ([[batch,] n_heads,] n_tokens, head_dim), as 4-D views of one dtype, batch and place.

    Heads and tokens may differ from array to array, see `keys_for`.
    """
    names, first = list(arrays), next(iter(arrays))
    for name, x in arrays.items():
        _check(name, x, first, arrays[first])
    views = [x[(None,) * (4 - x.ndim)] for x in arrays.values()]
    for name, x in zip(names, views):
        if x.shape[0] != views[0].shape[0]:
            raise ValueError(f"{first} has batch {views[0].shape[0]} but {name} {x.shape[0]}; give both the same batch")
        if x.shape[3] != views[0].shape[3] or x.shape[3] < 1:
            raise ValueError(f"{first} has head_dim {views[0].shape[3]} but {name} {x.shape[3]}; expected one size, at "
                             "least 1")
    return views


def _check(name, x, first, like):
    check_place(name, x, first, like)
    if compute_dtype(x.dtype) is None:
        raise TypeError(f"{name} has dtype {x.dtype}; expected float16, bfloat16, float32 or float64: "
                        f"{name}.astype(np.float32)")
    if not 2 <= x.ndim <= 4:
        raise ValueError(f"{name} has shape {x.shape}; expected (batch, n_heads, n_tokens, head_dim), or without "
                         "batch, or without batch and heads")
    if x.dtype != like.dtype:
        raise TypeError(f"{first} has dtype {like.dtype} but {name} {x.dtype}; expected one dtype: "
                        f"{name}.astype({first}.dtype)")
    if x.ndim != like.ndim:
        raise ValueError(f"{first} has {like.ndim} axes but {name} {x.ndim}; give both the same axes")


def check_place(name, x, first, like):
    """Raise unless x is an array, of the library of `like` and, of CuPy's, on the same GPU."""
    if library(x) is None:
        raise TypeError(f"{name} is {type(x).__name__}; expected a NumPy or CuPy array: np.asarray({name}, np.float32)")
    if library(x) != library(like):
        raise TypeError(f"{first} is a {library(like)} array but {name} a {library(x)} array; move them to one: "
                        "cupy.asarray or cupy.asnumpy")
    if library(x) == "cupy" and x.device != like.device:
        raise ValueError(f"{first} is on GPU {like.device.id} but {name} on GPU {x.device.id}; move them to one")


def keys_for(q, k):
    """The key head of each query head, (n_heads,), of q and k (batch, n_heads | n_kv_heads, n_tokens, head_dim)."""
    n_heads, n_kv_heads = q.shape[1], k.shape[1]
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"q has {n_heads} heads but k has {n_kv_heads}; the heads of q must be a multiple of those of "
                         "k")
    return np.arange(n_heads) * n_kv_heads // max(n_heads, 1)


def causal_offset(q, k):
    """Where query 0 sits among the keys: the last query sits at the last key. Queries before the first key: refused."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    if n_queries > n_keys:
        raise ValueError(f"q has {n_queries} tokens but k only {n_keys}; the last query sits at the last key, so give "
                         "at least as many keys as queries")
    return n_keys - n_queries


def scale_of(scale, head_dim):
    """A finite number; None: 1 / sqrt(head_dim)."""
    if scale is None:
        return head_dim**-0.5
    return real(scale, "scale", -math.inf, math.inf)


def real(x, name, low, high):
    """A finite number from `low` to `high`."""
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, numbers.Real):
        raise TypeError(f"{name} is {x!r}; expected a number")
    if not (math.isfinite(x) and low <= x <= high):
        raise ValueError(f"{name} is {x}; expected a finite number" + (f" from {low:g} to {high:g}" if low > -math.inf
                                                                       else ""))
    return float(x)


def wide(x):
    """x in the dtype that scores are computed in: float64 for float64, else float32."""
    return x.astype(compute_dtype(x.dtype), copy=False)


def valid_tokens(valid, k):
    """bool (1 | batch, n_tokens) of NumPy that says which tokens of k (batch, any heads, n_tokens, head_dim) are real,
    or None."""
    if valid is None:
        return None
    if library(valid) == "cupy" != library(k):
        raise TypeError("valid is a cupy array but the tokens are numpy arrays; give valid.get()")
    x, batch, n_tokens = on_cpu(valid), k.shape[0], k.shape[2]
    if x.dtype != bool:
        raise TypeError(f"valid is an array of {x.dtype}; expected bool, True at real tokens")
    if x.shape not in ((n_tokens,), (1, n_tokens), (batch, n_tokens)):
        raise ValueError(f"valid has shape {x.shape}; expected (batch, n_tokens) = {(batch, n_tokens)} or (n_tokens,)")
    return x.reshape(-1, n_tokens)
