"""Clusters that choose their tokens, and the pairs of these as parts of a pattern."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseattn.index_ops.cells import Cells, refuse_too_many_masks
from sparseattn.selection.eights import in_eights, rounding
from sparseattn.selection.tiles import masked_tiles
from sparseattn.selection.topk import row_slices
from sparseattn.structure import Order
from sparseattn.xp import compute_dtype

TILE_Q, TILE_K = 16, 64  # largest sides of a tile, in slots

Array = Any


def cluster_members(x, heads, means, window, valid):
    """The `window` tokens that each mean takes, those of the largest products with it at unit length: int32 (batch,
    n_heads, n_clusters, window), rising, -1 behind where there are fewer.

    x: (batch, any heads, n, head_dim), heads: which of them each head of the means takes; means (n_heads, n_clusters,
    head_dim); valid: bool (1 | batch, n) or None. NaN is never taken.
    """
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


def sums_by_mean(x, heads, means, valid, sums, counts):
    """Add to sums (n_heads, n_clusters, head_dim), float64, the tokens at unit length that are nearest to each mean,
    and to counts (n_heads, n_clusters) how many these are. Arguments as in `cluster_members`."""
    from sparseattn.selection.compiled import add_rows, inverse_lengths

    dtype, n = compute_dtype(x.dtype), x.shape[2]
    inverse = np.empty(n, dtype)
    for b, h in np.ndindex(x.shape[0], len(means)):
        tokens = x[b, heads[h]].astype(dtype)
        inverse_lengths(tokens, inverse)
        tokens *= inverse[:, None]
        for rows in row_slices(n, len(means[h])):
            nearest = (tokens[rows] @ means[h].astype(dtype, copy=False).T).argmax(axis=1).astype(np.int32)
            if valid is not None:
                nearest[~valid[b % len(valid), rows]] = -1
            add_rows(tokens[None, rows].astype(np.float64), nearest[None], sums[h])
            counts[h] += np.bincount(nearest[nearest >= 0], minlength=counts.shape[1])


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
    window). offset: query i attends keys up to i + offset; None: all."""
    lead = q_members.shape[:2]
    pieces = max(-(-k_members.shape[3] // TILE_K), 1)
    tile_k = -(-k_members.shape[3] // pieces)
    k_slots = np.full((*k_members.shape[:3], pieces * tile_k), -1, np.int32)
    k_slots[..., : k_members.shape[3]] = k_members
    k_order = Order.listed(k_slots.reshape(*lead, -1), shape[1])
    k_slots = k_slots.reshape(*k_members.shape[:3], pieces, tile_k)
    sides = {at: tuple(memberships(x[at], n) for x, n in zip((q_members, k_members), shape)) for at in np.ndindex(lead)}
    tokens, cluster, bounds = _rows([q for q, _ in sides.values()], lead)
    # who is new in a cluster meets all of it: nothing to work out
    whole = bounds[min(1, len(bounds) - 1)] if offset is None and (k_slots >= 0).all() else 0
    masks, states = _masks(sides, tokens, cluster, k_slots, offset, whole)
    parts = []
    for rows in map(slice, bounds, bounds[1:]):
        orders = Order.listed(tokens[:, :, rows].reshape(*lead, -1), shape[0]), k_order
        cells = Cells(shape, (TILE_Q, tile_k), lead, None, None, None, *orders)
        parts.append(_part(cells, cluster[:, :, rows].ravel(), masks[:, :, rows], states[:, :, rows]))
    return parts


def _part(cells, cluster, masks, states):
    """The BlockCSR of rows of tiles that each see all pieces of their cluster's keys; of cluster -1: no row."""
    lines, pieces = np.flatnonzero(cluster >= 0), masks.shape[3]
    numbers = lines[:, None] * cells.grid[1] + cluster[lines, None] * pieces + np.arange(pieces)
    masks, states = (x.reshape(-1, *x.shape[3:])[lines] for x in (masks, states))
    return masked_tiles(replace(cells, numbers=numbers.ravel()), states.ravel(), masks.reshape(-1, *masks.shape[2:]))


def _rows(heads, lead):
    """Rows of tiles of all membership numbers behind each other, cluster after cluster: tokens (*lead, n_rows, TILE_Q)
    and the cluster (*lead, n_rows) of each, -1 for none, and where the numbers begin and end."""
    from sparseattn.selection.compiled import rows_of_membership

    none = np.empty((0, TILE_Q), np.int32), np.empty(0, np.int32)
    n_parts = 1 + max((q.numbers.max(initial=-1) for q in heads), default=-1)
    counts = [max(rows_of_membership(q.members, q.numbers, number, *none) for q in heads) for number in range(n_parts)]
    bounds = [0, *np.cumsum(counts).tolist()]
    tokens = np.full((*lead, bounds[-1], TILE_Q), -1, np.int32)
    cluster = np.full((*lead, bounds[-1]), -1, np.int32)
    for at, q in zip(np.ndindex(lead), heads):
        for number, rows in enumerate(map(slice, bounds, bounds[1:])):
            rows_of_membership(q.members, q.numbers, number, tokens[at][rows], cluster[at][rows])
    return tokens, cluster, bounds


def _masks(sides, tokens, cluster, k_slots, offset, first):
    """Masks (*lead, n_rows, pieces, TILE_Q, words) and states (*lead, n_rows, pieces); the first `first` rows are full.
    """
    from sparseattn.selection.compiled import cluster_masks

    pieces, tile_k = k_slots.shape[3:]
    refuse_too_many_masks(cluster.size * pieces, (TILE_Q, tile_k))
    masks = np.empty((*cluster.shape, pieces, TILE_Q, -(-tile_k // 32)), np.uint32)
    states = np.ones(masks.shape[:4], np.int8)
    for at, (q, k) in sides.items():
        order = first + np.argsort(cluster[at][first:], kind="stable")
        cluster_masks(order, tokens[at], cluster[at], q.starts, q.clusters, k_slots[at], k.starts, k.clusters,
                      -1 if offset is None else offset, masks[at], states[at])
    return masks, states
