"""The benchmarks: their patterns hold the pairs they say, their peers compute attention, suite and comparison run."""

import importlib
import json
import time

import numpy as np
import pytest

import sparseattn as sa
from scripts import FOLDER, importable

SUITE = sorted(p.stem for p in (FOLDER / "suite").glob("*.py"))


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """`suite` and `comparison` can be imported, as from a script beside them; forgotten afterwards."""
    yield from importable(monkeypatch, "suite", "comparison", "compare", "build", "content", "captured_mass",
                          "cost_model")


@pytest.mark.parametrize("name", ["scipy_csr", "numpy_dense"])
def test_peers_compute_attention(name):
    peer = importlib.import_module(f"comparison.peers.{name}")
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 100, 16), dtype=np.float32)
    pattern = sa.patterns.sliding_window(100, left=20, right=3)
    np.testing.assert_allclose(peer.forward(q, k, v, pattern)(), sa.attend(q, k, v, pattern), atol=1e-5)


@pytest.mark.parametrize("name", SUITE)
def test_suite_modules_import(name):
    importlib.import_module(f"suite.{name}")


@pytest.mark.parametrize("name, question", [("forward", "Forward"), ("backward", "Backward")])
def test_a_question_of_the_suite_runs(name, question):
    case = getattr(importlib.import_module(f"suite.{name}"), question)()
    arguments = ("Swin 16", 1024, "float32")
    assert len(case.param_names) == len(case.params) == len(arguments)
    case.setup(*arguments)
    assert case.track_rate(*arguments) > 0


def test_a_wrong_peer_is_not_timed():
    contest, measuring = (importlib.import_module(f"comparison.{x}") for x in ("contest", "measuring"))
    quick = importlib.import_module("comparison.settings").QUICK
    right, wrong = np.zeros(3, np.float32), np.array([0, np.nan, 0], np.float32)
    workload = contest.Workload("a title", [contest.Contestant("ours", lambda: lambda: right),
                                            contest.Contestant("peer", lambda: lambda: wrong, "ours")],
                                [contest.speedup("ours", "peer", 1.0)])
    result = measuring.run(workload, quick)
    assert "ours" in result.seconds and "peer" not in result.seconds
    assert "differs" in result.missing["peer"]


def test_missed_floors_are_named():
    contest, measuring, table = (importlib.import_module(f"comparison.{x}") for x in ("contest", "measuring", "table"))
    workload = contest.Workload("a title", [], [contest.speedup("ours", "slow", 1.5, 2.0),
                                                contest.speedup("ours", "fast", 1.5, 2.0),
                                                contest.times_as_long("slow", "ours", "ours", 3.0),
                                                contest.speedup("ours", "gone", 1.5)])
    result = measuring.Result(workload, {"ours": 1.0, "slow": 4.0, "fast": 0.5}, {"gone": "not here"}, {})
    assert [(q.label, value) for _, q, value in table.missed([result])] == [("ours beside fast", 0.5),
                                                                            ("slow: time over that of ours", 4.0)]
    assert [q.label for _, q in table.unanswered([result])] == ["ours beside gone"]


def test_the_comparison_runs(capsys, tmp_path):
    compare = importlib.import_module("compare")
    written = tmp_path / "out.json"
    assert compare.main(["--quick", "--only", "scattered", "growing", "--json", str(written),
                         "--plot", str(tmp_path / "out.png")]) == 0
    assert "axial columns" in capsys.readouterr().out
    scattered, growing = json.loads(written.read_text())
    assert scattered["answers"][0]["value"] > 0 and growing["answers"][0]["unit"] == "us"
    assert (tmp_path / "out.png").stat().st_size > 0


def test_an_unknown_workload_is_refused():
    compare = importlib.import_module("compare")
    with pytest.raises(SystemExit, match="no workload begins with 'nothing'; there are causal-64"):
        compare.main(["--only", "nothing"])


def test_the_table_of_builds_has_every_family():
    named = {name.split(",")[0].split(" ")[0] for name in importlib.import_module("suite.families").FAMILIES}
    families = {name for name in sa.patterns.__all__ if ".positional." in getattr(sa.patterns, name).__module__}
    assert {family.removesuffix("_layout") for family in families} <= named


def test_every_family_builds_within_the_bars():
    """131,072 tokens (512 x 256 for grids): under 1 s and 50 MB."""
    build = importlib.import_module("build")
    for name, family in importlib.import_module("suite.families").FAMILIES.items():
        begin = time.process_time()
        family(build.N_TOKENS)
        assert time.process_time() - begin < build.MOST_SECONDS, name
        assert build.peak_bytes(lambda family=family: family(build.N_TOKENS)) < build.MOST_BYTES, name


def test_the_benchmark_of_builds_runs(capsys):
    build = importlib.import_module("build")
    assert build.main(["--quick", "--only", "swin", "causal"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["causal", "swin 16", "swin 8, shifted"]
    with pytest.raises(SystemExit, match="no family begins with nothing; there are dense; causal"):
        build.main(["--only", "nothing"])


def test_a_long_forward_is_timed_by_some_queries(monkeypatch):
    build = importlib.import_module("build")
    monkeypatch.setattr(build, "MOST_PAIRS", 5e4)
    took, scaled = build.forward_seconds(sa.patterns.causal(1024))
    assert scaled and took > 0
    assert not build.forward_seconds(sa.patterns.sliding_window(1024, left=3))[1]


def test_the_benchmark_of_choosing_runs(capsys):
    content = importlib.import_module("content")
    assert content.main(["--quick", "--one-thread", "--only", "xattention", "sparge"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["xattention", "sparge"]
    with pytest.raises(SystemExit, match="no family begins with nothing; there are lsh, clusters"):
        content.main(["--quick", "--only", "nothing"])


def test_missed_bars_of_choosing_are_named(monkeypatch, capsys):
    content = importlib.import_module("content")
    monkeypatch.setattr(content, "N_TOKENS", 512)
    monkeypatch.setattr(content, "LEAST_SPEEDUP", 1e9)
    assert content.main(["--only", "xattention", "sparge"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "missed: xattention"


def test_captured_mass_is_that_of_dense_attention():
    """Random pairs hold their share, a window and the best keys what a plain sum says, a whole pattern all."""
    captured_mass = importlib.import_module("captured_mass")
    q, k = np.random.default_rng(0).standard_normal((2, 1, 2, 64, 8), dtype=np.float32)
    families = {"all": {"": lambda q, k: sa.patterns.causal(64)},
                "window": {"": lambda q, k: sa.patterns.sliding_window(64, left=4)}}
    lines, curves = captured_mass.measure([(q, k)], families)
    everything, window = lines["all", ""], lines["window", ""]
    assert everything.mass == pytest.approx(1) and everything.random == everything.bound == pytest.approx(1, abs=1e-5)
    assert window.pairs == 5 and window.mass == pytest.approx(window.window, abs=1e-6)
    assert window.random == pytest.approx(np.mean(5 / np.arange(33, 65))) and window.random < window.mass < window.bound
    s = (q @ k.swapaxes(2, 3) / np.sqrt(8))[:, :, 32:]
    p = np.where(np.arange(64) <= np.arange(32, 64)[:, None], np.exp(s), 0)
    best = np.sort(p, axis=-1)[..., -8:].sum(-1) / p.sum(-1)
    assert curves[8][2] == pytest.approx(best.mean(), abs=1e-5)


def test_balanced_vectors_keep_their_products_and_share_a_covariance():
    content = importlib.import_module("suite.content")
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, 3, 500, 8)) @ (np.eye(8) + 0.2 * rng.standard_normal((8, 8))) for _ in range(2))
    a, b = content.balanced(q + 3, 2 * k - 1)
    q, k = (x - x.mean(axis=2, keepdims=True) for x in (q, 2 * k))
    np.testing.assert_allclose(a @ b.swapaxes(2, 3), q @ k.swapaxes(2, 3), atol=1e-9)
    np.testing.assert_allclose(a.swapaxes(2, 3) @ a, b.swapaxes(2, 3) @ b, rtol=1e-6, atol=1e-6)


def test_captured_mass_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    captured_mass = importlib.import_module("captured_mass")
    every, layers = captured_mass.sizes, captured_mass.layers
    monkeypatch.setattr(captured_mass, "QUICK", 256)
    monkeypatch.setattr(captured_mass, "layers", lambda tokens: layers(tokens)[:1])
    monkeypatch.setattr(captured_mass, "sizes", lambda n: {family: dict([next(iter(sized.items()))])
                                                           for family, sized in every(n).items()})
    assert captured_mass.main(["--quick", "--plot", str(tmp_path / "mass.png")]) == 0
    assert (tmp_path / "mass.png").stat().st_size > 10000
    out = capsys.readouterr().out
    assert all(title in out for title in ("topics in any order", "topics in passages", "demo model, prose"))
    with pytest.raises(SystemExit, match="no text is named 'verse'; there are prose, code, copy"):
        captured_mass.main(["--quick", "--text", "verse"])


def test_the_cost_model_has_a_prediction_for_each_family():
    module = importlib.import_module("cost_model")
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 1024, 16), dtype=np.float32)
    for name, pattern in module.families(1024, q, k).items():
        for backward in (False, True):
            call, predicted = module.caller(q, k, v, pattern, backward)
            assert predicted > 0 and call() is not None, name
