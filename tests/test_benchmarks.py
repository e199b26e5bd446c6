"""The benchmarks: their patterns hold the pairs they say, their peers compute attention, suite and comparison run."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import sparseattn as sa

FOLDER = Path(__file__).parent.parent / "benchmarks"
SUITE = sorted(p.stem for p in (FOLDER / "suite").glob("*.py"))


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """`suite` and `comparison` can be imported, as from a script beside them; forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("suite", "comparison", "compare"):
            del sys.modules[name]


def test_grids_hold_the_pairs_of_columns_and_windows():
    grids = importlib.import_module("suite.grids")
    row, col = np.divmod(np.arange(8 * 12), 12)
    columns = col[:, None] == col
    windows = (row[:, None] // 4 == row // 4) & (col[:, None] // 4 == col // 4)
    assert np.array_equal(grids.axial_columns(8, 12).check().to_dense()[0, 0], columns)
    assert np.array_equal(grids.swin_windows(8, 12, 4).check().to_dense()[0, 0], windows)


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
