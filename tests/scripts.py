"""Modules of a folder beside the package, as a script in that folder imports them."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


def importable(monkeypatch, *names, folder=FOLDER):
    """Yields once, while modules of these names can be imported from the folder; they are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in names:
            del sys.modules[name]
