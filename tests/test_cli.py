"""The command line, and the two commands of the README."""

import importlib.util
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import planted
import sparseattn as sa
from sparseattn import cli

ROOT = Path(__file__).parents[1]


def test_info_says_what_a_bug_report_needs(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    names = "numba_cpu", "reference", "threads", "cache"
    for expected in (sa.__version__, platform.python_version(), np.__version__, *names):
        assert expected in printed


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "sparseattn.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"sparseattn {sa.__version__}"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--threads", "0"], ["demo", "--threads", "many"]])
def test_bad_arguments_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: sparseattn" in capsys.readouterr().err


def test_demo_names_what_is_not_installed(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else find_spec(name))
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "sparseattn: the demo needs rich; install with: pip install 'sparseattn[demo]'\n"


def test_demo_says_what_is_wrong_with_a_file(tmp_path, capsys):
    assert cli.main(["demo", "--file", str(tmp_path / "absent.txt")]) == 1
    assert "absent.txt" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_bytes(b"\0\0x")
    assert cli.main(["demo", "--file", str(tmp_path / "empty.txt")]) == 1
    assert "begins with 1 bytes of text; the demo needs at least 64" in capsys.readouterr().err


def test_demo_checks_where_the_picture_goes_before_it_works(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "absent" / "demo.png")]) == 1
    assert "absent" in capsys.readouterr().err


@pytest.mark.parametrize("axes", [4, 3])
def test_profile_of_a_file(axes, tmp_path, capsys):
    q, k, v = (x.reshape(x.shape[4 - axes :]) for x in planted.heads(200, ("local", "sink"), seed=0))
    np.savez(tmp_path / "qkv.npz", q=q, k=k, v=v)
    out = tmp_path / "results" / "here"
    assert cli.main(["profile", str(tmp_path / "qkv.npz"), "--causal", "--out", str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Recommendation for 2 heads, 200 x 200 tokens, causal" in printed and "Written to" in printed
    for name in ("report.txt", "heads.json", "recommendation.npz", "profile.png", "recommendation.png"):
        assert (out / name).stat().st_size > 0 and name in printed
    heads = json.loads((out / "heads.json").read_text())
    rec = sa.Recommendation.load(out / "recommendation.npz")
    assert [h["choice"] for h in heads] == [h.choice for h in rec.heads]
    assert rec.build(q, k).shape == (200, 200)


def test_profile_options_reach_the_recommendation(tmp_path, capsys):
    q, k, _ = planted.heads(128, ("local", "diffuse"), seed=0)
    np.savez(tmp_path / "qk.npz", q=q, k=k)
    command = ["profile", str(tmp_path / "qk.npz"), "--out", str(tmp_path), "--rows", "64", "--scale", "0.1"]
    assert cli.main([*command, "--target-recall", "0.9", "--budget", "1"]) == 0
    printed = capsys.readouterr().out
    assert "recall from 0.9 in all but 5% of the rows, within 100% of dense" in printed
    assert cli.main(command) == 1
    assert "taken without v" in capsys.readouterr().err


@pytest.mark.parametrize(("arrays", "message"), [
    ({"query": np.zeros((4, 4))}, "holds query; expected arrays named q, k and v"),
    ({"q": np.zeros((4, 4), int), "k": np.zeros((4, 4))}, "q in"),
    ({"q": np.zeros((4, 4)), "k": np.zeros((4, 5)), "v": np.zeros((4, 4))}, "head_dim"),
    (None, "is no .npz file of arrays"),
])
def test_profile_says_what_is_wrong_with_a_file(arrays, message, tmp_path, capsys):
    path = tmp_path / "qkv.npz"
    path.write_bytes(b"text") if arrays is None else np.savez(path, **arrays)
    assert cli.main(["profile", str(path), "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert cli.main(["profile", str(tmp_path / "absent.npz"), "--out", str(tmp_path)]) == 1


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests run outside a checkout: there is no README")
def test_ci_runs_the_readme_s_test_command():
    readme = (ROOT / "README.md").read_text()
    demo, tests = re.findall(r"^<!-- (demo|tests) -->\n```\n(.*)\n```$", readme, re.MULTILINE)
    assert (demo[0], tests[0]) == ("demo", "tests")
    assert "sparseattn demo" in demo[1] and tests[1].endswith("-m pytest")
    script = (ROOT / ".ci" / "run").read_text()
    function = re.search(r"^readme_command\(\).*$", script, re.MULTILINE).group()
    assert "tests=$(readme_command tests)" in script
    for name, command in (demo, tests):
        reading = ["bash", "-c", f"{function}\nreadme_command {name}"]
        got = subprocess.run(reading, cwd=ROOT, capture_output=True, text=True, check=True)
        assert got.stdout.strip() == command
