"""Reformer's pattern: against its definition, round by round and pair by pair."""

import tracemalloc

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns
from sparseattn.patterns.content.lsh import hash_rounds
from sparseattn.selection.compiled import _turn_tile
from sparseattn.selection.hashing import hash_buckets



def hashed(x, rotations, factors):
    """Bucket of each token, (batch, n_heads, n_hashes, n)."""
    rotations = np.broadcast_to(rotations, x.shape[:1] + rotations.shape[-4:])
    projected = np.einsum("bhnd,bhdrc->bhrnc", x.astype(float), rotations.astype(float))
    bucket, weight, at = 0, 1, 0
    for f in factors:
        y = projected[..., at:at + f // 2]
        bucket = bucket + weight * np.concatenate([y, -y], -1).argmax(-1)
        weight, at = weight * f, at + f // 2
    return bucket


def chunks_of(buckets, length):
    """Members of each chunk of each round, of one head: [chunk][...] = (round, token), and the chunk of each (round,
    token)."""
    chunks, where = [], {}
    for r, bucket in enumerate(buckets):
        order = sorted(range(len(bucket)), key=lambda i: (bucket[i], i))
        for at in range(0, len(order), length):
            for i in order[at:at + length]:
                where[r, i] = len(chunks)
            chunks.append([(r, i) for i in order[at:at + length]])
    return chunks, where


def multiplicity(q_buckets, k_buckets, length, before, after, causal, same_bucket, apart, valid):
    """How often each pair of one head meets."""
    n = q_buckets.shape[1]
    (_, where), (chunks, _) = chunks_of(q_buckets, length), chunks_of(k_buckets, length)
    count = np.zeros((n, n), int)
    for (r, i), own in where.items():
        seen = {(own + d) % len(chunks) for d in range(-before, after + 1)}
        for s, j in [member for c in seen for member in chunks[c]]:
            matches = not same_bucket or (s == r and k_buckets[s, j] == q_buckets[r, i])
            if valid[i] and valid[j] and matches and (j <= i or not causal) and not (apart and i == j):
                count[i, j] += 1
    if apart:
        for i in np.flatnonzero((count.sum(1) == 0) & valid):
            count[i, i] = 1
    return count


def expected(q, k, rotations, factors, length, before, after, causal, same_bucket, valid):
    rounds = [hashed(x, rotations, factors) for x in (q, q if k is None else k)]
    valid = np.ones((q.shape[0], q.shape[2]), bool) if valid is None else valid
    for x in rounds:
        np.copyto(x, np.prod(factors), where=~valid[:, None, None])
    return np.array([[multiplicity(rounds[0][b, h], rounds[1][b, h], length, before, after, causal, same_bucket,
                                   k is None, valid[b]) for h in range(q.shape[1])] for b in range(q.shape[0])])


CASES = [  # n, length, rounds, factors, before, after, causal, same_bucket
    (48, 8, 3, [6], 1, 0, False, False), (48, 8, 3, [6], 1, 0, True, False), (50, 8, 2, [4, 2], 1, 1, False, False),
    (50, 7, 4, [8], 0, 1, True, False), (37, 16, 2, [4], 2, 0, False, True), (37, 6, 3, [4], 1, 1, True, True),
    (20, 32, 2, [2], 1, 0, False, False), (20, 32, 1, [2], 3, 3, False, True), (9, 2, 1, [4], 0, 0, True, False),
    (40, 16, 3, [2, 2, 2], 4, 4, False, True), (40, 16, 3, [4], 4, 2, False, False), (1, 4, 2, [2], 1, 0, False, False),
    (150, 70, 2, [4], 1, 0, False, False), (150, 70, 2, [4], 0, 0, True, True), (300, 129, 2, [2], 0, 0, False, False),
    (30, 4, 2, [200, 200], 1, 0, False, True), (64, 8, 5, [4], 1, 0, True, False),
]


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case, padded, apart):
    n, length, n_hashes, factors, before, after, causal, same_bucket = case
    rng = np.random.default_rng(n)
    q, k = rng.standard_normal((2, 2, 2, n, 5)).astype(np.float32)
    rotations = rng.standard_normal((2, 5, n_hashes, sum(factors) // 2)).astype(np.float32)
    valid = rng.random((2, n)) < 0.7 if padded else None
    k = None if apart else k
    count = expected(q, k, rotations, factors, length, before, after, causal, same_bucket, valid)
    options = {"n_buckets": factors, "n_hashes": n_hashes, "chunk_length": length, "chunks_before": before,
               "chunks_after": after, "causal": causal, "same_bucket": same_bucket, "rotations": rotations,
               "valid": valid}
    pattern = patterns.lsh(q, k, **options).check()
    assert np.array_equal(pattern.to_dense(), count > 0)
    parts = hash_rounds(q, k, **options, once=False)[0]
    met = sum(sa.Pattern.from_parts([p], (n, n), 2, 2).nnz for p in parts)
    assert met == count.sum()


@pytest.mark.parametrize("n_queries, padded", [(1, False), (5, False), (5, True)])
def test_new_queries_over_a_cache(n_queries, padded):
    rng, (n, rounds, length, factors) = np.random.default_rng(n_queries), (300, 2, 8, [4, 4])
    q, k = rng.standard_normal((2, 4, n_queries, 16)), rng.standard_normal((2, 2, n, 16))
    rotations = rng.standard_normal((4, 16, rounds, 4))
    valid = rng.random((2, n)) < 0.8 if padded else np.ones((2, n), bool)
    pattern = patterns.lsh(q, k, n_buckets=factors, n_hashes=rounds, chunk_length=length, rotations=rotations,
                           valid=valid if padded else None)
    keys = np.repeat(k, 2, axis=1)
    of_q, of_k = hashed(q, rotations, factors), hashed(keys, rotations, factors)
    expected = np.zeros((2, 4, n_queries, n), bool)
    for b, h, i in np.ndindex(2, 4, n_queries):
        place = n - n_queries + i
        shares = [j for j in range(place + 1) if valid[b, j] and valid[b, place]
                  and any(of_q[b, h, r, i] == of_k[b, h, r, j] for r in range(rounds))]
        expected[b, h, i, shares[-rounds * length * 2:]] = True
    assert np.array_equal(pattern.to_dense(), expected)
    assert expected.sum(-1).max() == rounds * length * 2 > expected.sum(-1).min()


def test_memory_is_a_bit_for_each_pair():
    rng = np.random.default_rng(0)
    qk = rng.standard_normal((1, 2, 8192, 16)).astype(np.float32)
    patterns.lsh(qk[:, :, :256], n_buckets=[8, 8], n_hashes=4, chunk_length=64)  # compiles
    tracemalloc.start()
    try:
        pattern = patterns.lsh(qk, n_buckets=[16, 16], n_hashes=4, chunk_length=64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bits = 2 * 4 * 8192 * 128 / 8
    assert pattern.density_in_tiles > 0.9
    assert peak < 3 * bits + 40 * 2 * 4 * 8192 + 3 * 2**22 * 4


@pytest.mark.parametrize("tile", [32, 7, 64])
def test_tiles_turned(tile):
    """Bits of queries for each key become bits of keys for each query."""
    turned = np.random.default_rng(tile).integers(0, 2**63, 64, np.uint64)
    turned[tile:] = 0
    gone = np.zeros((64, 2), np.uint32)
    _turn_tile(turned, gone)
    bits = np.unpackbits(turned.view(np.uint8).reshape(64, 8), axis=1, bitorder="little")
    assert np.array_equal(np.unpackbits(gone.view(np.uint8), axis=1, bitorder="little"), bits.T)


def test_buckets_follow_from_the_token_alone():
    """Equal tokens meet in any place, in any number and beside any others; zero is a tie of all columns."""
    rng = np.random.default_rng(6)
    for dtype in (np.float32, np.float64):
        x = rng.standard_normal((1, 1, 37, 13)).astype(dtype)
        x[0, 0, 5] = 0
        rotations = rng.standard_normal((1, 1, 13, 3, 9)).astype(dtype)
        few = hash_buckets(x, rotations, [14, 2, 2], [0])
        many = hash_buckets(np.tile(x, (1, 1, 30, 1))[:, :, :1003], rotations, [14, 2, 2], [0])
        assert np.array_equal(many, np.tile(few, 30)[..., :1003])
        assert np.array_equal(few, hashed(x, rotations, [14, 2, 2])) and not few[..., 5].any()


def test_laws():
    rng = np.random.default_rng(7)
    pattern = patterns.lsh(rng.standard_normal((2, 2, 61, 5)), n_buckets=6, n_hashes=3, chunk_length=8)
    dense, near = pattern.to_dense(), patterns.sliding_window(61, left=9)
    assert np.array_equal(pattern.T.check().to_dense(), dense.swapaxes(2, 3))
    assert np.array_equal(pattern[1:, :1, 20:50, 3:].check().to_dense(), dense[1:, :1, 20:50, 3:])
    for combined, mask in ((pattern & near, dense & near.to_dense()), (pattern | near, dense | near.to_dense()),
                           (pattern - near, dense & ~near.to_dense())):
        assert np.array_equal(combined.check().to_dense(), mask)
