"""What candidates capture and lose, against dense weights with the pattern's pairs; profiles side by side and in files.
"""

import sys

import numpy as np
import planted
import pytest
from families import TABLE
from test_content_prefill import best_blocks
from test_goldens import load
from test_profile import inputs, softmax

import sparseattn as sa
from sparseattn import patterns
from sparseattn.profiling.candidates import Candidate


def judged(q, k, v, mask, causal, scale=0.25, valid=None):
    """(recall, kept keys, outputs of the pattern and dense ones), by definition."""
    p, allowed = softmax(q, k, scale, causal, valid)
    mask = np.broadcast_to(mask, (mask.shape[0], *p.shape[1:])) if mask.shape[1] == 1 else np.repeat(
        mask, p.shape[1] // mask.shape[1], axis=1)
    kept = np.where(mask & allowed, p, 0)
    recall = np.where(allowed.any(axis=-1), kept.sum(axis=-1), np.nan)
    values = np.repeat(np.asarray(v, np.float64), p.shape[1] // v.shape[1], axis=1)
    out = kept @ values / np.where(kept.sum(axis=-1) > 0, kept.sum(axis=-1), 1)[..., None]
    return recall, (mask & allowed).sum(axis=-1), out, np.nan_to_num(p) @ values, p


CASES = [case for case in TABLE if min(case.mask.shape[2:]) > 2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family(case):
    batch, n_heads, n_queries, n_keys = case.mask.shape
    q, k, v = inputs((batch, 2 * n_heads, n_queries, 16), n_heads, n_keys)
    rows = np.arange(1, n_queries, 3)
    causal = n_queries <= n_keys and n_queries % 2 == 0
    profile = sa.profile(q, k, v, causal=causal, rows=rows, candidates=[case.build()])
    recall, kept, out, dense, _ = (x[:, :, rows] for x in judged(q, k, v, case.mask, causal))
    np.testing.assert_allclose(profile.rows.recall[0], recall, rtol=1e-11, atol=1e-12)
    assert np.array_equal(profile.rows.kept[0], kept)
    wanted = np.linalg.norm(out - dense, axis=(2, 3)) / np.linalg.norm(dense, axis=(2, 3))
    np.testing.assert_allclose(profile.output_error[0], wanted, rtol=1e-10, atol=1e-12)


def test_every_measure():
    q, k, v = inputs()
    pattern = patterns.sliding_window(150, left=9, right=4) | patterns.global_tokens(150, [0, 70])
    profile = sa.profile(q, k, v, causal=True, candidates={"near": pattern, "all": patterns.causal(150)})
    recall, _, out, dense, p = judged(q, k, v, pattern.to_dense(), True)
    error = np.linalg.norm(out - dense, axis=-1) / np.linalg.norm(dense, axis=-1)
    cosine = (out * dense).sum(axis=-1) / np.linalg.norm(out, axis=-1) / np.linalg.norm(dense, axis=-1)
    with np.errstate(invalid="ignore"):
        without = np.where(p[..., 0] < 1, (recall - p[..., 0]) / (1 - p[..., 0]), np.nan)
    found = {"recall": recall, "row_error": error, "cosine": cosine, "recall_without_sink": without}
    for name, wanted in found.items():
        np.testing.assert_allclose(getattr(profile.rows, name)[0], wanted, rtol=1e-9, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(getattr(profile, name)[0], np.nanmean(wanted, axis=-1), rtol=1e-9, atol=1e-10)
    l1 = abs(out - dense).sum(axis=(2, 3)) / abs(dense).sum(axis=(2, 3))
    np.testing.assert_allclose(profile.l1_error[0], l1, rtol=1e-10)
    np.testing.assert_allclose(profile.largest_row_error[0], error.max(axis=-1), rtol=1e-9)
    np.testing.assert_allclose(profile.recall_low[0], np.quantile(recall, 0.05, axis=-1), rtol=1e-10)
    assert profile.recall[1].min() > 1 - 1e-12 and profile.output_error[1].max() < 1e-12
    assert [c.name for c in profile.candidates] == ["near", "all"]


def test_efficiency():
    q, k, v = inputs((1, 2, 128, 16), 2, 128)
    first = sa.Pattern.from_ranges(np.zeros(128, int), np.full(128, 16), 128)
    candidates = {"best": patterns.top_k(q, k, n_selected=16), "first": first, "dense": patterns.dense(128),
                  "more": sa.Pattern.from_ranges(np.zeros(128, int), np.full(128, 24), 128)}
    profile = sa.profile(q, k, v, candidates=candidates)
    oracle = profile.rows.oracle_recall
    eighth, quarter = (oracle[..., profile.shares.index(x)] for x in (1 / 8, 1 / 4))
    np.testing.assert_allclose(profile.efficiency[[0, 2]], 1.0, rtol=1e-6)
    np.testing.assert_allclose(profile.efficiency[1], (profile.rows.recall[1] / eighth).mean(axis=-1), rtol=1e-9)
    between = profile.rows.recall[3] / (eighth + quarter) * 2  # 24 of 128 keys lie in the middle
    np.testing.assert_allclose(profile.efficiency[3], between.mean(axis=-1), rtol=1e-9)


@pytest.mark.parametrize("plain", [True, False])
def test_progress(plain, capsys, monkeypatch):
    if plain:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    else:
        pytest.importorskip("rich")
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what is no terminal for one
    q, k, _ = inputs((1, 2, 30, 8), 2, 30)
    sa.profile(q, k, candidates=[patterns.dense(30)], progress=True)
    shown = capsys.readouterr()
    assert ("rows" if plain else "100%") in shown.err and not shown.out
    sa.profile(q, k, candidates=[], progress=False)
    sa.profile(q, k, candidates=[])
    assert capsys.readouterr().err == ""


def test_candidates_and_padding():
    q, k, v = inputs()
    valid = np.ones((2, 150), bool)
    valid[0, 100:] = valid[1, :20] = False
    for x in (q, k, v):
        x[0, :, 100:] = np.nan
    pattern = patterns.sliding_window(150, left=30, right=30)
    profile = sa.profile(q, k, v, valid=valid, candidates=[pattern])
    clean = [np.nan_to_num(x) for x in (q, k, v)]
    recall, _, out, dense, _ = judged(*clean, pattern.to_dense(), False, valid=valid)
    there = valid[:, None, :] & np.ones((2, 4, 1), bool)
    np.testing.assert_allclose(profile.rows.recall[0][there], recall[there], rtol=1e-11)
    assert np.isnan(profile.rows.recall[0][~there]).all()
    error, whole = (np.where(there[..., None], x, 0) for x in (out - dense, dense))
    wanted = np.linalg.norm(error, axis=(2, 3)) / np.linalg.norm(whole, axis=(2, 3))
    np.testing.assert_allclose(profile.output_error[0], wanted, rtol=1e-10)


def test_published_search():
    """Recalls of the six candidates of MInference's search, on queries from 2,500 on."""
    z, params = load("minference_search")
    q, k, n = z["q"], z["k"], z["q"].shape[2]
    kinds = {
        "stream_llm": lambda sinks, reach: patterns.sliding_window(n, left=reach)
            | sa.Pattern.from_ranges(np.zeros(n, int), np.full(n, sinks), n),
        "vertical_and_slash": lambda columns, slashes: patterns.vertical_slash(
            q, k, n_vertical=columns, n_slash=slashes, last_q=params["last_q"],
            n_recent=params["local_diagonals"], n_first=params["sink_columns"]),
        "block_sparse": lambda share, _: best_blocks(q, k, params["block"], share),
    }
    candidates = [kinds[kind](a, b) for kind, a, b in params["candidates"]]
    profile = sa.profile(q, k, causal=True, scale=params["scale"], rows=np.arange(2500, n), candidates=candidates)
    np.testing.assert_allclose(profile.recall[:, 0, 0], z["recall"], atol=1e-6)
    best = profile.recall[:, 0, 0].argmax()
    assert params["candidates"][best] == params["best"]


def test_heads_apart_and_together_are_judged_alike():
    q, k, v = inputs((1, 4, 128, 16), 2, 128)
    columns = [[1, 5], [60, 61], [3, 90], [7, 8]]
    apart = [Candidate("top", "top_keys", {"n": 8}), Candidate("columns", "columns", {"columns": columns, "size": 4})]
    whole = [c.build(q, k, True, 0.25) for c in apart]
    profile = sa.profile(q, k, v, causal=True, candidates=[*apart, *whole])
    assert np.array_equal(profile.rows.recall[:2], profile.rows.recall[2:])
    assert np.array_equal(profile.output_error[:2], profile.output_error[2:])
    assert np.array_equal(profile.costs.kept[:2], profile.costs.kept[2:])


def test_functions_and_defaults():
    q, k, v = planted.heads(256, ("local", "strided", "diffuse"))
    calls = []

    def own(q, k):
        calls.append(q.shape)
        return patterns.sliding_window(q.shape[2], left=3)

    profile = sa.profile(q, k, v, causal=True, candidates=[("own", own)])
    assert calls == [q.shape] and profile.candidates[0].dynamic
    default = sa.profile(q, k, v, causal=True)
    names = [c.name for c in default.candidates]
    assert len(names) > 20 and f"stride {planted.STRIDE} + window 16" in names
    assert (np.isfinite(default.output_error)).all() and (default.output_error[names.index("dense")] < 1e-6).all()
    without = sa.profile(q, k, causal=True, candidates=[patterns.causal(256)])
    assert without.output_error is None and without.rows.row_error is None and without.recall.min() > 1 - 1e-6


def test_kinds():
    n = 600
    q, k, v = planted.heads(n, noise=0.02)
    profile = sa.profile(q, k, v, causal=True, candidates=[])
    found = dict(zip(planted.KINDS, profile.kinds))
    assert "local" in found["local"] and "sink" in found["sink"] and "broad" in found["diffuse"]
    assert {"previous token", "positional"} <= set(found["previous"])
    assert not found["clustered"] and "sink" not in found["column"] and "local" not in found["strided"]
    turned = sa.profile(k[:, -1:], q[:, -1:], candidates=[])
    assert "next token" in turned.kind(0)


def test_targets():
    n = 300
    q, k, v = planted.heads(n, ("strided", "diffuse", "previous"), noise=0.02)
    targets = np.arange(n) - 1
    targets[:100] = -1
    profile = sa.profile(q, k, v, causal=True, candidates=[], targets=targets)
    p, _ = softmax(q, k, 1 / 8, True)
    weight = p[0][:, np.arange(100, n), targets[100:]]
    hit = p[0][:, 100:].argmax(axis=-1) == targets[100:]
    np.testing.assert_allclose(profile.rows.target_weight[0, :, 100:], weight, rtol=1e-4)
    assert np.array_equal(profile.rows.target_hit[0, :, 100:], hit)
    assert np.isnan(profile.rows.target_hit[..., :100]).all()
    np.testing.assert_allclose(profile.target_hit[0], hit.mean(axis=-1))
    assert {"retrieval", "induction"} <= set(profile.kind(2))
    assert not {"retrieval", "induction"} & set(profile.kind(0) + profile.kind(1))


def two_profiles(**options):
    pattern = patterns.sliding_window(120, left=12)
    return [sa.profile(*inputs((1, 3, 120, 16), 1, 120, seed=seed), causal=True, candidates={"near": pattern},
                       rows=np.arange(seed, 120), **options) for seed in (1, 2)]


def test_combined():
    a, b = two_profiles()
    mean, worst = sa.Profile.combine([a, b]), sa.Profile.combine([a, b], "worst")
    for name in ("entropy", "distance", "keys_at_mass", "recall", "max_weight", "output_error"):
        x, y = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(getattr(mean, name), (x + y) / 2, err_msg=name)
        least = name in ("recall", "max_weight")
        np.testing.assert_allclose(getattr(worst, name), np.minimum(x, y) if least else np.maximum(x, y), err_msg=name)
    assert mean.rows.entropy.shape == (1, 3, a.row_positions.size + b.row_positions.size)
    assert mean.rows.recall.shape == (1, 1, 3, mean.row_positions.size)
    assert mean.parts == (a, b) and sa.Profile.combine([mean, a]).parts == (a, b, a) and a.parts == (a,)
    np.testing.assert_allclose(mean.column_mean, (a.column_mean + b.column_mean) / 2)
    np.testing.assert_allclose(mean.distance_curve, (a.distance_curve + b.distance_curve) / 2)
    np.testing.assert_allclose(mean.column_profile[..., 1:], (a.column_profile + b.column_profile)[..., 1:] / 2)
    assert "2 inputs, worst" in str(worst)


def test_combining_other_lengths():
    def one(n):
        q, k, v = inputs((1, 2, n, 16), 2, n)
        return sa.profile(q, k, v, causal=True, candidates=[Candidate("window 16", "window", {"size": 16})])

    both = sa.Profile.combine([one(100), one(160)])
    assert both.recall.shape == (1, 1, 2) and both.kinds == [(), ()] and str(both)
    with pytest.raises(ValueError, match="inputs of different lengths, which have no keys or offsets in common"):
        both.column_profile  # noqa: B018


def test_refused_combinations():
    a, b = two_profiles()
    q, k, v = inputs((1, 3, 120, 16), 1, 120)
    with pytest.raises(ValueError, match='expected "mean" or "worst"'):
        sa.Profile.combine([a, b], "best")
    with pytest.raises(ValueError, match="give at least one"):
        sa.Profile.combine([])
    with pytest.raises(TypeError, match="expected profiles, got int"):
        sa.Profile.combine([a, 3])
    with pytest.raises(ValueError, match="different candidates, among them 'near'"):
        sa.Profile.combine([a, sa.profile(q, k, v, causal=True, candidates=[])])
    with pytest.raises(ValueError, match="differ in causal"):
        sa.Profile.combine([a, sa.profile(q, k, v, candidates=[])])
    with pytest.raises(ValueError, match="give v to all or to none"):
        sa.Profile.combine([a, sa.profile(q, k, causal=True, candidates={"near": patterns.causal(120)})])


def test_files(tmp_path):
    a, b = two_profiles()
    combined = sa.Profile.combine([a, b], "worst")
    for profile in (a, combined):
        profile.save(tmp_path / "profile.npz")
        read = sa.Profile.load(tmp_path / "profile.npz")
        assert str(read) == str(profile) and read.kinds == profile.kinds and read.how == profile.how
        for name in ("entropy", "keys_at_mass", "recall", "output_error", "column_profile", "offset_profile"):
            np.testing.assert_array_equal(getattr(read, name), getattr(profile, name))
        assert read.candidates[0].name == "near" and np.array_equal(read.costs.kept, profile.costs.kept)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="holds no profile of this version"):
        sa.Profile.load(tmp_path / "other.npz")


def test_pictures():
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    profile = two_profiles(names=("a", "b", "c"))[0]
    axes = profile.plot()
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["a", "b", "c"]
    own = profile.plot(head=1)
    line = own[0].get_lines()[0].get_ydata()
    np.testing.assert_allclose(line, profile.distance_curve[0, 1])
    with pytest.raises(ValueError, match="head is 3; expected 0 to 2"):
        profile.plot(head=3)
    with pytest.raises(ValueError, match="2 axes are given; expected 3"):
        profile.plot(axes[:2])
    plt.close("all")


def test_words():
    profile = two_profiles(names=("a", "b", "c"))[0]
    lines = str(profile).splitlines()
    assert lines[0] == "119 of 120 queries, 120 keys, causal" and len(lines) == 5
    assert lines[1].split()[:2] == ["head", "entropy"] and lines[2].split()[1] == f"{profile.entropy[0, 0]:.2f}"
    with pytest.raises(AttributeError, match="a profile has no 'entropie'"):
        profile.entropie  # noqa: B018


def test_heads_of_a_trained_model():
    """The demo's model copies by two heads of its third layer and two of its last: found on random bytes read twice."""
    from sparseattn.demo.model import ByteLM

    half = np.random.default_rng(0).integers(32, 127, 500, dtype=np.uint8)
    tokens = np.concatenate([np.zeros(1, np.uint8), half, half])
    targets = np.full(tokens.size, -1)
    targets[501:-1] = np.arange(2, 501)  # the byte after the earlier one
    kinds = []

    def attention(layer, q, k, v):
        found = sa.profile(q, k, causal=True, candidates=[], targets=targets, rows=400)
        kinds.extend((f"{layer}.{head}", name) for head, names in enumerate(found.kinds) for name in names)
        return sa.attend(q, k, v, patterns.causal(tokens.size))

    ByteLM()(tokens, attention)
    assert {head for head, kind in kinds if kind == "retrieval"} == {"2.2", "2.3", "5.2", "5.5"}
    assert {("0.1", "previous token"), ("4.3", "previous token"), ("4.4", "local")} <= set(kinds)
