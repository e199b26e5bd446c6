"""The demo: the model against stored results, the block chooser against its rule, the words against their numbers."""

import numpy as np
import pytest

import sparseattn as sa

pytest.importorskip("rich", reason="the demo needs rich")
pytest.importorskip("matplotlib", reason="the demo needs matplotlib")

from sparseattn import cli
from sparseattn.demo import measure, model, patterns, report, run, texts


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


def test_copy_is_kept_by_content_and_lost_by_a_window(bytelm, stored):
    text = texts.twice("copy", stored["prose"], 1024)
    content = patterns.by_content()["window 64 + first 4 + 32 blocks of 8"]
    dense, window, chosen = (
        measure.read(bytelm, text, choose)[0].bits
        for choose in (causal, lambda q, k: patterns.window(q.shape[1], 128), content)
    )
    assert window - dense > 0.5
    assert chosen - dense < 0.25


def test_too_long_a_text_is_refused(bytelm):
    with pytest.raises(ValueError, match="got 4097 tokens, but bytelm was trained on 4096"):
        bytelm(np.zeros(4097, np.uint8), attend_through(causal))


def best_blocks(q, k, block_size, n_blocks, behind):
    """The rule, one query after the other: bool (n_heads, n_queries, n_key_blocks)."""
    n_heads, n_queries, _ = q.shape
    starts = range(0, k.shape[1], block_size)
    layout = np.zeros((n_heads, n_queries, len(starts)), bool)
    for head in range(n_heads):
        for i in range(n_queries):
            bound = {}
            for col, start in enumerate(starts):
                if start <= i - behind:
                    keys = k[head, start : start + block_size].astype(float)
                    corner = np.where(q[head, i] >= 0, keys.max(0), keys.min(0))
                    bound[col] = corner @ q[head, i]
            for col in sorted(bound, key=bound.get)[-n_blocks:]:
                layout[head, i, col] = True
    return layout


@pytest.mark.parametrize("n_tokens", [3, 64, 65, 300, 333])
@pytest.mark.parametrize("block_size, n_blocks", [(8, 5), (16, 3)])
def test_chooser_follows_its_rule(n_tokens, block_size, n_blocks):
    rng = np.random.default_rng(n_tokens)
    q, k = rng.standard_normal((2, 2, n_tokens, 16), dtype=np.float32)
    got = patterns.choose_blocks(q, k, block_size=block_size, n_blocks=n_blocks, behind=64)
    assert np.array_equal(got, best_blocks(q, k, block_size, n_blocks, 64))


def test_chosen_blocks_join_the_window_as_a_set():
    rng = np.random.default_rng(0)
    n_tokens = 203
    q, k = rng.standard_normal((2, 2, n_tokens, 8), dtype=np.float32)
    pattern = patterns.near_and_chosen(q, k, block_size=8, n_blocks=4).check()
    i, j = np.arange(n_tokens)[:, None], np.arange(n_tokens)[None]
    chosen = np.repeat(best_blocks(q, k, 8, 4, 64), 8, axis=-1)[..., :n_tokens]
    near = (j <= i) & ((i - j < 64) | (j < 4))
    assert np.array_equal(pattern.to_dense()[0], near | chosen)


@pytest.mark.parametrize("n_tokens", [2, 100, 200])
def test_patterns_by_position_are_causal(n_tokens):
    i, j = np.arange(n_tokens)[:, None], np.arange(n_tokens)[None]
    by_position = patterns.by_position(n_tokens, 8)
    assert np.array_equal(by_position["window 128"].to_dense()[0, 0], (j <= i) & (i - j < 128))
    assert np.array_equal(by_position["window 256 + first 4"].to_dense()[0, 0], (j <= i) & ((i - j < 256) | (j < 4)))
    assert np.array_equal(by_position["strided 64"].to_dense()[0, 0], (j <= i) & ((i - j < 64) | ((i - j) % 64 == 0)))
    for pattern in by_position.values():
        assert not (pattern - sa.patterns.causal(n_tokens)).nnz


def test_a_file_becomes_a_text_and_a_copy(tmp_path):
    (tmp_path / "text").write_bytes(b"ab\0c" * 10)
    text, copy = texts.from_file(tmp_path / "text")
    assert text.tokens.tobytes() == b"\0" + b"abc" * 10
    assert copy.tokens.tobytes() == 2 * text.tokens.tobytes()
    assert (text.start, copy.start) == (15, 31)
    (tmp_path / "long").write_bytes(b"0123456789" * 1000)
    text, copy = texts.from_file(tmp_path / "long")
    assert len(text.tokens) == len(copy.tokens) == 4096
    assert copy.tokens.tobytes() == 2 * (b"\0" + b"0123456789" * 204 + b"0123456")


def rows(*, content_copy, content_seconds, window_copy=1.5):
    return [
        report.Row("dense", False, 1.0, 2.0, 0.0, {"prose": 1.0, "copy": 0.02}),
        report.Row("window", False, 0.06, 0.2, 0.0, {"prose": 1.25, "copy": window_copy}),
        report.Row("blocks", True, 0.15, 0.4, content_seconds, {"prose": 1.02, "copy": content_copy}),
    ]


TEXTS = [texts.Text(name, np.zeros(4096, np.uint8)) for name in ("prose", "copy")]


def test_verdict_says_who_keeps_the_copy_and_who_is_slow():
    assert report.verdict(rows(content_copy=0.08, content_seconds=3.0), TEXTS) == (
        "Window computes 6% of the pairs in 0.10 of dense's time for +0.25 bits per byte on prose; "
        "a copy from 2,047 bytes back is lost by every pattern that chooses by position alone "
        "(1.50 bits at best, dense 0.020) and kept by blocks (0.080 bits) at 15% of the pairs; "
        "at 4,096 tokens dense is faster than blocks (up to 1.7 times), choosing blocks included."
    )


def test_verdict_turns_with_the_numbers():
    words = report.verdict(rows(content_copy=0.9, content_seconds=0.1), TEXTS)
    assert "lost by window and blocks (0.90 bits at best" in words
    assert "kept by" not in words
    assert words.endswith("every pattern takes less time than dense, choosing blocks included.")
    words = report.verdict(rows(content_copy=0.03, content_seconds=0.1, window_copy=0.02), TEXTS)
    assert "lost by none and kept by window (0.020 bits) at 6% of the pairs" in words


def test_demo_runs_on_a_short_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "QUICK", run.Sizes(160, 1024))
    (tmp_path / "text").write_text("A small text that says little, but says it in words. " * 5)
    out = tmp_path / "demo.png"
    assert cli.main(["demo", "--quick", "--file", str(tmp_path / "text"), "--out", str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "dense causal" in printed and "1,024 tokens" in printed and "of dense's time" in printed
    assert out.read_bytes().startswith(b"\x89PNG")
