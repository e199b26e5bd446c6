"""What can be recommended: a function a family, from q, k and a few whole numbers to a Pattern.

q, k : (batch, n_heads, n_queries, head_dim) and (batch, n_kv_heads, n_keys, head_dim). The last query sits at the last
key. Static families look at the shapes alone. Options named `columns` and `offsets` hold a list a head.
"""

from __future__ import annotations

import math

import numpy as np

from sparseattn import patterns
from sparseattn.pattern import Pattern
from sparseattn.structure import Order, Ranges


def dense(q, k, causal, scale):
    """Every key, or every earlier one."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    return patterns.causal(n_queries, n_keys) if causal else patterns.dense(n_queries, n_keys)


def window(q, k, causal, scale, *, size, first=0):
    """The last `size` keys, or as many on both sides together; and the `first` keys of all."""
    left, right = (size - 1, 0) if causal else (size // 2, size // 2)
    near = patterns.sliding_window(q.shape[2], k.shape[2], left=left, right=right)
    return near | _allowed(_first(q, k, first), causal) if first else near


def strided(q, k, causal, scale, *, stride, size):
    """Every `stride`-th key before (and behind) the query, and a window of `size` keys."""
    side = None if not causal else 0
    far = patterns.sliding_window(q.shape[2], k.shape[2], left=None, right=side, dilation=stride)
    return window(q, k, causal, scale, size=size) | far


def even(q, k, causal, scale, *, stride, size):
    """The keys 0, stride, 2 * stride ..., the same for all queries: an even sample; and a window of `size` keys."""
    columns = np.arange(0, k.shape[2], stride, dtype=np.int32)
    return window(q, k, causal, scale, size=size) | _columns(q, k, causal, columns[None])


def columns(q, k, causal, scale, *, columns, size):
    """Chosen keys, in each head its own, and a window of `size` keys."""
    chosen = np.sort(np.array(columns, np.int32), axis=1)
    return window(q, k, causal, scale, size=size) | _columns(q, k, causal, chosen)


def diagonals(q, k, causal, scale, *, offsets, width, size):
    """Keys at chosen distances, in each head its own, each with `width` neighbours on both sides; and a window."""
    near = window(q, k, causal, scale, size=size)
    heads = [near | _allowed(_bands(q, k, chosen, width, causal), causal) for chosen in offsets]
    return heads[0] if len(heads) == 1 else Pattern.per_head(heads)


def random(q, k, causal, scale, *, one_in, size, seed=0):
    """Blocks of 64 queries by 16 keys drawn at random, one in `one_in` of all, and a window of `size` keys."""
    per_row = max(math.ceil(k.shape[2] / 16 / one_in), 1)
    drawn = patterns.random_blocks(q.shape[2], k.shape[2], per_row=per_row, block_size=(64, 16), seed=seed)
    return window(q, k, causal, scale, size=size) | _allowed(drawn, causal)


def top_keys(q, k, causal, scale, *, n):
    """The `n` keys of the largest scores."""
    return patterns.top_k(q, k, n_selected=n, causal=causal, scale=scale)


def top_blocks(q, k, causal, scale, *, block, n, near):
    """The `near` blocks around the query and the best others, `n` in all; a block counts by its best key."""
    return patterns.block_top_k(q, _for_each(q, k), block_size=block, n_blocks=n, local_blocks=near, causal=causal,
                                scale=1.0 if scale is None else scale)


def pages(q, k, causal, scale, *, page, n, size):
    """The `n` pages of keys of the largest bounds on their scores, and a window of `size` keys."""
    chosen = patterns.quest(q, k, page_size=page, token_budget=page * n)
    return chosen.to("cpu") | window(q, k, causal, scale, size=size)


def vertical_slash(q, k, causal, scale, *, vertical, slash):
    """The keys and the distances that the last queries attend most."""
    return patterns.vertical_slash(q, k, n_vertical=vertical, n_slash=slash, scale=scale)


def neighborhood(q, k, causal, scale, *, grid, kernel):
    """The nearest tokens on a grid."""
    return _on_grid(patterns.neighborhood(tuple(grid), kernel_size=tuple(kernel)), q)


def swin(q, k, causal, scale, *, grid, window, shift):
    """The tokens of the same window of a grid."""
    return _on_grid(patterns.swin(tuple(grid), window=tuple(window), shift=tuple(shift)), q)


def axial(q, k, causal, scale, *, grid, stride=0):
    """The tokens that differ along one axis of a grid, and with `stride` those a whole number of strides away."""
    pattern = patterns.axial(tuple(grid), range(len(grid)))
    return _on_grid(pattern | _residues(grid, stride) if stride else pattern, q)


def grid_strided(q, k, causal, scale, *, grid, stride):
    """The tokens of a grid a whole number of strides away along every axis."""
    return _on_grid(_residues(grid, stride), q)


STATIC = {f.__name__: f for f in (dense, window, strided, even, columns, diagonals, random, neighborhood, swin, axial,
                                  grid_strided)}
DYNAMIC = {f.__name__: f for f in (top_keys, top_blocks, pages, vertical_slash)}
FAMILIES = STATIC | DYNAMIC
PER_HEAD = ("columns", "offsets")  # options with a list a head


def _allowed(pattern, causal):
    return pattern & patterns.causal(*pattern.shape) if causal else pattern


def _first(q, k, count):
    """The first `count` keys for each query."""
    starts = np.zeros(q.shape[2], np.int32)
    return Pattern.from_ranges(starts, starts + min(count, k.shape[2]), k.shape[2])


def _columns(q, k, causal, chosen):
    """Chosen keys, int32 (1 | n_heads, n), rising, for every query that may see them."""
    shape = (q.shape[2], k.shape[2])
    stops = np.empty((1, chosen.shape[0], shape[0]), np.int32)
    limits = np.arange(shape[1] - shape[0], shape[1]) if causal else np.full(shape[0], shape[1])
    for head, keys in enumerate(chosen):
        stops[0, head] = np.searchsorted(keys, limits, side="right")
    part = Ranges(shape, np.zeros_like(stops), stops, None, Order.listed(chosen[None], shape[1]))
    return Pattern.from_parts([part], shape, *stops.shape[:2])


def _bands(q, k, offsets, width, causal):
    """The distances from `offset - width` to `offset + width` for each of some offsets, as disjoint ranges of keys."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    position = np.arange(n_keys - n_queries, n_keys, dtype=np.int64)
    bands = [(-offset - width, -offset + width + 1) for offset in offsets]
    if not causal:
        bands += [(-high + 1, -low + 1) for low, high in bands]
    pattern = Pattern.from_ranges(position * 0, position * 0, n_keys)
    for low, high in _joined(bands):
        pattern = pattern | Pattern.from_ranges(position + low, position + high, n_keys)
    return pattern


def _joined(bands):
    """Intervals in rising order, overlapping ones made one."""
    joined = []
    for low, high in sorted(bands):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return joined


def _for_each(q, k):
    """k with a head for each head of q."""
    n_heads, n_kv_heads = q.shape[1], k.shape[1]
    return k if n_heads == n_kv_heads else k[:, np.arange(n_heads) * n_kv_heads // n_heads]


def _on_grid(pattern, q):
    """A pattern of a grid for tokens of which the first may stand before the grid: those see all, all see them."""
    before = q.shape[2] - pattern.shape[0]
    if before < 0:
        raise ValueError(f"the grid has {pattern.shape[0]} tokens but q only {q.shape[2]}; give the grid of its tokens")
    if not before:
        return pattern
    inner = Pattern.block_diagonal([patterns.dense(before), pattern])
    return inner | patterns.global_tokens(q.shape[2], range(before))


def _residues(grid, stride):
    """Pairs of tokens of a grid whose coordinates are equal modulo `stride` along every axis."""
    places = np.indices(tuple(grid)).reshape(len(grid), -1) % stride
    kinds = np.ravel_multi_index(tuple(places), (stride,) * len(grid))
    return Pattern.from_buckets(kinds, kinds)
