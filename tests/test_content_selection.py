"""Patterns of best keys, blocks, chunks and pages against their rules, written out query by query."""

import tracemalloc

import numpy as np
import pytest

import oracle
import sparseattn as sa
from sparseattn import patterns
from sparseattn.selection import topk
from sparseattn.selection.products import packed, products
from sparseattn.selection.topk import top_by_chunks, top_of_rows


def best(scores, n):
    """The n best of {candidate: score}, of equal ones the lowest; NaN and -inf never."""
    return sorted((c for c in scores if scores[c] > -np.inf), key=lambda c: (-scores[c], c))[:max(n, 0)]


def drawn(n_queries, n_keys, heads=(4, 2), batch=2, seed=0, d=4):
    """q and k of small whole numbers, in which scores are exact and ties are common."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-2, 3, (batch, h, n, d)).astype(np.float32) for h, n in zip(heads, (n_queries, n_keys))]


def by_query(q, k, keys):
    """The mask of ``keys(query vector, keys of its head, position, (b, h))``."""
    mask = np.zeros((*q.shape[:3], k.shape[2]), bool)
    for b, h, i in np.ndindex(q.shape[:3]):
        here = k[b, h * k.shape[1] // q.shape[1]]
        mask[b, h, i, keys(q[b, h, i], here, i + k.shape[2] - q.shape[2], (b, h))] = True
    return mask


def of_blocks(blocks, size, n):
    return [j for j in range(n) if j // size in blocks]


def top_k(q, k, *, n_selected, causal=False, scale=0.5):
    return by_query(q, k, lambda x, keys, p, _: best(
        {j: scale * x @ keys[j] for j in range(p + 1 if causal else len(keys))}, n_selected))


def indexer_top_k(q, k, w, *, n_selected, causal=True):
    mask = np.zeros((len(q), 1, q.shape[2], k.shape[1]), bool)
    for b, i in np.ndindex(len(q), q.shape[2]):
        last = i + k.shape[1] - q.shape[2] if causal else k.shape[1] - 1
        scores = {j: sum(w[b, h, i] * max(q[b, h, i] @ k[b, j], 0) for h in range(q.shape[1])) for j in range(last + 1)}
        mask[b, 0, i, best(scores, n_selected)] = True
    return mask


def moba(q, k, *, chunk_size, top_k):
    def keys(x, keys, p, _):
        own = p // chunk_size
        gate = {c: x @ keys[c * chunk_size : (c + 1) * chunk_size].mean(0) for c in range(own)}
        return of_blocks([own, *best(gate, top_k - 1)], chunk_size, p + 1)
    return by_query(q, k, keys)


def quest(q, k, *, page_size, token_budget, force_last=True):
    def keys(x, keys, p, _):
        pages = [keys[c : min(c + page_size, p + 1)] for c in range(0, p + 1, page_size)]
        bound = {c: np.maximum(x * page.min(0), x * page.max(0)).sum() for c, page in enumerate(pages)}
        n = min(max(3, token_budget // page_size), len(pages))
        forced = [len(pages) - 1] if force_last else []
        return of_blocks(forced + best({c: s for c, s in bound.items() if c not in forced}, n - len(forced)), page_size,
                         p + 1)
    return by_query(q, k, keys)


def block_top_k(q, k, *, block_size, n_blocks, local_blocks=1, causal=True):
    def keys(x, keys, p, _):
        n = p + 1 if causal else len(keys)
        own = p // block_size
        forced = [c for c in range(own - local_blocks + 1, own + 1) if c >= 0]
        score = {c: (keys[c * block_size : min((c + 1) * block_size, n)] @ x).max() for c in range(-(-n // block_size))}
        others = best({c: s for c, s in score.items() if c not in forced}, n_blocks - local_blocks)
        return of_blocks(forced + others, block_size, n)
    return by_query(q, k, keys)


def from_block_scores(scores, *, block_size, shape, k=None, threshold=None, causal=True, force_diagonal=True):
    mask, offset = np.zeros((*scores.shape[:2], *shape), bool), shape[1] - shape[0]
    for b, h, row in np.ndindex(scores.shape[:3]):
        queries = range(row * block_size[0], min((row + 1) * block_size[0], shape[0]))
        own = {(i + offset) // block_size[1] for i in queries}
        allowed = [c for c in range(scores.shape[3]) if not causal or c <= max(own)]
        forced = own if force_diagonal else set()
        score = {c: scores[b, h, row, c] for c in allowed if c not in forced}
        chosen = [c for c, s in score.items() if s > threshold] if k is None else best(score, k - len(forced))
        for i in queries:
            mask[b, h, i, of_blocks([*forced, *chosen], block_size[1], i + offset + 1 if causal else shape[1])] = True
    return mask


def nsa_selection(p, *, n_kv_heads, n_tokens, compress_block, compress_stride, select_block, n_selected):
    group, mask = p.shape[1] // n_kv_heads, np.zeros((len(p), n_kv_heads, p.shape[2], n_tokens), bool)
    m, overlaps = select_block // compress_stride, compress_block // compress_stride
    for b, g, i in np.ndindex(mask.shape[:3]):
        weight = p[b, g * group : (g + 1) * group, i].sum(0)
        at = i + n_tokens - p.shape[2]
        own = at // select_block
        score = {j: sum(weight[m * j + x - y] for x in range(m) for y in range(overlaps)
                        if 0 <= m * j + x - y < weight.size) for j in range(own + 1)}
        forced = {0, max(own - 1, 0), own}
        others = best({j: s for j, s in score.items() if j not in forced}, n_selected - 3)
        mask[b, g, i, of_blocks([*forced, *others], select_block, at + 1)] = True
    return mask


RULES = {f.__name__: f for f in (top_k, indexer_top_k, moba, quest, block_top_k, from_block_scores, nsa_selection)}
SQUARE, LATE, LAST = drawn(70, 70), drawn(9, 77, seed=1), drawn(1, 77, seed=2)
ONE = drawn(200, 200, (2, 2), 1, seed=3)
SHARED, LATE_SHARED = (SQUARE[0], SQUARE[1][:, :1]), (LATE[0], LATE[1][:, :1])
INDEXER = [drawn(50, 50, (3, 1), seed=4), np.random.default_rng(5).integers(-1, 3, (2, 3, 50)).astype(np.float32)]
INDEXER = INDEXER[0][0], INDEXER[0][1][:, 0], INDEXER[1]
LATE_INDEXER = INDEXER[0][:, :, 43:], INDEXER[1], INDEXER[2][:, :, 43:]
SCORES = np.random.default_rng(6).integers(0, 5, (2, 2, 6, 8)).astype(np.float32)
TOKEN_SCORES = np.random.default_rng(7).integers(0, 5, (1, 2, 40, 10)).astype(np.float32)
WEIGHTS = np.random.default_rng(8).integers(0, 9, (2, 4, 90, 22)).astype(np.float32) / 64
NSA = {"n_kv_heads": 2, "n_tokens": 90, "compress_block": 8, "compress_stride": 4}

CASES = [
    ("top_k", SQUARE, {"n_selected": 5, "scale": 0.5}), ("top_k", SQUARE, {"n_selected": 9, "causal": True}),
    ("top_k", LATE, {"n_selected": 30, "causal": True}), ("top_k", LAST, {"n_selected": 1}),
    ("top_k", SQUARE, {"n_selected": 7, "scale": -0.5}), ("top_k", LATE, {"n_selected": 1000, "causal": True}),
    ("indexer_top_k", INDEXER, {"n_selected": 6}), ("indexer_top_k", INDEXER, {"n_selected": 3, "causal": False}),
    ("indexer_top_k", LATE_INDEXER, {"n_selected": 11}),
    ("moba", SQUARE, {"chunk_size": 8, "top_k": 3}), ("moba", LATE, {"chunk_size": 16, "top_k": 4}),
    ("moba", LAST, {"chunk_size": 8, "top_k": 5}), ("moba", SQUARE, {"chunk_size": 16, "top_k": 1}),
    ("moba", ONE, {"chunk_size": 16, "top_k": 40}), ("moba", SQUARE, {"chunk_size": 128, "top_k": 2}),
    ("moba", SQUARE, {"chunk_size": 1, "top_k": 6}),
    ("quest", LAST, {"page_size": 8, "token_budget": 40}), ("quest", LATE, {"page_size": 8, "token_budget": 32}),
    ("quest", LATE, {"page_size": 8, "token_budget": 32, "force_last": False}),
    ("quest", LAST, {"page_size": 4, "token_budget": 1, "force_last": False}),
    ("quest", ONE, {"page_size": 16, "token_budget": 64, "force_last": False}),
    ("quest", SQUARE, {"page_size": 100, "token_budget": 7}),
    ("block_top_k", SHARED, {"block_size": 8, "n_blocks": 4}), ("block_top_k", ONE, {"block_size": 16, "n_blocks": 3}),
    ("block_top_k", LATE_SHARED, {"block_size": 8, "n_blocks": 5, "local_blocks": 2}),
    ("block_top_k", ONE, {"block_size": 16, "n_blocks": 3, "local_blocks": 0}),
    ("block_top_k", LATE_SHARED, {"block_size": 4, "n_blocks": 6, "local_blocks": 0}),
    ("block_top_k", ONE, {"block_size": 16, "n_blocks": 4, "local_blocks": 2, "causal": False}),
    ("block_top_k", SHARED, {"block_size": 8, "n_blocks": 9, "local_blocks": 9}),
    ("from_block_scores", (SCORES,), {"block_size": (16, 16), "shape": (90, 121), "k": 3}),
    ("from_block_scores", (SCORES,), {"block_size": (16, 12), "shape": (96, 96), "k": 3}),
    ("from_block_scores", (SCORES,), {"block_size": (16, 12), "shape": (81, 92), "k": 1}),
    ("from_block_scores", (SCORES,), {"block_size": (16, 12), "shape": (90, 90), "threshold": 2}),
    ("from_block_scores", (SCORES,), {"block_size": (16, 12), "shape": (90, 90), "threshold": 3,
                                      "force_diagonal": False}),
    ("from_block_scores", (SCORES,), {"block_size": (16, 8), "shape": (90, 60), "k": 2, "causal": False,
                                      "force_diagonal": False}),
    ("from_block_scores", (TOKEN_SCORES,), {"block_size": (1, 4), "shape": (40, 40), "k": 3}),
    ("nsa_selection", (WEIGHTS,), {**NSA, "select_block": 8, "n_selected": 5}),
    ("nsa_selection", (WEIGHTS[:, :, 80:],), {**NSA, "select_block": 16, "n_selected": 4}),
    ("nsa_selection", (WEIGHTS,), {**NSA, "select_block": 4, "n_selected": 3}),
    ("nsa_selection", (WEIGHTS[..., :21],), {**NSA, "select_block": 8, "n_selected": 50}),
]
IDS = [f"{number} {name}" for number, (name, _, _) in enumerate(CASES)]


@pytest.mark.parametrize("name, arrays, options", CASES, ids=IDS)
def test_rules(name, arrays, options):
    pattern = getattr(patterns, name)(*arrays, **options)
    mask = RULES[name](*arrays, **options)
    assert np.array_equal(pattern.check().to_dense(), mask) and pattern.nnz == mask.sum()


@pytest.mark.parametrize("name, arrays, options", CASES[::2], ids=IDS[::2])
def test_attention_over_them(name, arrays, options, backend):
    pattern = getattr(patterns, name)(*arrays, **options)
    rng, (n_queries, n_keys) = np.random.default_rng(0), pattern.shape
    heads = pattern.n_heads
    q, k, v, dout = (rng.standard_normal((pattern.batch, h, n, 6)) for h, n in zip(
        (2 * heads, heads, heads, 2 * heads), (n_queries, n_keys, n_keys, n_queries)))
    out, vjp = sa.vjp(q, k, v, pattern, backend=backend)
    mask = pattern.to_dense()
    assert np.abs(out - oracle.attention(q, k, v, mask)[0]).max() < 1e-12
    for got, exact in zip(vjp(dout), oracle.gradients(dout, q, k, v, mask)):
        assert np.abs(got - exact).max() < 1e-12


@pytest.mark.parametrize("name, arrays, options", CASES, ids=IDS)
def test_dtypes_and_axes(name, arrays, options):
    """Small whole numbers are exact in 16 bits, so the same pairs are chosen; without batch, without heads."""
    build = getattr(patterns, name)
    pattern = build(*arrays, **options)
    for dtype in (np.float16, np.float64, pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16):
        assert build(*(x.astype(dtype) for x in arrays), **options).same_pairs(pattern)
    assert build(*(x[1] if len(x) > 1 else x[0] for x in arrays), **options).same_pairs(pattern[pattern.batch - 1])


@pytest.mark.parametrize("name, arrays, options", [case for case in CASES if case[0] in ("top_k", "moba", "quest")])
def test_tiles_are_speed_only(name, arrays, options):
    build = getattr(patterns, name)
    assert build(*arrays, **options, block_size=(16, 32)).check().same_pairs(build(*arrays, **options))


def test_unfit_scores_are_never_chosen():
    q, k = drawn(60, 60)
    k[0, 0, 7] = np.nan
    k[0, 1, 20] = np.inf
    q[1, 0, 30] = np.nan
    for factor in (1, 1e25):  # products beyond float32
        x, y = q * np.float32(factor), k * np.float32(factor)
        for causal in (False, True):
            dense = patterns.top_k(x, y, n_selected=50, causal=causal).check().to_dense()
            assert not dense[0, :2, :, 7].any() and not dense[1, 0, 30].any() and dense[1, 1:].any()
        chunks = patterns.moba(x, y, chunk_size=8, top_k=3).check().to_dense()
        assert not chunks[0, :2, 8:, :8].any() and chunks[0, :2, 7, 7].all()  # the own chunk is always attended
        pages = patterns.quest(x[:, :, 50:], y, page_size=8, token_budget=32).check().to_dense()
        assert not pages[0, :2, :, :8].any() and pages.any(-1).all()
        blocks = patterns.block_top_k(x[:, :2], y, block_size=8, n_blocks=3).check().to_dense()
        assert not blocks[0, 0, 8:, :8].any() and blocks.any(-1).all()


@pytest.mark.parametrize("n_queries, n_keys", [(0, 0), (0, 20), (1, 1), (2, 3)])
def test_hardly_any_tokens(n_queries, n_keys):
    q, k = drawn(n_queries, n_keys, (2, 1))
    w = np.ones((2, 2, n_queries), np.float32)
    for build in (lambda: patterns.top_k(q, k, n_selected=3), lambda: patterns.top_k(q, k, n_selected=3, causal=True),
                  lambda: patterns.indexer_top_k(q, k[:, 0], w, n_selected=3),
                  lambda: patterns.moba(q, k, chunk_size=2, top_k=2),
                  lambda: patterns.quest(q, k, page_size=2, token_budget=6),
                  lambda: patterns.quest(q, k, page_size=2, token_budget=6, force_last=False),
                  lambda: patterns.block_top_k(q, k, block_size=2, n_blocks=2),
                  lambda: patterns.block_top_k(q, k, block_size=2, n_blocks=2, causal=False)):
        pattern = build().check()
        assert pattern.shape == (n_queries, n_keys) and pattern.to_dense().any(-1).all()


def test_an_infinite_score_is_the_best():
    q, k = np.ones((1, 1)), np.array([[1.0], [np.inf], [3.0], [-np.inf]])
    assert np.array_equal(patterns.top_k(q, k, n_selected=2).to_dense()[0, 0, 0], [False, True, True, False])
    assert patterns.top_k(q, k, n_selected=4).nnz == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_top_of_rows(dtype):
    rng = np.random.default_rng(0)
    for n_cols, n_selected in ((1, 1), (7, 9), (300, 1), (300, 20), (2000, 70), (2000, 700)):
        for scores in (rng.standard_normal((3, n_cols)), rng.integers(-3, 3, (3, n_cols)) * 0.0,
                       rng.integers(-9, 9, (3, n_cols)) * 1e300 ** (dtype == np.float64),
                       np.arange(n_cols) + np.zeros((3, 1)), -np.arange(n_cols) + np.zeros((3, 1))):
            scores = scores.astype(dtype)
            scores[:, ::5] = rng.choice([np.nan, np.inf, -np.inf, 0], scores[:, ::5].shape)
            limits = [n_cols, n_cols // 2, 0]
            got = top_of_rows(scores, n_selected, np.array(limits))
            for row, limit in enumerate(limits):
                want = sorted(best(dict(enumerate(scores[row, :limit])), n_selected))
                assert got[row].tolist() == want + [-1] * (n_selected - len(want))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_keys", [1, 31, 256, 600])
def test_a_score_depends_on_its_vectors_alone(n_keys, dtype):
    rng = np.random.default_rng(0)
    for n_queries, head_dim in ((1, 1), (3, 7), (9, 64)):
        q, k = (rng.standard_normal((n, head_dim)).astype(dtype) for n in (n_queries, n_keys))
        got = products(q, packed(k), n_keys)[:, :n_keys]
        assert got.dtype == dtype
        assert np.array_equal(got, np.add.accumulate(q[:, None] * k, axis=2)[..., -1])


@pytest.mark.parametrize("n_queries", [1, 2, 5, 17])
@pytest.mark.parametrize("copies", [3, 11, 85])
def test_of_equal_keys_the_first_is_chosen(n_queries, copies):
    """Of random numbers, whose products are rounded: equal ones must be rounded alike wherever they stand."""
    rng = np.random.default_rng(0)
    q, few = (rng.standard_normal((1, 4, n, 64)).astype(np.float32) for n in (n_queries, 3))
    k = np.concatenate([few] * copies, axis=2)[:, :, 1:]
    order = np.argsort(-(q.astype(float) @ few.swapaxes(-1, -2)), axis=-1)[0].reshape(-1, 3)
    chosen = patterns.top_k(q, k, n_selected=copies + 1).to_dense()[0].reshape(-1, 3 * copies - 1)
    for row, (first, second, _) in zip(chosen, order):
        expected = [j for key in (first, second) for j in range((key - 1) % 3, 3 * copies - 1, 3)]
        assert set(expected[:copies]) <= set(np.flatnonzero(row)) <= set(expected[: copies + 2])
        assert row.sum() == copies + 1 and not np.diff(row[(second - 1) % 3 :: 3].astype(int)).max(initial=0) > 0
    chunks = np.concatenate([k[:, :, :8]] * 10, axis=2)
    for build in (lambda: patterns.moba(q, chunks, chunk_size=8, top_k=3),
                  lambda: patterns.quest(q, chunks, page_size=8, token_budget=24),
                  lambda: patterns.quest(q, chunks, page_size=8, token_budget=24, force_last=False),
                  lambda: patterns.block_top_k(q, chunks, block_size=8, n_blocks=3)):
        last = build().to_dense()[0, :, -1].reshape(4, 10, 8).any(-1)  # the last query sits at the end of a page
        assert last[:, :2].all() and (last == last[0]).all()


def test_rows_go_by_chunks(monkeypatch):
    monkeypatch.setitem(topk.CHUNK, "numpy", 100)
    scores, largest = np.random.default_rng(0).standard_normal((2, 3, 50, 40)), []

    def scores_of(at, rows, n):
        largest.append((rows.stop - rows.start) * n)
        return scores[at][rows, :n]

    limits = np.arange(50) - 5
    got = top_by_chunks(scores_of, scores, 40, 6, limits)
    assert np.array_equal(got, top_of_rows(scores, 6, limits)) and max(largest) <= 100
    q, k = drawn(70, 70)
    assert np.array_equal(patterns.top_k(q, k, n_selected=4, causal=True).to_dense(),
                          top_k(q, k, n_selected=4, causal=True))


@pytest.mark.parametrize("build", [
    lambda q, k: patterns.top_k(q, k, n_selected=16, causal=True),
    lambda q, k: patterns.moba(q, k, chunk_size=256, top_k=4),
    lambda q, k: patterns.block_top_k(q, k, block_size=64, n_blocks=8),
    lambda q, k: patterns.indexer_top_k(q, k[:, 0], q[..., 0], n_selected=16),
    lambda q, k: patterns.quest(q, k, page_size=64, token_budget=512),
])
def test_memory(build):
    """Scores of all pairs would take 1 GiB."""
    q, k = (np.random.default_rng(0).standard_normal((1, h, 8192, 8)).astype(np.float32) for h in (4, 1))
    build(q[:, :, :300], k[:, :, :300])  # compiles
    tracemalloc.start()
    try:
        build(q, k)
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()


def test_tiles_are_dense():
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, 2, 4096, 16)).astype(np.float32) for _ in "qk")
    assert patterns.moba(q, k, chunk_size=256, top_k=4).density_in_tiles > 0.85
    assert patterns.block_top_k(q, k, block_size=64, n_blocks=8).density_in_tiles > 0.7


def test_choosing_has_no_gradient(backend):
    """Finite differences of the whole call, choice included, where no choice changes."""
    rng = np.random.default_rng(1)
    q, k, v, dout = (rng.standard_normal((1, 2, 48, 5)) for _ in range(4))
    for build in (lambda q, k: patterns.top_k(q, k, n_selected=6, causal=True),
                  lambda q, k: patterns.moba(q, k, chunk_size=8, top_k=3)):
        _, vjp = sa.vjp(q, k, v, build(q, k), backend=backend)
        dq, dk = vjp(dout)[:2]
        for name, gradient in (("q", dq), ("k", dk)):
            direction, step = rng.standard_normal(q.shape), 1e-7
            moved = [{"q": q, "k": k} | {name: {"q": q, "k": k}[name] + sign * step * direction} for sign in (1, -1)]
            assert all(build(**m) == build(q, k) for m in moved)
            up, down = ((sa.attend(**m, v=v, pattern=build(**m), backend=backend) * dout).sum() for m in moved)
            assert abs((up - down) / (2 * step) - (gradient * direction).sum()) < 1e-5


Q, K = drawn(20, 20)
REFUSED = [
    (lambda: patterns.top_k(Q, K, n_selected=0), ValueError, "n_selected is 0; expected at least 1"),
    (lambda: patterns.top_k(Q, K.astype(np.float64), n_selected=1), TypeError, "q has dtype float32 but k float64"),
    (lambda: patterns.top_k(Q[:, :3], K, n_selected=1), ValueError, "q has 3 heads but k has 2; the heads of q must"),
    (lambda: patterns.top_k(Q, K[:, :, 5:], n_selected=1, causal=True), ValueError, "q has 20 tokens but k only 15"),
    (lambda: patterns.top_k(Q, K, n_selected=1, scale=np.nan), ValueError, "scale is nan; expected a finite number"),
    (lambda: patterns.top_k(Q, K, n_selected=1, block_size=0), ValueError, "block_size is 0; expected sides"),
    (lambda: patterns.indexer_top_k(Q, K, Q[..., 0], n_selected=1), ValueError,
     r"index_q has shape \(2, 4, 20, 4\) and index_k \(2, 2, 20, 4\); expected \(batch, index_heads"),
    (lambda: patterns.indexer_top_k(Q, K[:, 0], Q, n_selected=1), ValueError,
     r"index_w has shape \(2, 4, 20, 4\); expected \(2, 4, 20\), one weight"),
    (lambda: patterns.indexer_top_k(Q, K[:, 0].tolist(), Q[..., 0], n_selected=1), TypeError, "index_k is list; expec"),
    (lambda: patterns.block_top_k(Q, K, block_size=4, n_blocks=2), ValueError,
     "index_k has 2 heads; expected 1 or the 4 of index_q"),
    (lambda: patterns.block_top_k(Q[:, :2], K, block_size=4, n_blocks=2, local_blocks=3), ValueError,
     "local_blocks is 3 and n_blocks 2; the local blocks count among n_blocks"),
    (lambda: patterns.from_block_scores(SCORES, block_size=16), ValueError, "k is None and threshold None; give one"),
    (lambda: patterns.from_block_scores(SCORES, block_size=16, k=1, threshold=0), ValueError, "give one of them"),
    (lambda: patterns.from_block_scores(SCORES, block_size=(32, 16), k=1), ValueError,
     r"shape is \(192, 128\), more queries than keys"),
    (lambda: patterns.from_block_scores(SCORES, block_size=16, shape=(96, 100), k=1), ValueError,
     "shape has n_keys 100, which takes 7 blocks of 16, but the layout has 8"),
    (lambda: patterns.moba(Q, K, chunk_size=0, top_k=1), ValueError, "chunk_size is 0; expected at least 1"),
    (lambda: patterns.moba(Q, K, chunk_size=8, top_k=1.5), TypeError, "top_k is float; expected a whole number"),
    (lambda: patterns.moba(Q.tolist(), K, chunk_size=8, top_k=1), TypeError, "q is list; expected a NumPy or CuPy"),
    (lambda: patterns.quest(Q, K, page_size=4, token_budget=0), ValueError, "token_budget is 0; expected at least 1"),
    (lambda: patterns.quest(Q, K, page_size=4, token_budget=9, force_last=1), TypeError, "force_last is 1; expected"),
    (lambda: patterns.nsa_selection(WEIGHTS, **NSA, select_block=6, n_selected=4), ValueError,
     "select_block is 6; expected a multiple of compress_stride=4"),
    (lambda: patterns.nsa_selection(WEIGHTS, **NSA, select_block=8, n_selected=2), ValueError,
     "n_selected is 2; expected at least 3: the first block, the own and the one before"),
    (lambda: patterns.nsa_selection(WEIGHTS[..., :20], **NSA, select_block=8, n_selected=3), ValueError,
     "probabilities has 20 compressed blocks; 90 tokens have 21 complete ones of 8 tokens, 4 apart"),
    (lambda: patterns.nsa_selection(WEIGHTS, **NSA | {"n_tokens": 80}, select_block=8, n_selected=3), ValueError,
     "probabilities is for 90 queries but n_tokens is 80"),
    (lambda: patterns.nsa_selection(WEIGHTS[:, :3], **NSA, select_block=8, n_selected=3), ValueError,
     "probabilities has 3 heads; expected a multiple of n_kv_heads=2"),
]


@pytest.mark.parametrize("call, error, message", REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
