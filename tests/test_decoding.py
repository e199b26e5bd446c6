"""Chunked prefill and cached decoding: slices of a pattern, and `offset` for caches of different lengths."""

from itertools import pairwise

import numpy as np
import pytest
from test_algebra import same

import families
import oracle
import sparseattn as sa
from sparseattn import Pattern, patterns

CASES = families.POSITIONAL
# those a decoder may have: square, and no query attends a later key
DECODERS = [c for c in CASES if c.mask.shape[2] == c.mask.shape[3] > 1 and not np.triu(c.mask, 1).any()]
CAPACITY = 70  # slots of a cache of keys and values
LENGTHS = [70, 12, 33]  # tokens in it, those of the step included
WITH_OFFSET = [
    ("causal", {}), ("sliding_window", {"left": 9}), ("sliding_window", {"left": 4, "dilation": 3}),
    ("sliding_window", {"left": 4, "dilation": [1, 3]}), ("attention_sinks", {"n_sinks": 3, "recent": 8}),
]


def test_most_families_can_decode():
    names = {c.name.split("(")[0] for c in DECODERS}
    assert names >= {"causal", "sliding_window", "block_local", "documents", "strided", "attention_sinks", "fixed",
                     "longformer"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_slices_are_the_rows_of_the_whole(case):
    """The queries a to b over the first c keys; a last chunk may be short."""
    pattern, (n_queries, n_keys) = case.build(), case.mask.shape[2:]
    for a, b, c in ((0, 16, 16), (16, 32, 32), (13, 14, 14), (n_queries - 7, n_queries, n_keys), (5, 40, n_keys - 3)):
        a, b, c = max(min(a, n_queries), 0), max(min(b, n_queries), 0), max(min(c, n_keys), 0)
        same(pattern[:, :, a:b, :c], case.mask[:, :, a:b, :c])


def _inputs(mask, n_keys, n_queries=None, seed=0):
    """q, k, v for a mask, two query heads for each of its own."""
    batch, n_heads = max(mask.shape[0], 2), mask.shape[1]
    rng = np.random.default_rng(seed)
    shapes = ((2 * n_heads, n_queries or n_keys), (n_heads, n_keys), (n_heads, n_keys))
    return [rng.standard_normal((batch, *shape, 16), dtype=np.float32) for shape in shapes]


@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
def test_a_prompt_in_chunks_and_then_token_by_token(case, backend):
    """A cache of the whole length, in which slots not yet written hold NaN, gives the rows of one call."""
    pattern, n = case.build(), case.mask.shape[2]
    q, k, v = _inputs(case.mask, n)
    whole, lse = sa.attend(q, k, v, pattern, return_lse=True, backend=backend)
    k_cache, v_cache = np.full_like(k, np.nan), np.full_like(v, np.nan)
    ends = [*range(0, n // 2, 16), *range(n // 2, n + 1)]
    for a, b in pairwise(ends):
        k_cache[:, :, a:b], v_cache[:, :, a:b] = k[:, :, a:b], v[:, :, a:b]
        got = sa.attend(q[:, :, a:b], k_cache, v_cache, pattern[:, :, a:b], return_lse=True, backend=backend)
        short = sa.attend(q[:, :, a:b], k[:, :, :b], v[:, :, :b], pattern[:, :, a:b, :b], backend=backend)
        np.testing.assert_allclose(got[0], whole[:, :, a:b], rtol=0, atol=2e-6)
        np.testing.assert_allclose(got[1], lse[:, :, a:b], rtol=0, atol=4e-6)
        np.testing.assert_allclose(short, whole[:, :, a:b], rtol=0, atol=2e-6)


def _caches(mask, n_queries, lengths):
    """Queries, and a batch of caches with NaN behind the tokens of each."""
    q, k, v = _inputs(np.broadcast_to(mask, (len(lengths), *mask.shape[1:])), CAPACITY, n_queries)
    for item, length in enumerate(lengths):
        k[item, :, length:], v[item, :, length:] = np.nan, np.nan
    return q, k, v


def _item_by_item(q, k, v, lengths, pattern_of, backend):
    """What each batch item gives alone, over the tokens that it has."""
    each = [sa.attend(q[i:i + 1], k[i:i + 1, :, :n], v[i:i + 1, :, :n], pattern_of(n), backend=backend)
            for i, n in enumerate(lengths)]
    return np.concatenate(each)


@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("name, options", WITH_OFFSET, ids=str)
def test_offset_for_caches_of_different_lengths(name, options, n_queries, backend):
    family = getattr(patterns, name)
    batched = family(n_queries, CAPACITY, offset=[n - n_queries for n in LENGTHS], **options)
    mask = getattr(oracle, name)(n_queries, CAPACITY, offset=[n - n_queries for n in LENGTHS], **options)
    same(batched, np.broadcast_to(mask, (len(LENGTHS), *mask.shape[1:])))
    assert not any(mask[i, ..., n:].any() for i, n in enumerate(LENGTHS))
    q, k, v = _caches(mask, n_queries, LENGTHS)
    alone = _item_by_item(q, k, v, LENGTHS, lambda n: family(n_queries, n, **options), backend)
    np.testing.assert_allclose(sa.attend(q, k, v, batched, backend=backend), alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("name, options", [
    ("strided", {"stride": 7}), ("block_local", {"block": 16, "causal": True}), ("sliding_window", {"left": 9}),
    ("fixed", {"stride": 10, "n_summary": 2}), ("longformer", {"window": 8, "global_tokens": [0, 5], "causal": True}),
], ids=str)
def test_slices_for_caches_of_different_lengths(name, options, n_queries, backend):
    """A family without `offset`: the last rows of each item, of a pattern as long as the cache."""
    whole, mask = getattr(patterns, name)(CAPACITY, **options), getattr(oracle, name)(CAPACITY, **options)
    batched = Pattern.per_batch([whole[:, :, n - n_queries : n] for n in LENGTHS])
    rows = np.concatenate([mask[:, :, n - n_queries : n] for n in LENGTHS])
    same(batched, rows)
    q, k, v = _caches(rows, n_queries, LENGTHS)
    alone = _item_by_item(q, k, v, LENGTHS, lambda n: whole[:, :, n - n_queries : n, :n], backend)
    np.testing.assert_allclose(sa.attend(q, k, v, batched, backend=backend), alone, rtol=0, atol=2e-6)


def test_left_padding_and_steps_of_different_lengths(backend):
    """Items aligned at the end of the cache: what lies before their first token is padding, on either side."""
    n_queries, lengths = 6, [70, 30, 4]
    valid = np.arange(CAPACITY) >= CAPACITY - np.array(lengths)[:, None]
    pattern = patterns.strided(CAPACITY, stride=7)[:, :, -n_queries:] & patterns.padding(valid, n_queries=n_queries)
    rows = (oracle.strided(CAPACITY, stride=7) & oracle.padding(valid))[:, :, -n_queries:]
    same(pattern, rows)
    q, k, v = _inputs(rows, CAPACITY, n_queries)
    k[~np.broadcast_to(valid[:, None], k.shape[:3])] = np.nan
    v[~np.broadcast_to(valid[:, None], v.shape[:3])] = np.nan
    q[2, :, :2] = np.nan
    got = sa.attend(q, k, v, pattern, backend=backend)
    assert np.isfinite(got).all() and not got[2, :, :2].any()
    for item, n in enumerate(lengths):
        own = patterns.strided(n, stride=7)[:, :, -n_queries:]  # distances alone count
        some = min(n, n_queries)
        alone = sa.attend(q[item:item + 1, :, -some:], k[item:item + 1, :, -n:], v[item:item + 1, :, -n:], own,
                          backend=backend)
        np.testing.assert_allclose(got[item:item + 1, :, -some:], alone, rtol=0, atol=2e-6)


def test_gradients_of_a_chunk_over_its_cache(backend):
    """Gradients of chunks add up to those of one call; NaN in slots behind them stays there."""
    n, cuts = 60, [0, 25, 47, 60]
    pattern = patterns.strided(n, stride=7)
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 2, n, 8))
    _, vjp = sa.vjp(q, k, v, pattern, backend=backend)
    dq, dk, dv = (np.zeros_like(x) for x in (q, k, v))
    for a, b in pairwise(cuts):
        cache = [np.where(np.arange(n)[:, None] < b, x, np.nan) for x in (k, v)]
        _, step = sa.vjp(q[:, :, a:b], *cache, pattern[:, :, a:b], backend=backend)
        gradients = step(dout[:, :, a:b])
        dq[:, :, a:b] = gradients.dq
        dk, dv = dk + gradients.dk, dv + gradients.dv
    for got, expected in zip((dq, dk, dv), vjp(dout)[:3], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
