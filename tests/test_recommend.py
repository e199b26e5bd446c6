"""recommend: the choice by brute force over made-up evidence, what it says and keeps, and planted heads."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import planted
import sparseattn as sa
from sparseattn.profiling import costs
from sparseattn.profiling.candidates import Candidate
from sparseattn.profiling.recommend import recommend

N = 64


def made_up(error, stored, *, recall=None, seconds=None, n_kv_heads=None, rows=20, families=None):
    """A profile of two batch items with these (n_candidates, n_heads) errors and pairs; recall falls over the rows."""
    error, stored = np.asarray(error, float), np.asarray(stored, float)
    n_candidates, n_heads = error.shape
    recall = 1 - error / 2 if recall is None else np.asarray(recall, float)
    over_rows = recall[:, None, :, None] - 0.1 * np.linspace(-1, 1, rows) * (recall < 1)[:, None, :, None]
    families = families or ["window"] * n_candidates
    whole = np.full(n_heads, 1000.0)
    profile = SimpleNamespace(
        candidates=tuple(Candidate(f"c{i}", family, {} if family == "dense" else {"size": 8 * (i + 1)})
                         for i, family in enumerate(families)),
        rows=SimpleNamespace(recall=np.repeat(over_rows, 2, axis=1), keys_at_mass=np.ones((2, n_heads, rows, 2))),
        output_error=np.repeat(error[:, None], 2, axis=1), masses=(0.5, 0.9), n_heads=n_heads,
        n_kv_heads=n_kv_heads or n_heads, shape=(N, N), how=None, causal=True, scale=None, q=None, k=None, v=None,
        costs=costs.Cost(stored * 0.9, stored, stored if seconds is None else np.asarray(seconds, float)),
        dense_cost=costs.Cost(whole * 0.9, whole, whole))
    profile.parts = (profile,)
    return profile


def random_evidence(seed, n_candidates=5, n_heads=3, n_kv_heads=None):
    rng = np.random.default_rng(seed)
    stored = np.sort(rng.integers(50, 900, (n_candidates, n_heads)), axis=0).astype(float)
    return made_up(rng.random((n_candidates, n_heads)), stored, n_kv_heads=n_kv_heads)


@pytest.mark.parametrize("seed", range(8))
def test_the_cheapest_that_meets_what_was_asked(seed):
    profile = random_evidence(seed)
    rec = recommend(profile, max_error=0.4)
    for head, choice in enumerate(rec.heads):
        error, pairs = profile.output_error[:, 0, head], profile.costs.stored[:, head]
        serving = [c for c in range(5) if error[c] <= 0.4]
        best = min(serving, key=lambda c: pairs[c], default=None)
        assert choice.choice == ("dense" if best is None else f"c{best}") and choice.met
        if best is not None:
            assert choice.error == pytest.approx(error[best]) and choice.pairs == pairs[best]
            assert choice.share == pytest.approx(pairs[best] / 1000) and choice.kept == pytest.approx(0.9 * pairs[best])
            assert choice.oracle_pairs <= choice.kept
            assert choice.runner_up == "dense" and choice.runner_up_share == 1.0  # the only other family


def test_recall_counts_by_its_low_quantile():
    recall = np.array([[0.85], [0.95], [0.999]])
    profile = made_up([[0.1], [0.1], [0.1]], [[100], [200], [300]], recall=recall)
    chosen = [recommend(profile, max_error=None, target_recall=0.9, quantile=q).heads[0] for q in (0.5, 0.05)]
    assert [c.choice for c in chosen] == ["c1", "c2"]
    assert chosen[0].recall_low == pytest.approx(0.95) and chosen[1].recall_low == pytest.approx(0.999 - 0.09)
    assert chosen[1].recall_mean == pytest.approx(0.999)
    both = recommend(profile, max_error=0.05, target_recall=0.9)
    assert both.heads[0].choice == "dense"


def test_of_equal_costs_the_one_that_loses_less():
    rec = recommend(made_up([[0.15], [0.1], [0.05]], [[100], [100], [200]]))
    assert rec.heads[0].choice == "c1"


def test_heads_of_a_group_get_one_candidate_by_the_worst():
    error = [[0.1, 0.3, 0.1, 0.1], [0.05, 0.15, 0.3, 0.01]]
    rec = recommend(made_up(error, np.repeat([[100.0], [200.0]], 4, axis=1), n_kv_heads=2))
    assert [h.choice for h in rec.heads] == ["c1", "c1", "c0", "c0"]
    assert [h.error for h in rec.heads] == [0.15, 0.15, 0.1, 0.1]


def test_several_inputs_count_by_the_worst():
    easy, hard = (made_up([[e], [0.01]], [[100.0], [500.0]]) for e in (0.1, 0.5))
    both = SimpleNamespace(parts=(easy, hard), candidates=easy.candidates, how="worst")
    assert recommend(easy).heads[0].choice == "c0"
    rec = recommend(both)
    assert rec.heads[0].choice == "c1" and rec.heads[0].error == 0.01
    with pytest.raises(ValueError, match=r"use build\(q, k\)"):
        _ = rec.pattern
    both.how = "mean"
    assert recommend(both, max_error=0.35).heads[0].choice == "c0"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("groups", [3, 1])
def test_no_other_choice_within_a_budget_loses_less_than_its_own_hull(seed, groups):
    """The greedy is optimal but for its last step: what it loses lies between the best choice and the best hull."""
    profile = random_evidence(seed, n_kv_heads=groups)
    heads = range(0, 3, 3 // groups)
    options = {h: [(c.share, c.loss) for c in _all(profile, h, 3 // groups)] for h in heads}
    for budget in (0.3, 0.5, 0.8):
        least = sum(min(cost for cost, _ in options[h]) for h in heads)
        if least > budget * groups:
            with pytest.raises(ValueError, match="give more, or profile cheaper candidates"):
                recommend(profile, max_error=None, budget=budget)
            continue
        rec = recommend(profile, max_error=None, budget=budget)
        assert rec.share <= budget + 1e-9
        found = sum(rec.heads[h].error for h in heads)
        best = min(sum(loss for _, loss in picks) for picks in itertools.product(*options.values())
                   if sum(cost for cost, _ in picks) <= budget * groups + 1e-9)
        largest = max(loss for own in options.values() for _, loss in own)
        assert best - 1e-9 <= found <= best + largest
        more = recommend(profile, max_error=None, budget=min(budget + 0.1, 1.0))
        assert sum(more.heads[h].error for h in heads) <= found + 1e-9


def _all(profile, head, group):
    """(share, loss) of all candidates and of dense attention for a group of heads."""
    own = slice(head, head + group)
    cost = profile.costs.stored[:, own].mean(axis=1) / 1000
    loss = profile.output_error[:, 0, own].max(axis=1)
    return [SimpleNamespace(share=c, loss=e) for c, e in zip([*cost, 1.0], [*loss, 0.0])]


def test_a_budget_stops_at_what_is_asked_and_tells_what_misses():
    profile = made_up([[0.5, 0.5], [0.1, 0.4], [0.01, 0.1]], [[100, 100], [200, 200], [600, 600]])
    rec = recommend(profile, budget=1.0)
    assert [h.choice for h in rec.heads] == ["c1", "c2"] and all(h.met for h in rec.heads)
    small = recommend(profile, budget=0.2)
    assert small.share <= 0.2 and [h.met for h in small.heads] == [True, False]
    assert "(misses)" in repr(small) and "1 miss what was asked" in repr(small)
    pairs = recommend(profile, budget=400)
    assert [h.choice for h in pairs.heads] == [h.choice for h in small.heads]


def test_time_and_dynamic():
    slow_at_choosing = made_up([[0.1], [0.1]], [[100], [200]], seconds=[[5000], [300]],
                               families=["top_keys", "window"])
    assert recommend(slow_at_choosing).heads[0].choice == "c0"
    assert "looks at q and k" in repr(recommend(slow_at_choosing))
    assert recommend(slow_at_choosing, dynamic=False).heads[0].choice == "c1"
    timed = recommend(slow_at_choosing, cost="time")
    assert timed.heads[0].choice == "c1" and timed.heads[0].share == 0.3
    assert "predicted time" in repr(timed)


def test_a_profile_without_values_needs_a_recall():
    profile = made_up([[0.1]], [[100.0]], recall=[[0.999]])
    profile.output_error = None
    with pytest.raises(ValueError, match="taken without v"):
        recommend(profile)
    rec = recommend(profile, max_error=None, target_recall=0.9)
    assert rec.heads[0].error is None and rec.points.loss_name == "lost mass" and repr(rec)


@pytest.mark.parametrize(("keywords", "error", "message"), [
    ({"max_error": None}, ValueError, "nothing is asked for"),
    ({"cost": "money"}, ValueError, "cost is 'money'"),
    ({"max_error": "small"}, TypeError, "max_error is 'small'"),
    ({"max_error": -1}, ValueError, "max_error is -1"),
    ({"target_recall": 1.5}, ValueError, "target_recall is 1.5"),
    ({"quantile": None}, TypeError, "quantile is None"),
    ({"budget": True}, TypeError, "budget is True"),
    ({"budget": 100, "cost": "time"}, ValueError, "a share of dense"),
    ({"cost": "measured"}, ValueError, "does not hold"),
])
def test_refused(keywords, error, message):
    with pytest.raises(error, match=message):
        recommend(made_up([[0.1]], [[100.0]]), **keywords)


def test_kept_in_a_file(tmp_path):
    profile = random_evidence(0)
    pattern = sa.patterns.sliding_window(N, left=2)
    profile.candidates = (*profile.candidates[:-1], Candidate("given", "given", {}, pattern))
    profile.output_error[-1] = 0.0
    rec = recommend(profile, max_error=0.05)
    assert "given" in [h.choice for h in rec.heads]
    rec.save(tmp_path / "rec.npz")
    again = sa.Recommendation.load(tmp_path / "rec.npz")
    assert repr(again) == repr(rec)
    q = np.zeros((1, 3, N, 8), np.float32)
    assert again.build(q, q) == rec.build(q, q)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="holds no recommendation"):
        sa.Recommendation.load(tmp_path / "other.npz")
    profile.candidates = (*profile.candidates[:-1], Candidate("given", "given", {}, lambda q, k: pattern))
    with pytest.raises(ValueError, match="is a function, which a file cannot hold"):
        recommend(profile, max_error=0.05).save(tmp_path / "function.npz")


def test_built_for_other_inputs():
    profile = made_up([[0.1, 0.5, 0.5], [0.5, 0.1, 0.5]], np.full((2, 3), 100.0))
    rec = recommend(profile)
    assert [h.choice for h in rec.heads] == ["c0", "c1", "dense"]
    for n_queries, n_keys in ((50, 50), (20, 70)):
        q, k = np.zeros((3, n_queries, 8), np.float32), np.zeros((3, n_keys, 8), np.float32)
        windows = [sa.patterns.sliding_window(n_queries, n_keys, left=left) for left in (7, 15)]
        expected = sa.Pattern.per_head([*windows, sa.patterns.causal(n_queries, n_keys)])
        assert rec.build(q, k).same_pairs(expected)
    with pytest.raises(ValueError, match="profile arrays of these heads"):
        rec.build(q[:2], k[:2])


def test_table():
    lines = repr(recommend(made_up([[0.1, 0.5]], [[100.0, 100.0]]))).splitlines()
    assert lines[0] == "Recommendation for 2 heads, 64 x 64 tokens, causal: error up to 0.2"
    assert lines[1].split() == ["head", "pattern", "cost", "error", "recall", "low", "best", "keys", "next", "best"]
    assert lines[2].split()[:4] == ["0", "c0", "10.0%", "0.100"] and lines[3].split()[:3] == ["1", "dense", "100.0%"]
    assert lines[4].startswith("All heads: 55.0% of dense attention's pairs in blocks, 55.0% of its pairs; 1 of 2 stay")
    assert "Rank by error" in lines[-2]


def test_picture():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    rec = recommend(random_evidence(1, n_heads=3))
    axes = rec.plot()
    assert axes.size >= 3 and axes.flat[0].get_ylabel() == "error" and "head 2" in axes.flat[2].get_title()
    star = next(line for line in axes.flat[0].lines if line.get_marker() == "*")
    assert star.get_xdata()[0] == rec.heads[0].share and star.get_ydata()[0] == rec.heads[0].error
    with pytest.raises(ValueError, match="one a head"):
        rec.plot(axes.flat[:2])
    pyplot.close("all")


# what each planted head was made for, without looking at q and k
PLANTED = {"local": {"window"}, "strided": {"strided"}, "sink": {"window", "columns"}, "column": {"columns"}}
LENGTH = 768


@pytest.fixture(scope="module")
def planted_profiles():
    """causal -> (profile, arrays of a second draw)."""
    first, second = planted.heads(LENGTH, seed=0), planted.heads(LENGTH, seed=1)
    return {causal: (sa.profile(*first, causal=causal), second) for causal in (True, False)}


def errors(q, k, v, pattern, causal):
    """The output error of each head, over all rows."""
    whole = sa.patterns.causal(q.shape[2]) if causal else sa.patterns.dense(q.shape[2])
    out, dense = (sa.attend(q, k, v, p).astype(float) for p in (pattern, whole))
    return np.sqrt(((out - dense) ** 2).sum(axis=(0, 2, 3)) / (dense**2).sum(axis=(0, 2, 3)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("keywords", [{}, {"dynamic": False}, {"cost": "time"}, {"max_error": 0.1},
                                      {"max_error": None, "target_recall": 0.9}, {"budget": 0.4, "max_error": None}],
                         ids=str)
def test_what_is_promised_holds(planted_profiles, causal, keywords):
    """On the profiled input the errors are those of a run; on another draw of the same heads they are near."""
    profile, other = planted_profiles[causal]
    rec = sa.recommend(profile, **keywords)
    promised = np.array([h.error for h in rec.heads])
    assert np.allclose(errors(profile.q, profile.k, profile.v, rec.pattern, causal), promised, atol=1e-5)
    held_out = errors(*other, rec.build(*other[:2]), causal)
    assert np.all(np.abs(held_out - promised) <= 0.02 + 0.2 * promised)
    assert rec.pattern.nnz / LENGTH**2 / len(rec.heads) == pytest.approx(
        sum(h.kept for h in rec.heads) / LENGTH**2 / len(rec.heads))
    if rec.asked.max_error is not None:
        assert np.all(promised <= rec.asked.max_error)


@pytest.mark.parametrize("causal", [True, False])
def test_planted_heads_get_their_family_or_one_that_is_no_worse(planted_profiles, causal):
    profile, _ = planted_profiles[causal]
    for dynamic in (False, True):
        for head, kind in enumerate(planted.KINDS):
            choice = sa.recommend(profile, dynamic=dynamic).heads[head]
            own = [c for c, x in enumerate(profile.candidates) if x.family in PLANTED.get(kind, ())]
            own = [c for c in own if profile.output_error[c, 0, head] <= 0.2]
            assert own or kind not in PLANTED
            assert all(choice.pairs <= profile.costs.stored[c, head] for c in own), kind
            if kind == "clustered":
                assert choice.candidate.dynamic or choice.share > 0.5
            if kind == "diffuse":
                assert choice.share > 0.5  # dense, or most of it


def test_a_diffuse_head_gets_an_even_sample_where_that_is_good_enough():
    """All values near one mean: then a sample of the keys is enough, and nearly no mass is captured."""
    q, k, v = planted.heads(1024, ("diffuse",), seed=0)
    profile = sa.profile(q, k, v * 0.5 + 1)
    choice = sa.recommend(profile, dynamic=False).heads[0]
    assert choice.share < 0.2 and choice.recall_mean < 0.2 and choice.error <= 0.2
    assert errors(q, k, v * 0.5 + 1, sa.recommend(profile, dynamic=False).pattern, False)[0] <= 0.2


def test_grouped_heads_and_batches():
    q, k, v = planted.heads(256, ("local", "diffuse", "strided"), seed=0, batch=2)
    q = np.repeat(q, 2, axis=1)
    rec = sa.recommend(sa.profile(q, k, v, causal=True))
    choices = [h.choice for h in rec.heads]
    assert choices[::2] == choices[1::2] and rec.n_kv_heads == 3
    pattern = rec.pattern
    assert pattern.n_heads == 6 and sa.attend(q, k, v, pattern).shape == q.shape
    out = sa.attend(q, k, v, pattern)
    alone = sa.attend(q[1:], k[1:], v[1:], rec.build(q[1:], k[1:]))
    assert np.allclose(out[1:], alone, atol=1e-6)


def test_measured_cost_and_a_file(planted_profiles, tmp_path):
    profile, other = planted_profiles[True]
    rec = sa.recommend(profile, cost="measured", dynamic=False)
    assert all(h.share > 0 for h in rec.heads) and "measured time" in repr(rec)
    chosen = sa.recommend(profile)
    chosen.save(tmp_path / "rec.npz")
    again = sa.Recommendation.load(tmp_path / "rec.npz")
    assert repr(again) == repr(chosen)
    assert again.build(*other[:2]) == chosen.build(*other[:2])
    q, k, _ = planted.heads(500, seed=2)
    assert again.build(q, k).shape == (500, 500)


def test_given_patterns():
    q, k, v = planted.heads(300, ("local", "column"), seed=0)
    near = sa.patterns.sliding_window(300, left=8, right=8)
    columns = sa.patterns.global_tokens(300, planted.columns(300))
    profile = sa.profile(q, k, v, candidates={"near": near, "columns": columns, "both": near | columns})
    rec = sa.recommend(profile)
    assert [h.choice for h in rec.heads] == ["near", "columns"]
    assert rec.pattern.same_pairs(sa.Pattern.per_head([near, columns]))
    with pytest.raises(ValueError, match="no candidates"):
        sa.recommend(sa.profile(q, k, v, candidates=[]))


def test_a_head_that_idles_in_one_task_is_kept_for_the_other():
    """Combined by the worst case, a head gets what both tasks need; by the task where it idles, a window."""
    busy = sa.profile(*planted.heads(400, ("local", "column"), seed=0), causal=True)
    idle = sa.profile(*planted.heads(400, ("local", "local"), seed=1), causal=True, candidates=busy.candidates)
    alone, both = (sa.recommend(p, dynamic=False) for p in (idle, sa.Profile.combine([idle, busy], how="worst")))
    assert [h.candidate.family for h in alone.heads] == ["window", "window"]
    assert [h.candidate.family for h in both.heads] == ["window", "columns"]
    for profile in (idle, busy):
        found = errors(profile.q, profile.k, profile.v, both.build(profile.q, profile.k), True)
        assert np.all(found <= [h.error + 1e-5 for h in both.heads])
