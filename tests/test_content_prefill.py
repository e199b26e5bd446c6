"""The prefill estimators against their rules pair by pair, published results, laws and bad calls."""

import itertools

import numpy as np
import pytest

import oracle
import prefill_oracle
import sparseattn as sa
from sparseattn import Pattern, patterns
from sparseattn.patterns.content import inputs
from sparseattn.selection import pooling
from test_goldens import load


def arrays(batch, n_heads, n_kv_heads, n_queries, n_keys, head_dim=8, dtype=np.float64, seed=0):
    """q, k, v whose heads differ in character: a few heavy keys, a few heavy distances, blocks alike."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((batch, h, n, head_dim)) for h, n in ((n_heads, n_queries), (n_kv_heads, n_keys),
                                                                          (n_kv_heads, n_keys)))
    k[..., rng.integers(0, n_keys, 5), :] *= 3
    topics = rng.standard_normal((batch, n_kv_heads, -(-n_keys // 32), head_dim)).repeat(32, 2)[:, :, :n_keys]
    k[:, ::2] += topics[:, ::2]
    q += 1.5 * topics.repeat(n_heads // n_kv_heads, 1)[:, :, n_keys - n_queries:]
    return tuple(x.astype(dtype) for x in (q, k, v))


CASES = [
    ("vertical_slash", (1, 2, 2, 300, 300), {"n_vertical": 40, "n_slash": 60, "n_recent": 20}),
    ("vertical_slash", (2, 4, 2, 150, 277), {"n_vertical": 35, "n_slash": 110, "last_q": 17}),
    ("vertical_slash", (1, 2, 1, 131, 131), {"n_vertical": 0, "n_slash": 0, "n_recent": 3, "n_first": 0, "scale": 2.0}),
    ("vertical_slash", (1, 2, 1, 40, 40), {"n_vertical": 100, "n_slash": 10}),
    ("vertical_slash", (1, 2, 1, 500, 500), {"n_vertical": 30, "n_slash": 150, "n_recent": 0, "n_first": 2}),
    ("vertical_slash", (1, 1, 1, 1, 200), {"n_vertical": 33, "n_slash": 50}),
    ("vertical_slash", (1, 2, 2, 300, 300), {"n_vertical": 31, "n_slash": 51, "exact": False, "n_recent": 10}),
    ("vertical_slash", (2, 4, 2, 150, 477), {"n_vertical": 31, "n_slash": 55, "exact": False, "n_recent": 10}),
    ("vertical_slash", (1, 1, 1, 3, 200), {"n_vertical": 30, "n_slash": 50, "exact": False, "n_recent": 0}),
    ("xattention", (2, 4, 2, 160, 160), {"block_size": 16, "stride": 4, "threshold": 0.7}),
    ("xattention", (1, 2, 1, 101, 181), {"block_size": 16, "stride": 8, "threshold": [0.5, 0.9]}),
    ("xattention", (1, 2, 2, 205, 205), {"block_size": 32, "stride": 4, "threshold": 0.4, "scale": 1.0}),
    ("xattention", (1, 1, 1, 300, 300), {"stride": 16, "threshold": 0.0}),
    ("sparge", (2, 4, 2, 700, 700), {"tau": 0.6, "theta": 0.0}),
    ("sparge", (1, 2, 1, 300, 777), {"tau": 0.8, "theta": 0.3, "scale": 1.5}),
    ("sparge", (1, 2, 2, 130, 513), {"tau": 0.0, "theta": -1}),
    ("flex_prefill", (2, 4, 2, 256, 256), {"gamma": 0.7, "tau": 0.0, "block_size": 16}),
    ("flex_prefill", (2, 4, 2, 250, 250), {"gamma": 0.8, "tau": 1.0, "block_size": 16}),
    ("flex_prefill", (1, 4, 1, 155, 251), {"gamma": 0.9, "tau": 0.3, "block_size": 32, "scale": 1.0}),
    ("flex_prefill", (1, 2, 1, 200, 200),
     {"gamma": 0.95, "tau": 0.1, "block_size": 8, "min_budget": 25, "max_budget": 60}),
    ("flex_prefill", (1, 2, 1, 90, 90), {"gamma": 0.5, "tau": 1.0, "block_size": 8, "min_budget": 20}),
]
NAMES = [f"{name}-{'-'.join(map(str, shape))}-{number}" for number, (name, shape, _) in enumerate(CASES)]


@pytest.mark.parametrize("name, shape, options", CASES, ids=NAMES)
def test_choice(name, shape, options):
    q, k, _ = arrays(*shape)
    pattern = getattr(patterns, name)(q, k, **options)
    expected = getattr(prefill_oracle, name)(q, k, **options)
    assert (pattern.batch, pattern.n_heads) == expected.shape[:2]
    assert np.array_equal(pattern.to_dense(), expected)
    assert pattern.nnz == expected.sum()
    pattern.check()


@pytest.mark.parametrize("name, shape, options", CASES, ids=NAMES)
def test_attention_over_the_choice(name, shape, options, backend):
    q, k, v = arrays(*shape, dtype=np.float32)
    pattern = getattr(patterns, name)(q, k, **options)
    mask, dout = pattern.to_dense(), np.random.default_rng(1).standard_normal(q.shape, dtype=np.float32)
    out, vjp = sa.vjp(q, k, v, pattern, backend=backend)
    assert np.abs(out - oracle.attention(q, k, v, mask)[0]).max() < 1e-5
    for got, expected in zip(vjp(dout), oracle.gradients(dout, q, k, v, mask)):
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_xattention_of_the_published_code(backend):
    z, params = load("xattention")
    pattern = patterns.xattention(z["q"], z["k"], block_size=params["block_size"], stride=params["stride"],
                                  threshold=params["threshold"], scale=params["scale"])
    size, n = params["block_size"], z["q"].shape[2]
    chosen = np.unpackbits(z["selected_bits"], axis=-1)[..., : -(-n // size)].astype(bool)
    expected = chosen.repeat(size, 2).repeat(size, 3)[..., :n, :n] & np.tri(n, dtype=bool)
    assert np.array_equal(pattern.to_dense(), expected)
    out = sa.attend(z["q"], z["k"], z["v"], pattern, scale=params["scale"], backend=backend)
    assert np.abs(out - z["out"]).max() <= 2e-5


def test_candidates_of_the_published_search():
    """Mass captured by the six candidates of MInference's search, whose kernels of distances begin with 30."""
    z, params = load("minference_search")
    q, k, n, first = z["q"], z["k"], z["q"].shape[2], 2500
    kinds = {
        "stream_llm": lambda sinks, reach: patterns.sliding_window(n, left=reach)
            | patterns.global_tokens(n, range(sinks)) & patterns.causal(n),
        "vertical_and_slash": lambda columns, slashes: patterns.vertical_slash(
            q, k, n_vertical=columns, n_slash=slashes, last_q=params["last_q"],
            n_recent=params["local_diagonals"], n_first=params["sink_columns"]),
        "block_sparse": lambda share, _: best_blocks(q, k, params["block"], share),
    }
    dense = lse_of_rows(q, k, patterns.causal(n), first)
    for (kind, a, b), expected in zip(params["candidates"], z["recall"]):
        captured = np.exp(lse_of_rows(q, k, kinds[kind](a, b), first) - dense).mean()
        assert abs(captured - expected) < 1e-6, (kind, a, b)


def lse_of_rows(q, k, pattern, first):
    return sa.attend(q[:, :, first:], k, k, pattern[:, :, first:], return_lse=True)[1].astype(np.float64)


def best_blocks(q, k, block, share):
    """The best 1 / share of key blocks by the product of means, for each query block; the own block competes."""
    rows, cols = (x[0, 0].reshape(-1, block, x.shape[3]).mean(1) for x in (q, k))
    score = np.where(np.tri(len(rows), dtype=bool), rows @ cols.T, -np.inf)
    layout = np.zeros(score.shape, bool)
    np.put_along_axis(layout, np.argsort(-score, 1, kind="stable")[:, : len(rows) // share], True, 1)
    return Pattern.from_blocks(layout, block_size=block) & patterns.causal(q.shape[2])


def test_everything_is_plain_causal_attention():
    q, k, _ = arrays(1, 2, 1, 300, 300)
    causal = patterns.causal(300)
    for pattern in (patterns.sparge(q, k, tau=1, theta=-1), patterns.sparge(q, k, tau=0, theta=1),
                    patterns.xattention(q, k, block_size=32, stride=8, threshold=1),
                    patterns.flex_prefill(q, k, gamma=1, tau=1, block_size=32),
                    patterns.vertical_slash(q, k, n_vertical=300, n_slash=50)):
        assert pattern.same_pairs(causal)


def test_more_is_a_superset():
    q, k, _ = arrays(1, 2, 2, 512, 512)
    chains = [
        [patterns.xattention(q, k, block_size=32, stride=8, threshold=t) for t in (0.2, 0.6, 0.9)],
        [patterns.sparge(q, k, tau=t, theta=-1) for t in (0.2, 0.6, 0.9)],
        [patterns.flex_prefill(q, k, gamma=g, tau=0, block_size=32) for g in (0.2, 0.6, 0.95)],
        [patterns.vertical_slash(q, k, n_vertical=30, n_slash=50, n_recent=9, exact=e) for e in (True, False)],
    ]
    for chain in chains:
        assert all((few - many).nnz == 0 and few.nnz < many.nnz for few, many in itertools.pairwise(chain))


def test_ties_go_to_the_lower_index():
    q = k = np.zeros((1, 1, 320, 4), np.float32)
    lines = patterns.vertical_slash(q, k, n_vertical=40, n_slash=50, n_first=0, n_recent=0, last_q=1)
    i, j = np.arange(320)[:, None], np.arange(320)
    assert np.array_equal(lines.to_dense()[0, 0], ((j < 40) | (i - j < 50)) & (j <= i))
    blocks = patterns.xattention(q, k, block_size=32, stride=8, threshold=0.55)
    assert np.flatnonzero(blocks.to_dense()[0, 0, -1, ::32]).tolist() == [0, 1, 2, 3, 4, 9]
    assert np.flatnonzero(patterns.sparge(q, k, tau=0.7, theta=-1).to_dense()[0, 0, -1, ::64]).tolist() == [0, 1, 2, 4]


def test_keys_that_are_no_numbers_hold_no_mass():
    q, k, _ = arrays(1, 1, 1, 256, 256, dtype=np.float32)
    k[:, :, 96:128] = np.nan
    lines = patterns.vertical_slash(q, k, n_vertical=200, n_slash=50, n_recent=0).to_dense()[0, 0]
    assert lines[-1].sum() >= 200 and lines[128:, 96:128].sum(0).max() <= 50  # by their distance alone
    blocks = patterns.xattention(q, k, block_size=32, stride=8, threshold=1).to_dense()[0, 0]
    assert not blocks[128:, 96:128].any() and blocks[128:, :96].all()
    maps = patterns.flex_prefill(q, k, gamma=0.5, tau=0, block_size=32).to_dense()[0, 0]
    assert 0 < maps.sum() < 256 * 257 / 2


def test_axes_and_dtypes():
    q, k, _ = arrays(1, 2, 1, 256, 256, dtype=np.float16)
    builds = [lambda q, k: patterns.xattention(q, k, block_size=32, stride=8, threshold=0.6),
              lambda q, k: patterns.sparge(q, k, tau=0.6, theta=0.1),
              lambda q, k: patterns.flex_prefill(q, k, gamma=0.6, tau=0.2, block_size=32),
              lambda q, k: patterns.vertical_slash(q, k, n_vertical=30, n_slash=50, n_recent=5)]
    for build in builds:
        pattern = build(q, k)
        assert build(q.astype(np.float32), k.astype(np.float32)) == pattern
        assert build(q[0], k[0]) == pattern
        assert build(q[0, 1], k[0, 0]) == pattern[:, 1:2]
        assert build(q[:, :, ::1], k) == pattern and build(*(x[..., ::-1].copy()[..., ::-1] for x in (q, k))) == pattern


def test_rows_scored_together_change_nothing(monkeypatch):
    q, k, _ = arrays(1, 2, 1, 285, 397)
    whole = patterns.xattention(q, k, block_size=16, stride=4, threshold=0.7)
    monkeypatch.setattr(pooling, "ROWS", 8)
    assert patterns.xattention(q, k, block_size=16, stride=4, threshold=0.7) == whole


def test_block_size_of_the_tiles_changes_no_pair():
    q, k, _ = arrays(1, 2, 1, 300, 300)
    for build in (lambda **b: patterns.sparge(q, k, tau=0.5, theta=0, **b),
                  lambda **b: patterns.vertical_slash(q, k, n_vertical=40, n_slash=60, n_recent=9, **b)):
        assert build(block_size=32).same_pairs(build())
        assert {p.block_size for p in build(block_size=32).parts} == {(32, 32)}


def test_no_queries():
    q, k = np.zeros((1, 2, 0, 4), np.float32), np.zeros((1, 2, 128, 4), np.float32)
    for pattern in (patterns.xattention(q, k, block_size=32, stride=8, threshold=0.6),
                    patterns.sparge(q, k, tau=0.6, theta=0.1), patterns.flex_prefill(q, k, gamma=0.6, tau=0.2),
                    patterns.vertical_slash(q, k, n_vertical=30, n_slash=50),
                    patterns.vertical_slash(q, k, n_vertical=30, n_slash=50, exact=False)):
        assert pattern.shape == (0, 128) and pattern.nnz == 0


def test_blocks_share_masks():
    """What is stored grows with the chosen blocks, not with pairs."""
    q, k, _ = arrays(1, 2, 2, 2048, 2048, dtype=np.float32)
    for pattern in (patterns.xattention(q, k, stride=16, threshold=0.9), patterns.sparge(q, k, tau=0.9, theta=-1),
                    patterns.flex_prefill(q, k, gamma=0.9, tau=0.1)):
        assert all(part.masks is None or len(part.masks) <= 3 for part in pattern.parts)
    lines = patterns.vertical_slash(q, k, n_vertical=100, n_slash=100, n_recent=100)
    assert lines.density_in_tiles > 0.7
    assert sum(len(p.masks) for p in lines.parts if getattr(p, "masks", None) is not None) < 200


GOOD = arrays(1, 2, 1, 128, 128, dtype=np.float32)[:2]
OPTIONS = {"xattention": {"block_size": 32, "stride": 8, "threshold": 0.5}, "sparge": {"tau": 0.5, "theta": 0.0},
           "flex_prefill": {"gamma": 0.5, "tau": 0.1, "block_size": 32},
           "vertical_slash": {"n_vertical": 4, "n_slash": 4}}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("change, error, words", [
    (lambda q, k: (q, k.astype(np.float64)), TypeError, "q has dtype float32 but k float64"),
    (lambda q, k: (q.astype(int), k), TypeError, "q has dtype int64; expected float16, bfloat16, float32 or float64"),
    (lambda q, k: (q.tolist(), k), TypeError, "q is list; expected a NumPy or CuPy array"),
    (lambda q, k: (q, k[0]), ValueError, "q has 4 axes but k 3"),
    (lambda q, k: (q[None], k[None]), ValueError, "q has shape (1, 1, 2, 128, 8)"),
    (lambda q, k: (q, k[..., :4]), ValueError, "q has head_dim 8 but k 4"),
    (lambda q, k: (q, np.concatenate([k, k])), ValueError, "q has batch 1 but k 2"),
    (lambda q, k: (q, k.repeat(3, 1)), ValueError, "q has 2 heads but k has 3"),
    (lambda q, k: (q, k[:, :, :64]), ValueError, "q has 128 tokens but k only 64"),
])
def test_bad_arrays(name, change, error, words):
    with pytest.raises(error) as caught:
        getattr(patterns, name)(*change(*GOOD), **OPTIONS[name])
    assert words in str(caught.value)


@pytest.mark.parametrize("name, options, error, words", [
    ("xattention", {"stride": 12}, ValueError, "expected one size for queries and keys, a multiple of stride"),
    ("xattention", {"stride": 0}, ValueError, "stride is 0; expected at least 1"),
    ("xattention", {"block_size": (32, 16)}, ValueError, "expected one size for queries and keys"),
    ("xattention", {"threshold": 1.5}, ValueError, "threshold is 1.5; expected a finite number from 0 to 1"),
    ("xattention", {"threshold": [0.5] * 3}, ValueError, "threshold has shape (3,); expected one number, or 2"),
    ("xattention", {"threshold": "high"}, TypeError, "threshold is 'high'; expected a number"),
    ("xattention", {"scale": np.nan}, ValueError, "scale is nan; expected a finite number"),
    ("sparge", {"tau": -0.1}, ValueError, "tau is -0.1; expected a finite number from 0 to 1"),
    ("sparge", {"theta": 2}, ValueError, "theta is 2; expected a finite number from -1 to 1"),
    ("sparge", {"block_size": 0}, ValueError, "expected sides from 1 to 4096"),
    ("flex_prefill", {"gamma": 2}, ValueError, "gamma is 2; expected a finite number from 0 to 1"),
    ("flex_prefill", {"block_size": (8, 4)}, ValueError, "expected one size for queries and keys"),
    ("flex_prefill", {"min_budget": 0}, ValueError, "min_budget is 0; expected at least 1"),
    ("flex_prefill", {"min_budget": 64, "max_budget": 32}, ValueError, "max_budget is 32, less than min_budget 64"),
    ("vertical_slash", {"n_vertical": -1}, ValueError, "n_vertical is -1; expected a whole number from 0"),
    ("vertical_slash", {"last_q": 0}, ValueError, "last_q is 0; expected at least 1"),
    ("vertical_slash", {"scale": True}, TypeError, "scale is True; expected a number"),
])
def test_bad_options(name, options, error, words):
    with pytest.raises(error) as caught:
        getattr(patterns, name)(*GOOD, **OPTIONS[name] | options)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["xattention", "flex_prefill"])
def test_keys_before_the_queries_are_whole_blocks(name):
    q, k = GOOD
    with pytest.raises(ValueError, match="not whole blocks of 32; give the queries from token 32 on"):
        getattr(patterns, name)(q[:, :, 50:], k, **OPTIONS[name])
    whole, tail = (getattr(patterns, name)(q[:, :, at:], k, **OPTIONS[name]) for at in (0, 64))
    if name == "xattention":  # a row of blocks asks nothing of the others
        assert tail.same_pairs(whole[:, :, 64:])


def test_arrays_of_two_libraries_are_refused(monkeypatch):
    q, k = GOOD
    monkeypatch.setattr(inputs, "library", lambda x: "cupy" if x is k else "numpy")
    with pytest.raises(TypeError, match="q is a numpy array but k a cupy array; move them to one: cupy.asarray or"):
        patterns.sparge(q, k, **OPTIONS["sparge"])
