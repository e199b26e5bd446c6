"""The command line, and the two commands of the README."""

import importlib.util
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    assert "begins with 1 bytes of text; the demo needs at least 2" in capsys.readouterr().err


def test_demo_checks_where_the_picture_goes_before_it_works(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "absent" / "demo.png")]) == 1
    assert "absent" in capsys.readouterr().err


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
