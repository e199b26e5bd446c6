"""What the GPU benchmark times: ours and the peer's mask are the same pairs, and its rows say what they found."""

import importlib
import json

import numpy as np
import pytest

from scripts import importable

N = 2048
POSITIONAL, IN_BLOCKS = 12, 5


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """The benchmark's modules can be imported, as from the script beside them; forgotten afterwards."""
    yield from importable(monkeypatch, "suite", "gpu_comparison", "gpu")


def same_pairs(workload, n_heads):
    i, j = np.arange(N)[:, None], np.arange(N)[None]
    mask = workload.pattern().to_dense()[0]
    mod = (lambda *_: np.True_) if workload.mod is None else workload.mod(lambda x: x)
    return all(np.array_equal(mask[h * len(mask) // n_heads], np.broadcast_to(mod(0, h, i, j), (N, N)))
               for h in range(n_heads))


@pytest.mark.parametrize("number", range(POSITIONAL))
def test_positional_workloads(number):
    workloads = importlib.import_module("gpu_comparison.workloads").positional(N)
    assert len(workloads) == POSITIONAL and same_pairs(workloads[number], 1), workloads[number].name


def test_workloads_in_blocks():
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, heads, N, 16), np.float32) for heads in (4, 2))
    workloads = importlib.import_module("gpu_comparison.workloads").in_blocks(N, q, k)
    assert len(workloads) == IN_BLOCKS
    for workload in workloads:
        assert same_pairs(workload, 4), workload.name


def test_report(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    report = importlib.import_module("gpu_comparison.report")
    row = report.Row("a", "dense", "forward", {"ours": 2.0, "peer": 1.0}, flop=4e9, missing={"other": "not there"})
    row.ask("peer", 0.7)
    row.ask("other", 0.7)
    report.show(row)
    assert [(q.value, q.missed) for q in row.questions] == [(0.5, True)]
    assert "MISSED" in capsys.readouterr().out and "0.50 x, bar 0.7" in report.summary([row])
    report.write([row], "a GPU", tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["questions"][0]["bar"] == 0.7
    report.draw([row], "a GPU", tmp_path / "rows.png")
    assert (tmp_path / "rows.png").stat().st_size > 5000
