"""The benchmarks' modules as a script beside them imports them."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks"


def importable(monkeypatch, *names):
    """Yields once, while modules of these names can be imported from the benchmarks; they are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in names:
            del sys.modules[name]
