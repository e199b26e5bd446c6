"""Hash rounds as parts of a pattern: tokens sorted by bucket and cut into chunks, which see their neighbours. All lies
where the buckets do."""

import functools
import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseattn.index_ops.cells import Cells, refuse_too_many_masks
from sparseattn.selection.meetings import round_tiles
from sparseattn.selection.sharing import for_each
from sparseattn.selection.sorting import by_class, places
from sparseattn.selection.tiles import masked_tiles
from sparseattn.structure import Order
from sparseattn.xp import library, namespace

TILE = 64  # largest side of a tile, in slots

Array = Any


@dataclass(frozen=True)
class Sorted:
    """One side of all rounds, each cut into chunks of whole tiles."""

    tokens: Array  # int32 (batch, n_heads, n_hashes, chunks of a round, pieces, tile); -1: nobody
    chunks: Array  # int32 (batch, n_heads, n, n_hashes): the chunk of each token, numbered over all rounds
    buckets: Array  # int32, the same: its bucket
    places: Array  # int32 (batch, n_heads, n): the place of each token in the list of round 0
    length: int  # tokens of a chunk


def sort_rounds(buckets, n_buckets, length, live):
    """Sort tokens by bucket in each round, int32 buckets (batch, n_heads, n_hashes, n), and cut them into chunks of
    `length`, the last one short; `live` (1 | batch, n) bool or None: the others leave their slots empty."""
    (*lead, n_hashes, n), pieces = buckets.shape, -(-length // TILE)
    tile, per_round = -(-length // pieces), -(-n // length)
    xp, order = namespace(buckets), by_class(buckets, n_buckets)
    slot = places(order)
    chunks = slot // length + xp.arange(n_hashes, dtype=np.int32)[:, None] * np.int32(per_round)
    if live is not None:
        there = xp.broadcast_to(live[:, None, None], buckets.shape)
        order = xp.where(xp.take_along_axis(there, order, 3), order, -1)
    shape = *lead, n_hashes, per_round, pieces, tile
    if pieces * tile * per_round != n:
        whole = xp.full((*lead, n_hashes, per_round * length), -1, np.int32)
        whole[..., :n] = order
        order = xp.full((*lead, n_hashes, per_round, pieces * tile), -1, np.int32)
        order[..., :length] = whole.reshape(*lead, n_hashes, per_round, length)
    by_token = (xp.ascontiguousarray(x.swapaxes(2, 3)) for x in (chunks, buckets))
    return Sorted(order.reshape(shape), *by_token, slot[:, :, 0], length)


def round_parts(q, k, same_bucket, window, once, causal, apart):
    """A BlockCSR for each round, over (batch, n_heads); with `once` no pair stands twice.

    q, k: Sorted, one and the same where keys are queries. window: (before, after), chunks on each side, over all rounds
    and around their ends; `apart`: no token is its own key, unless it has no other in any round. O(slots * keys that
    each sees / 64) time, and a bit of memory for each pair.
    """
    batch, n_heads, n_hashes, per_round, pieces, tile = q.tokens.shape
    before = min(window[0], n_hashes * per_round - 1)
    seen = before + 1 + min(window[1], n_hashes * per_round - 1 - before)
    refuse_too_many_masks(batch * n_heads * n_hashes * per_round * pieces * seen * pieces, (tile, tile))
    fill = masks_by_arrays if library(q.tokens) == "cupy" else masks_by_loops
    masks, states, met = fill(q, k, same_bucket, (before, seen), (once, causal, apart))
    if apart:
        _keep_alone(masks[0], states[0], met, q, before)
    return [_part(r, masks[r], states[r], q, k, before, seen) for r in range(n_hashes)]


def masks_by_arrays(q, k, *rules):
    """Lists of the masks and states of all rounds, and which tokens have a key."""
    masks, states, met = zip(*(round_tiles(r, q, k, *rules) for r in range(q.tokens.shape[2])))
    return list(masks), list(states), functools.reduce(operator.or_, met)


def masks_by_loops(q, k, same_bucket, window, rules):
    """As `masks_by_arrays`, of NumPy's arrays."""
    batch, n_heads, n_hashes, per_round, pieces, tile = q.tokens.shape
    shape = batch, n_heads, per_round * pieces, window[1] * pieces
    masks = [np.empty((*shape, tile, -(-tile // 32)), np.uint32) for _ in range(n_hashes)]
    states = [np.empty(shape, np.int8) for _ in range(n_hashes)]
    met = np.zeros(q.places.shape, bool)
    n_buckets = 0
    if same_bucket:
        q, k, n_buckets = _renumbered(q, k)
    _fill(masks, states, met, q, k, n_buckets, window, rules)
    return masks, states, met


def _renumbered(q, k):
    """Both sides with buckets numbered without gaps, and how many there are: hashes have more than there are tokens."""
    used, number = np.unique(np.stack([q.buckets, k.buckets]), return_inverse=True)
    q_buckets, k_buckets = number.reshape(2, *q.buckets.shape).astype(np.int32)
    return replace(q, buckets=q_buckets), replace(k, buckets=k_buckets), used.size


def _fill(masks, states, met, q, k, n_buckets, window, rules):
    """Write the masks and states of all rounds."""
    from sparseattn.selection.compiled import round_masks

    def of_head(at):
        q_rising = k_rising = _rising(q, at) if rules[1] else np.empty((0, 0, 0), np.int8)
        if rules[1] and k is not q:
            k_rising = _rising(k, at)
        for r in range(len(masks)):
            round_masks(r, q.tokens[at], k.tokens[at], q.chunks[at], k.chunks[at], q.buckets[at], k.buckets[at],
                        n_buckets, window, rules, q_rising, k_rising, masks[r][at], states[r][at], met[at])

    for_each(of_head, np.ndindex(met.shape[:2]))


def _rising(side, at):
    """The slots of each tile of one head in the order of their tokens, int8 (n_hashes, tiles, tile)."""
    from sparseattn.selection.compiled import rising_slots

    tokens = side.tokens[at].reshape(side.tokens.shape[2], -1, side.tokens.shape[5])
    rising = np.full(tokens.shape, -1, np.int8)
    rising_slots(tokens, side.places.shape[2], rising)
    return rising


def _keep_alone(masks, states, met, q, before):
    """Give each query without a key itself, in its own tile of round 0."""
    xp, (pieces, tile) = namespace(met), q.tokens.shape[4:]
    b, h, token = xp.nonzero(~met)
    chunk, at = xp.divmod(q.places[b, h, token], q.length)
    piece, i = xp.divmod(at, tile)
    here = q.tokens[b, h, 0, chunk, piece, i] == token  # not of a query that is nobody
    b, h, chunk, piece, i = (x[here] for x in (b, h, chunk, piece, i))
    tile_of = b, h, chunk * pieces + piece, before * pieces + piece
    masks[tile_of + (i, i >> 5)] |= np.uint32(1) << (i & 31).astype(np.uint32)
    single = (q.tokens[b, h, 0, chunk, piece] >= 0).sum(axis=-1) == 1
    states[tile_of] = xp.where(single, 1, 0)


def _part(r, masks, states, q, k, before, seen):
    """Round r as a BlockCSR, its keys the chunks that its queries see, each once, in order."""
    (batch, n_heads, _, per_round, pieces, tile), n = q.tokens.shape, q.places.shape[2]
    xp, n_chunks = namespace(q.tokens), k.tokens.shape[2] * per_round
    others = (np.arange(per_round)[:, None] + r * per_round - before + np.arange(seen)) % n_chunks
    around = np.unique(others)
    others = np.searchsorted(around, others)
    for chunk in np.flatnonzero((np.diff(others, axis=1) < 0).any(axis=1)):  # those that see both ends of the list
        rows, order = slice(chunk * pieces, (chunk + 1) * pieces), others[chunk].argsort()
        tiles = xp.asarray((order[:, None] * pieces + np.arange(pieces)).ravel())
        masks[:, :, rows], states[:, :, rows] = (x[:, :, rows].take(tiles, axis=3) for x in (masks, states))
        others[chunk] = others[chunk, order]
    keys = k.tokens.reshape(batch, n_heads, -1, pieces * tile)[:, :, xp.asarray(around)].reshape(batch, n_heads, -1)
    orders = (Order.listed(x, n) for x in (q.tokens[:, :, r].reshape(batch, n_heads, -1), keys))
    cells = Cells((n, n), (tile, tile), (batch, n_heads), None, None, None, *orders)
    n_rows, n_cols = cells.grid
    cols = xp.asarray((others[:, :, None] * pieces + np.arange(pieces)).reshape(per_round, -1).repeat(pieces, axis=0))
    lead = xp.arange(batch * n_heads * n_rows).reshape(-1, n_rows, 1)
    cells = replace(cells, numbers=(lead * n_cols + cols).ravel())
    return masked_tiles(cells, states.ravel(), masks.reshape(-1, *masks.shape[4:]))
