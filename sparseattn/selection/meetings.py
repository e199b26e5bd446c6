"""Which pairs meet, in hash rounds and in clusters, tile by tile: by array functions of either library, what
`compiled.round_masks` and `compiled.cluster_masks` do in loops."""

from itertools import pairwise

import numpy as np

from sparseattn.index_ops.cells import refuse_too_many_masks
from sparseattn.index_ops.masks import pack
from sparseattn.structure import Order
from sparseattn.xp import library, namespace, on_cpu

CHUNK = {"numpy": 1 << 20, "cupy": 1 << 26}  # pairs looked at together


def round_tiles(r, q, k, same_bucket, window, rules):
    """Masks (batch, n_heads, tiles of queries, tiles of keys that they see, tile, words) of the pairs of round r, their
    states int8 (batch, n_heads, tiles, tiles): -1 empty, 1 every pair of tokens, else 0; and which tokens have a key in
    this round, bool (batch, n_heads, n).

    q, k: `rounds.Sorted`. window: chunks before, chunks seen. rules: once (not what met in an earlier round or chunk),
    causal, apart (no token is its own key).
    """
    tokens, xp, (batch, n_heads, n) = q.tokens, namespace(q.tokens), q.places.shape
    per_round, pieces, tile = tokens.shape[3:]
    n_rows, n_tiles = per_round * pieces, window[1] * pieces
    masks = xp.empty((batch * n_heads * n_rows, n_tiles, tile, -(-tile // 32)), np.uint32)
    states = xp.empty(masks.shape[:2], np.int8)
    met = xp.zeros((batch * n_heads, n), bool)
    queries = tokens[:, :, r].reshape(-1, tile)
    step = max(CHUNK[library(tokens)] // (tile * n_tiles * tile), 1)
    for at in range(0, len(queries), step):
        row = xp.arange(at, min(at + step, len(queries)))
        line, own = row // n_rows, queries[row]
        keys, kept = _kept(r, row, own, q, k, same_bucket, window, rules)
        masks[row], states[row] = _tiles(kept, own, keys, n_tiles)
        found, slot = xp.nonzero(kept.any(axis=2))
        met[line[found], own[found, slot]] = True
    shape = batch, n_heads, n_rows, n_tiles
    return masks.reshape(*shape, tile, -1), states.reshape(shape), met.reshape(batch, n_heads, n)


def _kept(r, row, queries, q, k, same_bucket, window, rules):
    """Of some rows of tiles, (n_rows, tile) queries: the keys that they see, (n_rows, n_keys), -1 for nobody, and which
    pairs are kept, bool (n_rows, tile, n_keys)."""
    xp, (once, causal, apart), (before, seen) = namespace(queries), rules, window
    _, _, n_hashes, per_round, pieces, tile = q.tokens.shape
    n_chunks, lines = n_hashes * per_round, q.places.shape[0] * q.places.shape[1]
    line, chunk = row // (per_round * pieces), r * per_round + row % (per_round * pieces) // pieces
    others = (chunk[:, None] - before + xp.arange(seen)) % n_chunks  # chunks that a row sees
    keys = k.tokens.reshape(lines, n_chunks, pieces * tile)[line[:, None], others].reshape(row.size, -1)
    round_of = (others // per_round).repeat(pieces * tile, axis=1)
    chunks_q, chunks_k = (x.chunks.reshape(lines, -1, n_hashes)[line[:, None], t] for x, t in ((q, queries), (k, keys)))
    live = keys >= 0
    if same_bucket:
        live &= round_of == r
        buckets_q, buckets_k = (x.buckets.reshape(lines, -1, n_hashes)[line[:, None], t]
                                for x, t in ((q, queries), (k, keys)))
    elif once:
        live &= ~_sits_earlier(others, round_of, chunks_k, pieces * tile)
    kept = live[:, None, :] & (queries >= 0)[:, :, None]
    # rounds that the chunks seen from one lie in, counted from it
    reach = range(-before // per_round, -(-(seen - 1 - before) // per_round) + 1)
    for earlier in range(r if once else 0):
        for other in [earlier] if same_bucket else {(earlier + away) % n_hashes for away in reach}:
            gone = (chunks_k[:, None, :, other] - chunks_q[:, :, None, earlier] + before) % n_chunks < seen
            if same_bucket:
                gone &= buckets_k[:, None, :, other] == buckets_q[:, :, None, other]
            kept &= ~gone
    if same_bucket:
        kept &= buckets_k[:, None, :, r] == buckets_q[:, :, None, r]
    if causal:
        kept &= keys[:, None, :] <= queries[:, :, None] - int(apart)
    elif apart:
        kept &= keys[:, None, :] != queries[:, :, None]
    return keys, kept


def _sits_earlier(others, round_of, chunks, length):
    """Which keys, bool (n_rows, n_keys), are through another round in a chunk that the row sees before this one, of
    `length` slots."""
    xp, numbers = namespace(others), namespace(others).arange(chunks.shape[2])
    elsewhere = xp.where(numbers == round_of[:, :, None], -1, chunks)
    found = xp.zeros(round_of.shape, bool)
    for number in range(others.shape[1] - 1):
        later = (number + 1) * length
        found[:, later:] |= (elsewhere[:, later:] == others[:, number, None, None]).any(axis=2)
    return found


def cluster_tiles(q_members, k_members, k_slots, shape, offset, tile):
    """Rows of tiles of all membership numbers behind each other, as `members.cluster_parts` cuts them: tokens (batch,
    n_heads, n_rows, tile), the cluster (batch, n_heads, n_rows) of each row, -1 for none, where the numbers begin and
    end, masks (batch, n_heads, n_rows, pieces, tile, words) of the pairs that meet in no earlier cluster, and states
    (batch, n_heads, n_rows, pieces) as in `round_tiles`.

    Members: (batch, n_heads, n_clusters, window), -1 for nobody; k_slots: those of keys, (batch, n_heads, n_clusters,
    pieces, tile_k). offset: query i attends keys up to i + offset; None: all.
    """
    xp, lead, (n_clusters, pieces, tile_k) = namespace(q_members), q_members.shape[:2], k_slots.shape[2:]
    n_lines = lead[0] * lead[1]
    q_places = _places_of(q_members, shape[0])
    k_places = q_places if k_members is q_members else _places_of(k_members, shape[1])
    q_of, k_of = (_clusters_of(x, n_lines, n) for x, n in zip((q_places, k_places), shape))
    tokens, cluster, bounds = _rows_by_number(q_places, n_lines, q_of.shape[2], n_clusters, tile)
    keys_of = k_slots.reshape(n_lines, n_clusters, pieces * tile_k)
    n_rows = bounds[-1]
    refuse_too_many_masks(n_lines * n_rows * pieces, (tile, tile_k))
    masks = xp.empty((n_lines, n_rows, pieces, tile, -(-tile_k // 32)), np.uint32)
    states = xp.empty((n_lines, n_rows, pieces), np.int8)
    step = max(CHUNK[library(tokens)] // (n_lines * tile * pieces * tile_k * max(k_of.shape[2], 1)), 1)
    for number, (first, last) in enumerate(pairwise(bounds)):
        for at in range(first, last, step):
            rows = slice(at, min(at + step, last))
            own = tokens[:, rows].reshape(-1, tile)
            line = xp.arange(n_lines).repeat(rows.stop - rows.start)
            keys = keys_of[line, cluster[:, rows].reshape(-1)]
            kept = (keys >= 0)[:, None, :] & (own >= 0)[:, :, None]
            theirs = k_of[line[:, None], keys][:, None]
            for earlier in range(number):
                kept &= ~(theirs == q_of[line[:, None], own, earlier][:, :, None, None]).any(axis=3)
            if offset is not None:
                kept &= keys[:, None, :] <= own[:, :, None] + offset
            found = _tiles(kept, own, keys, pieces)
            masks[:, rows], states[:, rows] = (x.reshape(n_lines, -1, *x.shape[1:]) for x in found)
    return (*(x.reshape(*lead, *x.shape[1:]) for x in (tokens, cluster)), bounds,
            *(x.reshape(*lead, *x.shape[1:]) for x in (masks, states)))


def _tiles(kept, queries, keys, n_tiles):
    """The masks (n_rows, n_tiles, tile, words) and states (n_rows, n_tiles) of rows of tiles: kept pairs, bool (n_rows,
    tile, n_keys), of queries (n_rows, tile) and keys (n_rows, n_keys), -1 for nobody."""
    width = keys.shape[1] // n_tiles
    tiles = kept.reshape(*queries.shape, n_tiles, width).swapaxes(1, 2)
    nobody = (keys < 0).reshape(len(keys), n_tiles, 1, width) | (queries < 0)[:, None, :, None]
    states = namespace(kept).where(tiles.any(axis=(2, 3)), (tiles | nobody).all(axis=(2, 3)), -1)
    return pack(tiles), states


def _places_of(members, n_tokens):
    """Of the members that are somebody: their line, cluster, token, and in how many clusters before they are; int."""
    xp, (batch, n_heads, n_clusters, window) = namespace(members), members.shape
    numbers = Order.listed(members.reshape(batch, n_heads, -1), n_tokens).occurrence().reshape(-1)
    somebody = xp.flatnonzero(members.reshape(-1) >= 0)
    line, at = xp.divmod(somebody, n_clusters * window)
    return line, at // window, members.reshape(-1)[somebody], numbers[somebody]


def _clusters_of(places, n_lines, n_tokens):
    """The clusters of each token, int32 (n_lines, n_tokens, most of a token), rising, -1 behind them."""
    line, cluster, token, number = places
    most = int(number.max()) + 1 if number.size else 0
    found = namespace(line).full((n_lines, n_tokens, most), -1, np.int32)
    found[line, token, number] = cluster
    return found


def _rows_by_number(places, n_lines, n_numbers, n_clusters, tile):
    """Tokens (n_lines, n_rows, tile) and cluster (n_lines, n_rows) of rows of tiles, number after number and in each of
    them cluster after cluster, -1 elsewhere; and where the numbers begin and end."""
    (line, cluster, token, number), xp = places, namespace(places[0])
    group = (line * n_numbers + number) * n_clusters + cluster
    sizes = xp.bincount(group, minlength=n_lines * n_numbers * n_clusters)
    rows = (-(-sizes // tile)).reshape(n_lines, n_numbers, n_clusters)
    most = on_cpu(rows.sum(axis=2)).max(axis=0, initial=0)
    bounds = [0, *np.cumsum(most).tolist()]
    order = xp.argsort(group, kind="stable")
    rank = xp.empty(group.size, np.int64)
    rank[order] = xp.arange(group.size) - (xp.cumsum(sizes) - sizes)[group[order]]
    row = xp.asarray(bounds)[number] + (xp.cumsum(rows, axis=2) - rows).reshape(-1)[group] + rank // tile
    tokens = xp.full((n_lines, bounds[-1], tile), -1, np.int32)
    owner = xp.full((n_lines, bounds[-1]), -1, np.int32)
    tokens[line, row, rank % tile] = token
    owner[line, row] = cluster
    return tokens, owner, bounds
