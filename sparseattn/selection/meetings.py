"""Which pairs of a hash round's tiles are kept, by array functions of either library: as `compiled.round_masks`."""

import numpy as np

from sparseattn.index_ops.masks import pack
from sparseattn.xp import library, namespace

CHUNK = {"numpy": 1 << 20, "cupy": 1 << 26}  # pairs looked at together


def round_tiles(r, q, k, same_bucket, window, rules):
    """Masks (batch, n_heads, tiles of queries, tiles of keys that they see, tile, words) of the pairs of round r, their
    states int8 (batch, n_heads, tiles, tiles): -1 empty, 1 every pair of tokens, else 0; and which tokens have a key in
    this round, bool (batch, n_heads, n).

    q, k: `rounds.Sorted`. window: chunks before, chunks seen. rules: once (not what met in an earlier round or chunk),
    causal, apart (no token is its own key).
    """
    tokens, xp, (batch, n_heads, n) = q.tokens, namespace(q.tokens), q.places.shape
    _, _, n_hashes, per_round, pieces, tile = tokens.shape
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
        tiles = kept.reshape(row.size, tile, n_tiles, tile).swapaxes(1, 2)
        masks[row] = pack(tiles)
        nothing_lacks = tiles | (keys < 0).reshape(row.size, n_tiles, 1, tile) | (own < 0)[:, None, :, None]
        states[row] = xp.where(tiles.any(axis=(2, 3)), nothing_lacks.all(axis=(2, 3)), -1)
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
    for earlier in range(r if once else 0):
        for other in [earlier] if same_bucket else range(n_hashes):
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
