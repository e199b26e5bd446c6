"""The demo: the model against stored results, the road from profile to reading, the words against their numbers."""

import numpy as np
import pytest

import sparseattn as sa

pytest.importorskip("rich", reason="the demo needs rich")
pytest.importorskip("matplotlib", reason="the demo needs matplotlib")

from sparseattn import cli
from sparseattn.demo import measure, model, patterns, report, run, survey, texts


@pytest.fixture(scope="module")
def bytelm():
    return model.ByteLM()


@pytest.fixture(scope="module")
def stored():
    return model.load_data("samples.npz")


def attend_through(choose):
    return lambda layer, q, k, v: sa.attend(q, k, v, choose(q, k))


def causal(q, k):
    return sa.patterns.causal(q.shape[1])


def test_logits_are_those_of_the_trained_model(bytelm, stored):
    tokens = texts.passage("prose", stored["prose"], 256).tokens
    got = bytelm(tokens, attend_through(causal))[-8:]
    assert np.abs(got - stored["prefix_logits"]).max() < 5e-3


def test_dense_losses_are_those_of_the_trained_model(bytelm, stored):
    expected = dict(zip(stored["names"], stored["dense_bits"]))
    chosen = [*texts.samples(), texts.twice("copy code", stored["code"])]
    assert [text.name for text in chosen] == list(expected)
    for text in chosen:
        logits = bytelm(text.tokens, attend_through(causal))
        assert model.bits_per_byte(logits, text.tokens, text.start) == pytest.approx(expected[text.name], abs=2e-4)


def test_too_long_a_text_is_refused(bytelm):
    with pytest.raises(ValueError, match="got 4097 tokens, but bytelm was trained on 4096"):
        bytelm(np.zeros(4097, np.uint8), attend_through(causal))


@pytest.fixture(scope="module")
def road(bytelm):
    """What the demo finds on prose and a copy of 1,024 bytes: (what was found, the recommendations by name)."""
    profiled = [text for text in texts.samples(1024, skip=1023) if text.name != "code"]
    offered = patterns.candidates(1024)
    profiles = {text.name: survey.profile_model(bytelm, text, offered, 128, lambda: None) for text in profiled}
    found = run.summary(profiles, profiled)
    return found, dict(zip(("alone", "both", "content"), map(patterns.Recommended, found.columns.values())))


def test_heads_are_named(road):
    kinds = road[0].kinds
    assert [len(names) for names in kinds] == [8] * 6
    assert {kinds[layer][head] for layer, head in ((2, 2), (2, 3), (5, 2), (5, 5))} == {"copy"}
    assert kinds[0][1] == kinds[4][3] == "previous"
    assert kinds[0][4] == kinds[1][4] == kinds[5][0] == "local"
    assert kinds[1][2] == "spread" and kinds[1][7] == "start"


def test_prose_alone_loses_the_copy_and_both_texts_keep_it(bytelm, road):
    chosen, copy = road[1], texts.samples(1024)[-1]
    dense, alone, both, content = (measure.read(bytelm, copy, choose) for choose in (
        patterns.Fixed(sa.patterns.causal), chosen["alone"], chosen["both"], chosen["content"]))
    assert alone.bits - dense.bits > report.LOST > 10 * max(both.bits - dense.bits, content.bits - dense.bits)
    assert content.pairs < both.pairs < dense.pairs == 1
    assert chosen["content"].by_content and not chosen["both"].by_content
    assert chosen["both"].density == pytest.approx(both.pairs, rel=1e-6)
    window = measure.read(bytelm, copy, patterns.Fixed(lambda n: patterns.window_of(n, both.pairs)[0]))
    assert window.bits - dense.bits > report.LOST and window.pairs >= both.pairs


@pytest.mark.parametrize("n_tokens", [70, 1000, 4096])
@pytest.mark.parametrize("share", [0.2, 0.36, 1.0])
def test_what_is_compared_has_as_many_pairs(n_tokens, share):
    whole = patterns.triangle(n_tokens)
    window, size = patterns.window_of(n_tokens, share)
    assert share * whole <= window.nnz < share * whole + n_tokens
    assert window.same_pairs(patterns.window(n_tokens, size))
    if n_tokens > 1000:
        drawn = patterns.random_of(n_tokens, share, 4)
        assert drawn.nnz / drawn.n_heads == pytest.approx(share * whole, rel=0.05)
        assert (drawn & sa.patterns.causal(n_tokens)).nnz == drawn.nnz


def test_candidates_fit_the_length():
    assert [c.name for c in patterns.candidates(100)] == ["window 64", "window 64 + first 4", "stride 8 + window 64",
                                                          "one key in 8 + window 64"]
    names = [c.name for c in patterns.candidates(4096)]
    assert len(set(names)) == len(names) and {"window 2048", "128 pages of 4 + window 64"} <= set(names)


def test_texts_that_are_profiled_are_not_tested(tmp_path):
    profiled, tested = texts.halves()
    assert [text.name for text in profiled] == [text.name for text in tested] == ["prose", "code", "copy"]
    for own, other, name in zip(profiled, tested, ("prose", "code", "prose")):
        stored = model.load_data("samples.npz")[name].tobytes()
        n = len(own.tokens) // 2 if own.repeats else len(own.tokens)
        assert stored[: n - 1] == other.tokens[1:n].tobytes()
        assert stored[4095 : 4095 + n - 1] == own.tokens[1:n].tobytes()
    (tmp_path / "text").write_bytes(bytes(range(256)))
    (text, copy), (other, _) = texts.halves(tmp_path / "text")
    assert text.tokens.tobytes() == b"\0" + bytes(range(128, 256)) and other.tokens.tobytes() == bytes(range(128))
    assert copy.tokens.tobytes() == 2 * text.tokens[:64].tobytes()
    (tmp_path / "long").write_bytes(b"0123456789" * 1000)
    assert {len(text.tokens) for half in texts.halves(tmp_path / "long") for text in half} == {4096}


def test_targets_are_what_followed_the_last_time():
    copy = texts.twice("copy", np.arange(1, 100, dtype=np.uint8), 40)
    at = np.arange(20, 39)
    assert (copy.tokens[copy.targets[at]] == copy.tokens[at + 1]).all()
    assert (copy.targets[:20] == -1).all()
    assert texts.passage("prose", copy.tokens).targets is None


def test_telling_heads_are_those_that_copy_and_one_of_each_kind():
    kinds = [["local", "copy", "local"], ["spread", "copy", "local"]]
    assert report.telling(kinds) == [(0, 1), (1, 1), (0, 0), (1, 0)]


def rows(*, content_copy, content_seconds, alone_copy=1.5):
    return [
        report.Row("dense", False, 1.0, 2.0, 0.0, {"prose": 1.0, "copy": 0.02}),
        report.Row("alone", False, 0.06, 0.2, 0.0, {"prose": 1.25, "copy": alone_copy}),
        report.Row("content", True, 0.15, 0.4, content_seconds, {"prose": 1.02, "copy": content_copy}),
    ]


TEXTS = [texts.Text("prose", np.zeros(4096, np.uint8)), texts.Text("copy", np.zeros(4096, np.uint8), repeats=True)]


def test_verdict_says_who_keeps_the_copy_and_who_is_slow():
    assert report.verdict(rows(content_copy=0.08, content_seconds=3.0), TEXTS, dynamic_by_time=0) == (
        'A copy from 2,047 bytes back, in bits (dense 0.02): lost by "alone" (1.50); kept by "content" (0.08).\n'
        '"Content" computes 15% of the pairs for +2.0% bits on prose.\n'
        'Time at 4,096 tokens, choosing included: faster than dense are "alone" (x 0.1); dense is faster than '
        '"content" (x 1.7). Asked for time instead of pairs, recommend lets no head choose by content.'
    )


def test_verdict_turns_with_the_numbers():
    words = report.verdict(rows(content_copy=0.9, content_seconds=0.1), TEXTS, dynamic_by_time=3)
    assert 'lost by "alone" (1.50) and "content" (0.90).' in words and "kept by" not in words
    assert "dense is faster" not in words and words.endswith("recommend lets 3 heads choose by content.")
    words = report.verdict(rows(content_copy=0.03, content_seconds=0.1, alone_copy=0.02), TEXTS, dynamic_by_time=0)
    assert 'kept by "alone" (0.02) and "content" (0.03).' in words and "lost by" not in words


def test_demo_runs_on_a_short_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "QUICK", run.Sizes(160, 64, 1024))
    (tmp_path / "text").write_text("A small text that says little, but says it in words. " * 5)
    out = tmp_path / "demo.png"
    assert cli.main(["demo", "--quick", "--file", str(tmp_path / "text"), "--out", str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    for words in ("dense causal", "1,024 tokens", "from file alone", "from file + copy", "layer 5", "all 48", "Time"):
        assert words in printed
    assert out.read_bytes().startswith(b"\x89PNG")
