"""Clusters that choose their tokens, and the pairs of these as parts of a pattern."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseattn.index_ops.cells import Cells, refuse_too_many_masks
from sparseattn.selection.adding import sums_by_class
from sparseattn.selection.eights import in_eights, rounding
from sparseattn.selection.meetings import cluster_tiles
from sparseattn.selection.tiles import masked_tiles
from sparseattn.selection.topk import CHUNK, row_slices, top_of_rows
from sparseattn.structure import Order
from sparseattn.xp import compute_dtype, library, namespace

TILE_Q, TILE_K = 16, 64  # largest sides of a tile, in slots

Array = Any


def cluster_members(x, heads, means, window, valid):
    """The `window` tokens that each mean takes, those of the largest products with it at unit length: int32 (batch,
    n_heads, n_clusters, window), rising, -1 behind where there are fewer.

    x: (batch, any heads, n, head_dim), heads: which of them each head of the means takes; means (n_heads, n_clusters,
    head_dim), of either library for CuPy's x; valid: bool of NumPy (1 | batch, n) or None. NaN is never taken. In the
    library of x.
    """
    if library(x) == "cupy":
        return members_by_products(x, heads, means, window, valid)
    from sparseattn.selection.compiled import inverse_lengths, top_of_clusters

    (n_heads, n_clusters, head_dim), batch, n = means.shape, x.shape[0], x.shape[2]
    members = np.full((batch, n_heads, n_clusters, min(window, n)), -1, np.int32)
    dtype = compute_dtype(x.dtype)
    slices = row_slices(n_clusters, n)
    scores, inverse = np.empty((max(s.stop - s.start for s in slices), n), dtype), np.empty(n, dtype)
    for b, h in np.ndindex(batch, n_heads) if n else ():
        tokens, nearest = in_eights(x[b, heads[h]], dtype), in_eights(means[h], dtype)
        flat, rows_of_means = tokens.reshape(n, -1), nearest.reshape(n_clusters, -1)
        inverse_lengths(flat, inverse)
        margins = rounding(head_dim, dtype) * np.sqrt(np.einsum("cd,cd->c", rows_of_means, rows_of_means))
        if valid is not None:
            inverse[~valid[b % len(valid)]] = np.nan
        for rows in slices:
            with np.errstate(over="ignore", invalid="ignore"):
                found = np.matmul(rows_of_means[rows], flat.T, out=scores[: rows.stop - rows.start])
            top_of_clusters(found, inverse, tokens, nearest[rows], margins[rows].astype(dtype), members[b, h, rows])
    return members


def members_by_products(x, heads, means, window, valid):
    """As `cluster_members`, of either library, by array functions; in the library of x."""
    xp, (n_heads, n_clusters, _), batch, n = namespace(x), means.shape, x.shape[0], x.shape[2]
    members, means = xp.full((batch, n_heads, n_clusters, min(window, n)), -1, np.int32), xp.asarray(means)
    for b, h in np.ndindex(batch, n_heads) if n else ():
        tokens = x[b, heads[h]].astype(compute_dtype(x.dtype), copy=False)
        inverse = _inverse_lengths(tokens)
        if valid is not None:
            inverse = xp.where(xp.asarray(valid[b % len(valid)]), inverse, np.nan)
        for rows in row_slices(n_clusters, n, CHUNK[library(x)]):
            with np.errstate(over="ignore", invalid="ignore"):
                scores = means[h, rows].astype(tokens.dtype, copy=False) @ tokens.T * inverse
            members[b, h, rows] = top_of_rows(scores, members.shape[3])
    return members


def _inverse_lengths(tokens):
    """1 / |tokens[t]|, (n,); 1 for a vector of zeros."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (tokens * tokens).sum(axis=1)
    xp = namespace(tokens)
    return xp.where(squares > 0, 1 / xp.sqrt(xp.where(squares > 0, squares, 1)), 1)


def sums_by_mean(x, heads, means, valid):
    """Sums (n_heads, n_clusters, head_dim), float64, of the tokens at unit length that are nearest to each mean, and
    how many these are, (n_heads, n_clusters). Arguments as in `cluster_members`; NaN is nearest to none."""
    xp, dtype, n = namespace(x), compute_dtype(x.dtype), x.shape[2]
    means = xp.asarray(means).astype(dtype, copy=False)
    sums, counts = xp.zeros(means.shape), xp.zeros(means.shape[:2])
    for b, h in np.ndindex(x.shape[0], len(means)):
        tokens = x[b, heads[h]].astype(dtype, copy=False)
        tokens = tokens * _inverse_lengths(tokens)[:, None]
        real = ~xp.isnan(tokens).any(axis=1)
        if valid is not None:
            real &= xp.asarray(valid[b % len(valid)])
        tokens = xp.where(real[:, None], tokens, 0)
        for rows in row_slices(n, means.shape[1], CHUNK[library(x)]):
            nearest = xp.where(real[rows], (tokens[rows] @ means[h].T).argmax(axis=1), -1)
            total, count = sums_by_class(tokens[rows], nearest, means.shape[1])
            sums[h] += total
            counts[h] += count
    return sums, counts


@dataclass(frozen=True)
class Memberships:
    """In which clusters the tokens of one head are."""

    members: Array  # int32 (n_clusters, window), -1: nobody
    numbers: Array  # int32, the same: in how many clusters before it is this member
    starts: Array  # int64 (n + 1,): where a token's clusters begin in `clusters`
    clusters: Array  # int32, rising for each token


def memberships(members, n):
    """Of one head's members, (n_clusters, window)."""
    from sparseattn.selection.compiled import list_clusters, number_memberships

    numbers, n_met = np.empty_like(members), np.empty(n, np.int32)
    number_memberships(members, n_met, numbers)
    starts = np.append(0, np.cumsum(n_met, dtype=np.int64))
    clusters = np.empty(starts[-1], np.int32)
    list_clusters(members, numbers, starts, clusters)
    return Memberships(members, numbers, starts, clusters)


def cluster_parts(q_members, k_members, shape, offset):
    """Pairs of queries and keys in the same cluster, as a BlockCSR for each membership number: a query stands in part m
    in its m-th cluster, with the keys that it has not met in an earlier one. Members: (batch, n_heads, n_clusters,
    window). offset: query i attends keys up to i + offset; None: all. Of either library."""
    xp, lead = namespace(q_members), q_members.shape[:2]
    pieces = max(-(-k_members.shape[3] // TILE_K), 1)
    tile_k = -(-k_members.shape[3] // pieces)
    k_slots = xp.full((*k_members.shape[:3], pieces * tile_k), -1, np.int32)
    k_slots[..., : k_members.shape[3]] = k_members
    k_order = Order.listed(k_slots.reshape(*lead, -1), shape[1])
    k_slots = k_slots.reshape(*k_members.shape[:3], pieces, tile_k)
    cut = cluster_tiles if library(q_members) == "cupy" else tiles_by_loops
    tokens, cluster, bounds, masks, states = cut(q_members, k_members, k_slots, shape, offset, TILE_Q)
    parts = []
    for rows in map(slice, bounds, bounds[1:]):
        orders = Order.listed(tokens[:, :, rows].reshape(*lead, -1), shape[0]), k_order
        cells = Cells(shape, (TILE_Q, tile_k), lead, None, None, None, *orders)
        parts.append(_part(cells, cluster[:, :, rows].ravel(), masks[:, :, rows], states[:, :, rows]))
    return parts


def tiles_by_loops(q_members, k_members, k_slots, shape, offset, tile):
    """As `cluster_tiles`, of NumPy's arrays."""
    lead = q_members.shape[:2]
    sides = {at: tuple(memberships(x[at], n) for x, n in zip((q_members, k_members), shape)) for at in np.ndindex(lead)}
    tokens, cluster, bounds = _rows([q for q, _ in sides.values()], lead, tile)
    # who is new in a cluster meets all of it: nothing to work out
    whole = bounds[min(1, len(bounds) - 1)] if offset is None and (k_slots >= 0).all() else 0
    return tokens, cluster, bounds, *_masks(sides, tokens, cluster, k_slots, offset, whole)


def _part(cells, cluster, masks, states):
    """The BlockCSR of rows of tiles that each see all pieces of their cluster's keys; of cluster -1: no row."""
    xp, pieces = namespace(cluster), masks.shape[3]
    lines = xp.flatnonzero(cluster >= 0)
    numbers = lines[:, None] * cells.grid[1] + cluster[lines, None] * pieces + xp.arange(pieces)
    masks, states = (x.reshape(-1, *x.shape[3:])[lines] for x in (masks, states))
    return masked_tiles(replace(cells, numbers=numbers.ravel()), states.ravel(), masks.reshape(-1, *masks.shape[2:]))


def _rows(heads, lead, tile):
    """Rows of tiles of all membership numbers behind each other, cluster after cluster: tokens (*lead, n_rows, tile)
    and the cluster (*lead, n_rows) of each, -1 for none, and where the numbers begin and end."""
    from sparseattn.selection.compiled import rows_of_membership

    none = np.empty((0, tile), np.int32), np.empty(0, np.int32)
    n_parts = 1 + max((q.numbers.max(initial=-1) for q in heads), default=-1)
    counts = [max(rows_of_membership(q.members, q.numbers, number, *none) for q in heads) for number in range(n_parts)]
    bounds = [0, *np.cumsum(counts).tolist()]
    tokens = np.full((*lead, bounds[-1], tile), -1, np.int32)
    cluster = np.full((*lead, bounds[-1]), -1, np.int32)
    for at, q in zip(np.ndindex(lead), heads):
        for number, rows in enumerate(map(slice, bounds, bounds[1:])):
            rows_of_membership(q.members, q.numbers, number, tokens[at][rows], cluster[at][rows])
    return tokens, cluster, bounds


def _masks(sides, tokens, cluster, k_slots, offset, first):
    """Masks (*lead, n_rows, pieces, tile, words) and states (*lead, n_rows, pieces); the first `first` rows are full.
    """
    from sparseattn.selection.compiled import cluster_masks

    (pieces, tile_k), tile = k_slots.shape[3:], tokens.shape[3]
    refuse_too_many_masks(cluster.size * pieces, (tile, tile_k))
    masks = np.empty((*cluster.shape, pieces, tile, -(-tile_k // 32)), np.uint32)
    states = np.ones(masks.shape[:4], np.int8)
    for at, (q, k) in sides.items():
        order = first + np.argsort(cluster[at][first:], kind="stable")
        cluster_masks(order, tokens[at], cluster[at], q.starts, q.clusters, k_slots[at], k.starts, k.clusters,
                      -1 if offset is None else offset, masks[at], states[at])
    return masks, states
