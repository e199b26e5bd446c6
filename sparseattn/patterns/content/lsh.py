"""Reformer's pattern: tokens that random directions hash into neighbouring buckets."""

import math

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import at_least_0, positive, tiles
from sparseattn.patterns.content.chosen import chosen_keys
from sparseattn.patterns.content.inputs import heads, keys_for, valid_tokens
from sparseattn.selection.cached import recent_in_bucket
from sparseattn.selection.hashing import draw_rotations, hash_buckets
from sparseattn.selection.rounds import round_parts, sort_rounds
from sparseattn.xp import device_of, library, namespace, on_its_device


@on_its_device
def lsh(q, k=None, *, n_buckets, n_hashes, chunk_length, chunks_before=1, chunks_after=0, causal=False,
        same_bucket=False, rotations=None, seed=0, valid=None, block_size=None):
    """Each query attends the chunks around its own, in several lists of all tokens sorted by hash bucket.

    Parameters
    ----------
    q : array, (batch, n_heads, n_tokens, head_dim), or without batch, or without batch and heads
        Vectors to hash, of any length: it does not matter.
    k : array, (batch, n_kv_heads, n_keys, head_dim), optional
        Keys with hashes of their own, as many as queries, or a cache of more; None: queries and keys are the same
        vectors.
    n_buckets : int or sequence of int
        Buckets, even, or even factors of their number: f buckets cost f / 2 projections, factors f and g together
        (f + g) / 2. About twice the number of chunks is usual, in two factors from 128 on.
    n_hashes : int
        Rounds: lists.
    chunk_length : int
        Tokens of a chunk. The last chunk of a round may be short.
    chunks_before, chunks_after : int
        Chunks that a chunk sees on each side of it.
    causal : bool
        Keys after the query are left out.
    same_bucket : bool
        Only keys of the query's bucket in the round in which they meet.
    rotations : array of float, (n_heads, head_dim, n_hashes, columns) or with batch in front, optional
        The projections; a factor f has f / 2 columns, the first factor in front. None: standard normal numbers,
        ``numpy.random.default_rng(seed).standard_normal((n_heads, head_dim, n_hashes, columns), dtype=float32)``.
    seed : int
        Which rotations to draw.
    valid : array of bool, (batch, n_keys) or (n_keys,), optional
        True: a real token. The others share a bucket behind all others, attend nothing and are attended by nobody.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only. None: chunks, in equal pieces of at most 64.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), or (n_tokens, n_keys), one for each batch item and head of q.

    Raises
    ------
    TypeError, ValueError
        The arrays do not belong together, or an option does not fit; nothing was computed.

    Notes
    -----
    In round r a token is in bucket ``argmax([x @ R_r, -x @ R_r])``, ties to the lower number; several factors give one
    number each, the first counting least. Tokens sorted by (bucket, position) are cut into chunks, numbered through all
    C chunks of all rounds. Query i attends key j when, in any rounds r and s, ``-chunks_before <= chunk_s(j) -
    chunk_r(i) <= chunks_after`` modulo C: as published, the first chunk of a round looks back into the last one of the
    round before. With `causal` ``j <= i`` as well, with `same_bucket` r = s and equal buckets. Where k is None a token
    is no key of its own, unless nothing else is: then its row is the token alone.

    Each pair stands once, in the first round in which it meets; `sparseattn.variants.reformer` counts it as often as it
    meets, if asked. Which keys a query gets depends on later tokens too, for they move the borders of chunks.

    Fewer queries than keys are new tokens over a cache, the last one at the last key. They do not move the chunks of
    others: each attends the keys up to its own that share its bucket in some round, the most recent first, up to as
    many as all rounds hold in chunks, ``n_hashes * chunk_length * (1 + chunks_before)``. Give the cache without the
    new token to leave that out. Released codes differ here, and from this. O(n_hashes * n_keys) a query.

    A part a round, in sorted order; its tiles are dense but for repeated, later and own keys: `density_in_tiles` is
    above 0.9 for random tokens, half of it with `causal`. Where two projections are as near as rounding they are added
    up again in one order, so that buckets depend on the token alone. With m tokens a chunk of
    which w are seen, O(n_hashes * n * (columns * head_dim + m * w / 64)) time and n_hashes * n * m * w / 8 bytes a
    head.

    CuPy's arrays are hashed and sorted on their GPU, and what the kernels read is made there. This waits for it: sizes
    follow from what the arrays hold. There projections are a library's products as they come, near or not.

    References
    ----------
    .. [1] Kitaev et al., Reformer, arXiv:2001.04451, section 2 and appendix A.
    """
    size = tiles(block_size)
    if min(getattr(x, "ndim", 0) for x in (q, k)) >= 2 and q.shape[-2] < k.shape[-2]:
        most = positive(n_hashes, "n_hashes") * positive(chunk_length, "chunk_length")
        most *= 1 + at_least_0(chunks_before, "chunks_before")
        return _over_cache(q, k, bucket_factors(n_buckets), n_hashes, most, rotations, seed, valid, size)
    found = hash_rounds(q, k, n_buckets=n_buckets, n_hashes=n_hashes, chunk_length=chunk_length,
                        chunks_before=chunks_before, chunks_after=chunks_after, causal=causal, same_bucket=same_bucket,
                        rotations=rotations, seed=seed, valid=valid)
    pattern = Pattern.from_parts(*found)
    return (pattern if size is None else pattern.reblock(size)).to(device_of(q))


def _over_cache(q, k, factors, n_hashes, most, rotations, seed, valid, size):
    """New queries over a cache of keys."""
    q, k = heads(q=q, k=k)
    rotations = _rotations(rotations, q, n_hashes, factors, seed)
    valid = valid_tokens(valid, k)
    sides = (q, np.arange(q.shape[1])), (k, keys_for(q, k))
    buckets = [hash_buckets(x, rotations, factors, heads_of_x) for x, heads_of_x in sides]
    chosen = recent_in_bucket(*buckets, most, valid)
    return chosen_keys(chosen, (q.shape[2], k.shape[2]), size).to(device_of(q))


def hash_rounds(q, k=None, *, n_buckets, n_hashes, chunk_length, chunks_before=1, chunks_after=0, causal=False,
                same_bucket=False, rotations=None, seed=0, valid=None, once=True):
    """(parts, shape, batch, n_heads) of `lsh`, where q is; once=False: a pair stands as often as it meets."""
    factors = bucket_factors(n_buckets)
    n_hashes, length = positive(n_hashes, "n_hashes"), positive(chunk_length, "chunk_length")
    window = at_least_0(chunks_before, "chunks_before"), at_least_0(chunks_after, "chunks_after")
    q, *other = heads(q=q) if k is None else heads(q=q, k=k)
    batch, n_heads, n, _ = q.shape
    _check_tokens(q, *other)
    rotations = _rotations(rotations, q, n_hashes, factors, seed)
    valid = valid_tokens(valid, q)
    if not n:
        return (), (0, 0), batch, n_heads
    sides = [_sorted(q, np.arange(n_heads), rotations, factors, min(length, n), valid)]
    sides += [_sorted(x, keys_for(q, x), rotations, factors, min(length, n), valid) for x in other]
    parts = round_parts(sides[0], sides[-1], bool(same_bucket), window, once, bool(causal), k is None)
    return parts, (n, n), batch, n_heads


def bucket_factors(n_buckets):
    """Even factors of the number of buckets."""
    several = isinstance(n_buckets, (list, tuple))
    factors = [positive(f, "n_buckets") for f in (n_buckets if several else [n_buckets])]
    if not factors or any(f % 2 for f in factors):
        raise ValueError(f"n_buckets is {n_buckets!r}; expected an even number, or even factors: each projection has "
                         "two buckets, one for each direction")
    if math.prod(factors) >= 1 << 30:
        raise ValueError(f"n_buckets is {n_buckets!r}, {math.prod(factors)} buckets; expected fewer than 2**30")
    return factors


def _check_tokens(q, k=None):
    if k is not None and k.shape[2] != q.shape[2]:
        raise ValueError(f"q has {q.shape[2]} tokens but k {k.shape[2]}; chunks of queries see chunks of keys of the "
                         "same number: give as many of each, or a few queries over a cache of keys")
    if k is not None:
        keys_for(q, k)


def _rotations(rotations, q, n_hashes, factors, seed):
    """Float (1 | batch, n_heads, head_dim, n_hashes, columns), given or drawn."""
    batch, n_heads, _, head_dim = q.shape
    if rotations is None:
        return draw_rotations(n_heads, head_dim, n_hashes, factors, seed)[None]
    if library(rotations) not in ("numpy", library(q)) or rotations.dtype.kind != "f":
        raise TypeError("rotations must be a NumPy array of floats, or one of CuPy if q is, (n_heads, head_dim, "
                        "n_hashes, columns)")
    expected = n_heads, head_dim, n_hashes, sum(factors) // 2
    if rotations.shape not in (expected, (batch, *expected)):
        raise ValueError(f"rotations has shape {rotations.shape}; expected {expected} (n_heads, head_dim, n_hashes, "
                         f"half of the sum of the factors of n_buckets), or with batch {batch} in front")
    return rotations[(None,) * (5 - rotations.ndim)]


def _sorted(x, heads_of_x, rotations, factors, length, valid):
    """One side of all rounds, tokens that are not valid behind the others."""
    buckets, n_buckets = hash_buckets(x, rotations, factors, heads_of_x), math.prod(factors)
    if valid is not None:
        xp = namespace(buckets)
        valid = xp.asarray(valid)
        buckets = xp.where(valid[:, None, None], buckets, np.int32(n_buckets))
    return sort_rounds(buckets, n_buckets + 1, length, valid)
