"""Work on CuPy arrays: patterns joined and sliced, profiles, recommendations. Without a GPU on a stand-in."""

import functools
import sys

import numpy as np
import pytest

import sparseattn as sa
import strict_cupy
from sparseattn import Pattern, patterns
from sparseattn.counts import repeating
from sparseattn.index_ops import blocks
from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.target import Target
from sparseattn.kernels.gpu.usable import why_no_gpu
from sparseattn.pattern import devices
from sparseattn.profiling import families
from sparseattn.selection.topk import top_of_rows

N = 96


@pytest.fixture
def cupy(monkeypatch):
    """CuPy if it finds a GPU, else the stand-in."""
    return sys.modules["cupy"] if why_no_gpu() is None else strict_cupy.install(monkeypatch)


JOINED = {
    "|": lambda a, b: a | b, "&": lambda a, b: a & b, "-": lambda a, b: a - b, "T": lambda a, b: a.T,
    "slice": lambda a, b: a[:, :, 5:50, :60], "reblock": lambda a, b: a.reblock(16),
    "per_head": lambda a, b: Pattern.per_head([a, b]), "per_batch": lambda a, b: Pattern.per_batch([a, b]),
    "concatenate": lambda a, b: Pattern.concatenate([a, b], 3),
    "block_diagonal": lambda a, b: Pattern.block_diagonal([a, b]),
}


@pytest.mark.parametrize("name", JOINED)
def test_patterns_stay_on_their_device(name, cupy):
    pair = patterns.causal(N), patterns.strided(N, stride=7)
    there = JOINED[name](*(p.to("cuda") for p in pair))
    assert there.device.startswith("cuda")
    assert there.to("cpu") == JOINED[name](*pair)
    assert there.same_pairs(there) and not there.same_pairs(patterns.dense(N).to("cuda"))


def test_words_say_where_a_pattern_is(cupy):
    pattern = patterns.causal(N)
    assert repr(pattern.to("cuda")).splitlines()[0] == repr(pattern).splitlines()[0] + ", on cuda:0"


def test_patterns_of_two_devices_are_refused(cupy):
    with pytest.raises(ValueError, match=r"patterns lie on cpu and cuda:0; .*pattern.to\('cpu'\)"):
        patterns.causal(N).to("cuda") | patterns.dense(N)
    with pytest.raises(ValueError, match="lie on cpu and cuda:0"):
        Pattern.per_head([patterns.causal(N), patterns.dense(N).to("cuda")])
    nothing = Pattern.from_mask(np.zeros((N, N), bool))
    assert (patterns.causal(N).to("cuda") | nothing).device == "cuda:0"


def _probabilities(queries):
    return np.random.default_rng(3).random((1, 8, queries, 95), np.float32)


# of arrays (batch, heads, tokens, columns): q of 384 tokens, k as long, scores of blocks of 64
CHOSEN = {
    "top_k": lambda there, q, k, scores: patterns.top_k(there(q), there(k), n_selected=9, causal=True),
    "indexer_top_k": lambda there, q, k, scores: patterns.indexer_top_k(
        there(q), there(k[:, 0]), there(q[..., 0]), n_selected=20),
    "block scores": lambda there, q, k, scores: patterns.from_block_scores(there(scores), block_size=(1, 64), k=3),
    "block scores, short and not causal": lambda there, q, k, scores: patterns.from_block_scores(
        there(scores), block_size=(1, 64), k=3, shape=(384, 375), causal=False, force_diagonal=False),
    "NSA": lambda there, q, k, scores: patterns.nsa_selection(
        there(_probabilities(384)), n_kv_heads=1, n_tokens=384, compress_block=8, compress_stride=4, select_block=16,
        n_selected=5),
    "MoBA": lambda there, q, k, scores: patterns.moba(there(q), there(k), chunk_size=32, top_k=3),
    "MoBA of odd chunks": lambda there, q, k, scores: patterns.moba(
        there(q[:, :, :300]), there(k[:, :, :370]), chunk_size=25, top_k=4, block_size=(16, 64)),
    "best blocks": lambda there, q, k, scores: patterns.block_top_k(there(q), there(k), block_size=16, n_blocks=5),
    "LSH": lambda there, q, k, scores: patterns.lsh(
        there(q), n_buckets=[2, 6], n_hashes=3, chunk_length=32, causal=True),
    "LSH of odd chunks": lambda there, q, k, scores: patterns.lsh(
        there(q[:, :, :301]), there(k[:, :1, :301]), n_buckets=6, n_hashes=2, chunk_length=70, chunks_after=1,
        valid=scores[:, 0, :301, 0] < 0.8, block_size=(32, 64)),
    "LSH of one bucket": lambda there, q, k, scores: patterns.lsh(
        there(q), n_buckets=6, n_hashes=3, chunk_length=40, same_bucket=True),
    "clusters": lambda there, q, k, scores: patterns.clusters(there(q), there(q), q[0, :, :6], window=90),
    "clusters, causal": lambda there, q, k, scores: patterns.clusters(
        there(q[:, :, :300]), there(k[:, :1, :333]), q[0, :, :5], window=70, causal=True,
        valid=scores[:, 0, :333, 0] < 0.8, block_size=(32, 32)),
    "XAttention": lambda there, q, k, scores: patterns.xattention(
        there(q), there(k), stride=4, block_size=32, threshold=0.6),
    "sparge": lambda there, q, k, scores: patterns.sparge(there(q), there(k), tau=0.5, theta=-1),
    "few queries": lambda there, q, k, scores: patterns.quest(
        there(q[:, :, :2]), there(k), page_size=16, token_budget=64),
}


BY_MASS = "XAttention", "sparge"


@pytest.mark.parametrize("kind", ["lists", "tiles"])
def test_copies_of_a_pair_stay_apart(kind, cupy):
    counts = np.random.default_rng(5).integers(0, 4, (40, 40))
    parts = [Pattern.from_mask(counts >= least, block_size=1 if kind == "lists" else 8).parts[0] for least in (1, 2, 3)]
    here = repeating(parts, (40, 40), 1, 1)
    target = Target("some", 64, lambda kernel, *_: (64,), None)
    for there in (here.to("cuda"), here.to("cuda").to("cpu"), devices.move(here.to("cuda"), "cpu")):
        convert = np.asarray if there.device == "cpu" else cupy.asarray
        for kv in (None, 0, 1):
            assert len(_walks(there, target, kv, convert)) == len(_walks(here, target, kv, np.asarray)) == 3


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_chosen_is_walked_where_it_is_chosen(name, cupy):
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, 2, 384, 8)).astype(np.float32) for _ in range(2))
    scores = rng.random((2, 2, 384, 6)).astype(np.float32)
    wanted = CHOSEN[name](np.asarray, q, k, scores)
    strict_cupy.fetched.clear()
    pattern = CHOSEN[name](cupy.asarray, q, k, scores)
    target = Target("some", 64, lambda kernel, *_: (64,), None)
    there = [walk for kv in (None, 0, 1) for walk in _walks(pattern, target, kv, cupy.asarray)]
    assert max(strict_cupy.fetched, default=0) < 384  # of the stand-in: counts and masks, nothing by query
    here = [walk for kv in (None, 0, 1) for walk in _walks(pattern.to("cpu"), target, kv, np.asarray)]
    assert pattern.device.startswith("cuda")
    # a GPU adds in another order, and may need a block more or less; the stand-in has version 0
    if name not in BY_MASS or cupy.__version__ == "0":
        assert pattern.to("cpu").same_pairs(wanted) and pattern.T.to("cpu").same_pairs(wanted.T)
        assert name == "NSA" or pattern.to("cpu") == wanted  # on a GPU heads that share a choice are rows of a tile
        assert pattern.check() is pattern
    for ours, theirs in zip(there, here, strict=True):
        for field in ("places", "items", "n_places", "n_items", "n_slots", "n_groups", "covers"):
            np.testing.assert_array_equal(_host(getattr(ours, field)), getattr(theirs, field))
        for own, expected in zip(_by_block(ours), _by_block(theirs), strict=True):
            assert (own is None) == (expected is None)
            if own is not None:
                assert own.dtype == expected.dtype
                np.testing.assert_array_equal(own, expected)


def _by_block(walk):
    """The tables of a walk on the CPU, masks block by block: a GPU does not look which are alike."""
    x_order, y_order, indices, ids, masks, live = (None if x is None else _host(x) for x in walk.tables)
    return x_order, y_order, indices, masks[ids], None if walk.structure.is_row else live[ids]


def test_lists_are_transposed_on_their_gpu(monkeypatch):
    cupy, sort, where = strict_cupy.install(monkeypatch), blocks.stable_order, []
    monkeypatch.setattr(blocks, "stable_order", lambda *given: where.append(len(strict_cupy.entered)) or sort(*given))
    q = np.random.default_rng(0).standard_normal((1, 1, 90, 8), np.float32)
    pattern = patterns.top_k(cupy.asarray(q), cupy.asarray(q), n_selected=5)
    assert not strict_cupy.entered and pattern.T.device == "cuda:0" and where == [1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_cols, n_selected", [(1, 1), (700, 20), (3000, 2999), (70000, 64)])
def test_largest_of_rows(n_cols, n_selected, dtype, cupy):
    rng = np.random.default_rng(0)
    limits = np.array([n_cols, n_cols // 2, 0, n_cols + 3])
    shape = 3, 4, n_cols
    for scores in (rng.standard_normal(shape), rng.integers(-3, 3, shape) * 0.5, np.zeros(shape)):
        scores[..., ::5] = rng.choice([np.nan, np.inf, -np.inf, 0, -0.0], scores[..., ::5].shape)
        scores = scores.astype(dtype)
        got = top_of_rows(cupy.asarray(scores), n_selected, limits)
        np.testing.assert_array_equal(got.get(), top_of_rows(scores, n_selected, limits))


def _walks(pattern, target, kv, convert):
    made = (layout.forward_structures(pattern, target, 16, 32) if kv is None
            else layout.backward_structures(pattern, target, 16, 32, kv))
    n_kv_heads = pattern.n_heads
    return [walk for structure in made
            for walk in layout.walks(pattern, structure, 2, 8 * n_kv_heads, n_kv_heads, kv or 0, convert)]


def _host(x):
    return x.get() if hasattr(x, "get") else x


@pytest.fixture
def heads():
    """q, k, v of a head that looks nearby, one at a few keys, and two at random."""
    q, k, v = (np.random.default_rng(i).standard_normal((2, 4, N, 16)).astype(np.float32) for i in range(3))
    angles = np.arange(N)[:, None] * np.linspace(0.2, 2, 8)
    q[:, 0] = k[:, 0] = 3 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    q[:, 1], k[:, 1, ::11] = 2, 2
    return q, k, v


def test_a_profile_and_what_it_recommends(cupy, heads):
    there = [cupy.asarray(x) for x in heads]
    found, wanted = (sa.profile(*x, causal=True) for x in (there, heads))
    for name in ("entropy", "distance", "oracle_recall", "recall"):
        np.testing.assert_allclose(getattr(found.rows, name), getattr(wanted.rows, name), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.output_error, wanted.output_error, rtol=1e-2, atol=1e-4)
    ours, theirs = sa.recommend(found), sa.recommend(wanted)
    assert [head.choice for head in ours.heads] == [head.choice for head in theirs.heads]
    assert len({head.choice for head in ours.heads}) > 1
    pattern = ours.build(*there[:2])
    assert pattern.device.startswith("cuda") and pattern.to("cpu").same_pairs(theirs.build(*heads[:2]))
    assert ours.pattern.same_pairs(pattern)
    out = sa.attend(*there, pattern)
    assert np.abs(out.get() - sa.attend(*heads, theirs.pattern)).max() < 1e-4


CHOOSING = {"top_keys": {"n": 8}, "top_blocks": {"block": 16, "n": 3, "near": 1},
            "pages": {"page": 16, "n": 3, "size": 16}, "vertical_slash": {"vertical": 8, "slash": 8}}


@pytest.mark.parametrize("name", families.DYNAMIC)
def test_families_that_look_at_the_arrays(name, cupy, heads):
    build = functools.partial(families.DYNAMIC[name], causal=True, scale=None, **CHOOSING[name])
    assert build(*map(cupy.asarray, heads[:2])).to("cpu").same_pairs(build(*heads[:2]))


def test_measured_times(cupy, heads):
    near = patterns.sliding_window(N, left=9)
    profile = sa.profile(*map(cupy.asarray, heads), causal=True, candidates=[near, patterns.causal(N)])
    chosen = sa.recommend(profile, cost="measured", max_error=0.5)
    assert all(head.share > 0 for head in chosen.heads)
