"""Routing Transformer's attention: against its definition, cluster by cluster in float64; gradients by finite
differences."""

import numpy as np
import pytest

import oracle
from sparseattn import patterns, variants
from test_content_clusters import chosen

RNG = np.random.default_rng(5)
Q, DOUT = RNG.standard_normal((2, 4, 50, 6)), RNG.standard_normal((2, 4, 50, 5))
K, V = RNG.standard_normal((2, 2, 50, 6)), RNG.standard_normal((2, 2, 50, 5))
MEANS = RNG.standard_normal((4, 5, 6))
MEMORY = {"memory_k": RNG.standard_normal((4, 5, 2, 6)), "memory_v": RNG.standard_normal((4, 5, 2, 5))}
VALID = RNG.random((2, 50)) < 0.7


def dense(x, window, causal=False, shared_qk=False, exclude_self=False, valid=None, denominator_eps=0.0):
    """The definition, a query of a cluster at a time."""
    q, k, v = x["q"], x["k"].repeat(2, axis=1), x["v"].repeat(2, axis=1)
    valid = np.ones((2, 50), bool) if valid is None else valid
    total, times = np.zeros(q.shape[:3] + v.shape[3:]), np.zeros(q.shape[:3])
    for b in range(2):
        q_members = chosen(Q[b], MEANS, window, valid[b])
        k_members = q_members if shared_qk else chosen(K.repeat(2, axis=1)[b], MEANS, window, valid[b])
        for h in range(4):
            for c in range(5):
                for i in q_members[h][c]:
                    keys = [j for j in k_members[h][c] if j <= i or not causal]
                    memory = [x[f"memory_{name}"][h, c] if "memory_k" in x else np.zeros((0, s.shape[3]))
                              for name, s in (("k", k), ("v", v))]
                    if exclude_self and i in keys and len(keys) + len(memory[0]) > 1:
                        keys.remove(i)
                    times[b, h, i] += 1
                    every = [np.concatenate([m, x[b, h, keys]])[None, None] for m, x in zip(memory, (k, v))]
                    if every[0].size:
                        total[b, h, i] += oracle.attention(q[b:b + 1, h:h + 1, i:i + 1], *every,
                                                           np.ones((1, every[0].shape[2]), bool))[0][0, 0, 0]
    return total / np.where(times > 0, times + denominator_eps, 1)[..., None]


CASES = [
    ({}, False), ({"shared_qk": True, "causal": True}, False), ({"causal": True}, True),
    ({"exclude_self": True}, False),
    ({"shared_qk": True, "causal": True, "exclude_self": True, "denominator_eps": 0.01}, False),
    ({"shared_qk": True, "exclude_self": True, "valid": VALID}, True), ({"valid": VALID, "causal": True}, True),
    ({"window": 60, "shared_qk": True}, False), ({"window": 1, "shared_qk": True, "exclude_self": True}, False),
]


@pytest.mark.parametrize("options, with_memory", CASES, ids=lambda x: str(list(x)) if isinstance(x, dict) else str(x))
def test_formula_and_gradients(options, with_memory, backend):
    options = {"window": 14} | options
    x = {"q": Q, "k": K, "v": V} | (MEMORY if with_memory else {})
    out, vjp = variants.routing(Q, K, V, MEANS, **(MEMORY if with_memory else {}), **options, backend=backend)
    assert np.abs(out - dense(x, **options)).max() < 1e-12
    gradients = vjp(DOUT)
    for name, array in x.items():
        step = 1e-5 * RNG.standard_normal(array.shape)
        ahead, behind = (dense(x | {name: array + side * step}, **options) for side in (1, -1))
        change = ((ahead - behind) * DOUT).sum()
        assert abs(2 * (getattr(gradients, "d" + name) * step).sum() - change) < 1e-8, name
    assert with_memory or gradients.dmemory_k is gradients.dmemory_v is None


def test_a_token_in_no_cluster_gets_nothing():
    out, vjp = variants.routing(Q, K, V, MEANS, window=4)
    uncovered = patterns.clusters(Q, K, MEANS, window=4).uncovered
    assert uncovered.any() and not uncovered.all()
    assert np.array_equal((out == 0).all(-1), uncovered)
    assert not vjp(DOUT).dq[uncovered].any()


def test_storage_and_axes():
    for dtype, most in ((np.float16, 4e-3), (np.float32, 1e-5)):
        q, k, v, means = (x.astype(dtype) for x in (Q[0, 0], K[0, 0], V[0, 0], MEANS[0]))
        out, vjp = variants.routing(q, k, v, means, window=14)
        whole, _ = variants.routing(*(x.astype(float) for x in (q, k, v, means)), window=14)
        assert out.dtype == dtype and out.shape == v.shape and np.abs(out - whole).max() < most
        assert [(x.shape, x.dtype) for x in vjp(out)[:3]] == [(x.shape, dtype) for x in (q, k, v)]


def test_what_is_padding_may_hold_anything(backend):
    arrays = [x.astype(np.float32) for x in (Q, K, V)]
    for x in arrays:
        x[np.broadcast_to(~VALID[:, None], x.shape[:3])] = np.nan
    out, vjp = variants.routing(*arrays, MEANS.astype(np.float32), window=14, valid=VALID, backend=backend)
    assert all(np.isfinite(x).all() for x in (out, *vjp(np.ones_like(out))[:3]))


def test_means_move_towards_their_tokens():
    means = np.concatenate([MEANS, -50 * MEANS[:, :1] - 50 * MEANS.sum(1, keepdims=True)], axis=1)
    after = variants.update_means(Q, K, means, decay=0.9, valid=VALID)
    for h in range(4):
        tokens = np.concatenate([x[b, head][VALID[b]] for b in range(2) for x, head in ((Q, h), (K, h // 2))])
        tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
        nearest = (tokens @ means[h].T).argmax(1)
        for c in range(6):
            own = tokens[nearest == c].sum(0)
            moved = 0.9 * means[h, c] + 0.1 * own / np.linalg.norm(own) if (nearest == c).any() else means[h, c]
            assert np.abs(after[h, c] - moved).max() < 1e-12
    assert variants.update_means(Q[0, 0], None, MEANS[0].astype(np.float32)).dtype == np.float32


def test_a_mean_without_tokens_stays():
    means = np.stack([MEANS[:, 0], np.zeros((4, 6))], axis=1)
    q = np.broadcast_to(MEANS[:, :1], (1, 4, 9, 6)).copy()
    after = variants.update_means(q, None, means, decay=0.5)
    assert not after[:, 1].any() and np.abs(after[:, 0] - means[:, 0]).max() > 0.01


@pytest.mark.parametrize("error, words, options", [
    (ValueError, "causal routing of separate queries and keys", {"causal": True}),
    (ValueError, "memory_k and memory_v come together", {"memory_k": MEMORY["memory_k"]}),
    (ValueError, "memory_v has shape (4, 5, 2, 6); expected (n_heads, n_clusters, m, 5) = (4, 5, any, 5)",
     {"memory_k": MEMORY["memory_k"], "memory_v": MEMORY["memory_k"]}),
    (TypeError, "memory_k must be a NumPy array in the dtype of q", {"memory_k": [1], "memory_v": [1]}),
    (ValueError, "memory_k holds 2 keys a cluster but memory_v 1 values",
     MEMORY | {"memory_v": MEMORY["memory_v"][:, :, :1]}),
    (ValueError, "means has shape (3, 5, 6); expected (n_heads, n_clusters, head_dim) = (4, any, 6)",
     {"means": MEANS[:3]}),
    (TypeError, "means is ndarray of int64; expected a NumPy array of floats", {"means": MEANS.astype(int)}),
    (ValueError, "window is 0; expected at least 1", {"window": 0}),
    (ValueError, "denominator_eps is -1", {"denominator_eps": -1}),
    (ValueError, "valid has shape (3, 50)", {"valid": np.ones((3, 50), bool)}),
    (ValueError, "q has 50 tokens but k 40; clusters are of one sequence", {"k": K[:, :, :40], "v": V[:, :, :40]}),
    (ValueError, "v has 40", {"v": V[:, :, :40]}),
], ids=lambda x: x[:30] if isinstance(x, str) else "")
def test_errors(error, words, options):
    arrays = {"q": Q, "k": K, "v": V, "means": MEANS, "window": 14}
    with pytest.raises(error) as caught:
        variants.routing(**arrays | options)
    assert words in str(caught.value)


def test_more_queries_than_keys_and_padding():
    with pytest.raises(ValueError, match="q has 50 tokens but valid only 40"):
        patterns.clusters(Q, K[:, :, :40], MEANS, window=4, valid=np.ones(40, bool))
