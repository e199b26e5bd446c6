"""The checks of a call of profile, before anything is measured."""

from __future__ import annotations

import math
import numbers

import numpy as np

from sparseattn.profiling.rows import Asked
from sparseattn.xp import namespace, on_cpu


def asked(q, k, causal, scale, rows, masses, quantiles, shares, block_sizes, valid, shape, targets) -> Asked:
    """What is measured, from the arguments of `profile`."""
    if not isinstance(causal, (bool, np.bool_)):
        raise TypeError(f"causal is {causal!r}; expected True or False")
    batch, n_heads, n_queries, _ = q.shape
    n_keys = k.shape[2]
    is_open, is_asked = _valid(valid, batch, n_queries, n_keys)
    return Asked(
        rows=rows, causal=bool(causal), scale=scale, masses=_shares("masses", masses),
        quantiles=_shares("quantiles", quantiles), shares=np.array(shares),
        block_sizes=_block_sizes(block_sizes), is_open=is_open, is_asked=is_asked[:, rows],
        coordinates=_coordinates(shape, n_queries, n_keys), offset=n_keys - n_queries,
        targets=_targets(targets, batch, n_heads, n_queries, n_keys)[..., rows],
    )


def check_finite(q, k, v, asked):
    """Refuse NaN and infinity in queries and keys that count; `v` only where its keys do."""
    for name, x, there in (("q", q, asked.is_asked), ("k", k, asked.is_open), ("v", v, asked.is_open)):
        if x is None:
            continue
        xp = namespace(x)
        for b, h in np.ndindex(x.shape[:2]):
            own = x[b, h][xp.asarray(asked.rows)] if name == "q" else x[b, h]
            fine = xp.isfinite(own.astype(np.float32) if own.dtype.itemsize == 2 else own)
            wrong = () if fine.all() else np.flatnonzero(~on_cpu(fine.all(axis=-1)) & there[b])
            if len(wrong):
                token = asked.rows[wrong[0]] if name == "q" else wrong[0]
                raise ValueError(f"{name} holds NaN or infinity at batch item {b}, head {h}, token {token} (and "
                                 f"{len(wrong) - 1} more there); expected finite numbers: mend them, or leave padding "
                                 "out with valid=")


def names(given, n_heads) -> tuple[str, ...]:
    """What heads are called."""
    if given is None:
        return tuple(f"head {h}" for h in range(n_heads))
    given = tuple(map(str, given))
    if len(given) != n_heads:
        raise ValueError(f"names has {len(given)} entries but q has {n_heads} heads; give one for each")
    return given


def _shares(name, given):
    """Rising numbers above 0 and up to 1, as float64."""
    found = np.asarray(given, float)
    if found.ndim != 1:
        raise ValueError(f"{name} is {given!r}; expected a list of numbers, as in (0.5, 0.9)")
    if not ((found > 0) & (found <= 1)).all() or (np.diff(found) <= 0).any():
        raise ValueError(f"{name} is {given!r}; expected rising numbers above 0 and up to 1")
    return found


def _block_sizes(given):
    sizes = tuple(given)
    if not sizes or any(isinstance(x, bool) or not isinstance(x, numbers.Integral) or x < 1 for x in sizes):
        raise ValueError(f"block_sizes is {given!r}; expected whole numbers from 1 on, as in (16, 32)")
    return tuple(map(int, sizes))


def _valid(valid, batch, n_queries, n_keys):
    """Bool (batch, n_keys) and (batch, n_queries): keys and queries that count."""
    if valid is None:
        return np.ones((batch, n_keys), bool), np.ones((batch, n_queries), bool)
    valid = on_cpu(valid)
    if valid.dtype != bool or valid.shape not in ((n_keys,), (batch, n_keys), (1, n_keys)):
        raise ValueError(f"valid is an array of {valid.dtype} with shape {valid.shape}; expected bool, "
                         f"{(batch, n_keys)} or one batch item's")
    keys = np.broadcast_to(valid, (batch, n_keys))
    return keys, keys if n_queries == n_keys else np.ones((batch, n_queries), bool)


def _coordinates(shape, n_queries, n_keys):
    """Places on the grid, float64 (n_axes, n_tokens of the grid)."""
    if shape is None:
        return np.zeros((0, n_keys))
    lengths = tuple(shape)
    if not lengths or any(not isinstance(x, numbers.Integral) or x < 1 for x in lengths):
        raise ValueError(f"shape is {shape!r}; expected the lengths of the axes of the grid, as in (14, 14)")
    n = math.prod(lengths)
    if n > n_keys or n_queries != n_keys:
        raise ValueError(f"shape {lengths} has {n} tokens but there are {n_queries} queries and {n_keys} keys; "
                         "expected as many of both, the grid being all or the last of them")
    return np.indices(lengths).reshape(len(lengths), n).astype(float)


def _targets(targets, batch, n_heads, n_queries, n_keys):
    """int64 (batch, n_heads, n_queries)."""
    if targets is None:
        return np.full((batch, n_heads, n_queries), -1)
    targets = on_cpu(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets is an array of {targets.dtype}; expected positions of keys as whole numbers, -1 none")
    if targets.size and not -1 <= targets.min() <= targets.max() < n_keys:
        raise ValueError(f"targets go from {targets.min()} to {targets.max()}; expected -1 (none) to {n_keys - 1}")
    own = targets[:, None] if targets.ndim == 2 else targets
    whole = (batch, n_heads, n_queries)
    if targets.ndim not in (1, 2, 3) or own.shape[-1:] != whole[-1:] or any(
            n not in (1, m) for n, m in zip(own.shape[::-1], whole[::-1])):
        raise ValueError(f"targets has shape {targets.shape}; expected {(n_queries,)}, {(batch, n_queries)} or {whole}")
    return np.broadcast_to(own, whole).astype(np.int64)
