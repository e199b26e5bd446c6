"""Routing Transformer's pattern and attention: against their definitions, cluster by cluster."""

import numpy as np
import pytest

from sparseattn import Pattern, patterns
from sparseattn.selection.members import cluster_members


def chosen(x, means, window, valid):
    """Members of each cluster, [head][cluster] = token numbers, of one batch item (n_heads, n, d)."""
    unit = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    scores = np.where(valid, np.einsum("hnd,hcd->hcn", unit, means), -np.inf)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :window]
    return [[sorted(t for t in cluster if valid[t]) for cluster in head] for head in best]


CASES = [  # n_queries, n_keys, n_heads, n_kv_heads, clusters, window, causal, shared
    (60, 60, 2, 2, 5, 12, False, False), (60, 60, 2, 2, 5, 12, False, True), (60, 60, 2, 2, 5, 12, True, True),
    (50, 70, 4, 2, 6, 20, True, False), (70, 50, 4, 1, 6, 90, False, False), (200, 200, 1, 1, 3, 140, True, True),
    (40, 40, 2, 2, 20, 20, False, True), (30, 30, 1, 1, 1, 5, False, True), (200, 200, 2, 2, 70, 1, False, False),
    (300, 300, 1, 1, 4, 130, False, False),
]


@pytest.mark.parametrize("case, padded", [(case, padded) for case in CASES for padded in (False, True)
                                          if case[0] <= case[1] or not padded], ids=str)
def test_rule(case, padded):
    n_queries, n_keys, n_heads, n_kv_heads, n_clusters, window, causal, shared = case
    rng = np.random.default_rng(n_queries)
    q, k = rng.standard_normal((2, n_heads, n_queries, 5)), rng.standard_normal((2, n_kv_heads, n_keys, 5))
    k = q if shared else k
    means, valid = rng.standard_normal((n_heads, n_clusters, 5)), rng.random((2, n_keys)) < 0.6
    valid[0] |= not padded
    valid[1] |= not padded
    pattern = patterns.clusters(q, k, means, window=window, causal=causal, valid=valid if padded else None).check()
    dense, most = np.zeros((2, n_heads, n_queries, n_keys), bool), 0
    for b in range(2):
        q_members = chosen(q[b], means, window, valid[b, n_keys - n_queries:] if padded else np.ones(n_queries, bool))
        k_members = chosen(k[b].repeat(n_heads // k.shape[1], 0), means, window, valid[b])
        for h in range(n_heads):
            for of_q, of_k in zip(q_members[h], k_members[h]):
                dense[b, h, np.array(of_q, int)[:, None], np.array(of_k, int)] = True
            most = max(most, np.bincount([t for of_k in k_members[h] for t in of_k]).max())
    if causal:
        dense &= np.arange(n_keys) <= np.arange(n_queries)[:, None] + n_keys - n_queries
    assert np.array_equal(pattern.to_dense(), dense)
    assert np.array_equal(pattern.uncovered, ~dense.any(axis=-1))
    turned = pattern.T.check()  # one part for each of a key's clusters, of all that the queries are in
    assert np.array_equal(turned.to_dense(), dense.swapaxes(2, 3)) and len(turned.parts) <= most
    assert np.array_equal(turned.T.to_dense(), dense)


def test_ties_go_to_the_lower_index_and_nan_is_never_taken():
    q = np.ones((1, 1, 300, 4), np.float32)
    q[0, 0, ::3] *= np.arange(1, 101, dtype=np.float32)[:, None]  # length does not matter
    q[0, 0, 4] = np.nan
    pattern = patterns.clusters(q, q, np.ones((1, 1, 4), np.float32), window=20)
    taken = np.flatnonzero(~pattern.uncovered[0, 0])
    assert np.array_equal(taken, [i for i in range(21) if i != 4])


def test_members_of_many_tokens():
    """More tokens than are looked at one by one."""
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float64):
        q = rng.standard_normal((1, 2, 3000, 8)).astype(dtype)
        means = rng.standard_normal((2, 7, 8)).astype(dtype)
        members = cluster_members(q, np.arange(2), means, 40, None)
        assert members[0].tolist() == chosen(q[0].astype(float), means, 40, np.ones(3000, bool))


def test_tiles_are_speed_alone():
    rng = np.random.default_rng(2)
    q, means = rng.standard_normal((1, 2, 90, 4)), rng.standard_normal((2, 4, 4))
    pattern = patterns.clusters(q, q, means, window=30)
    assert patterns.clusters(q, q, means, window=30, block_size=32).same_pairs(pattern)
    assert patterns.clusters(q, q.copy(), means, window=30) == pattern


def test_no_tokens():
    q = np.zeros((2, 3, 0, 8))
    assert patterns.clusters(q, q, np.ones((3, 2, 8)), window=4) == Pattern((), (0, 0), 2, 3)


def test_uncovered_of_any_pattern():
    cases = [patterns.sliding_window(40, 20, left=2), patterns.strided(30, stride=7)[:, :, :, 20:],
             patterns.padding(np.arange(25) % 4 > 0), patterns.block_local(50, block=8).reblock((1, 8)),
             Pattern.per_head([patterns.causal(20), patterns.documents([8, 12]) - patterns.causal(20),
                               patterns.causal(20)]), Pattern((), (4, 5), 2, 3)]
    for pattern in cases:
        assert np.array_equal(pattern.uncovered, ~pattern.to_dense().any(axis=-1))
