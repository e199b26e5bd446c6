"""What the examples read: English and code that come with Python, and this project's own documentation."""

import argparse
import inspect
import re
from pathlib import Path

import numpy as np

import sparseattn as sa

ROOT = Path(__file__).parents[1]
TESTED = "specialnames"  # the topic of Python's help that no profile sees


def prose(profiled):
    """The help of Python, in reading order of its topics: what is profiled, or else what is tested."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics) if name != TESTED) if profiled else topics[TESTED]


def code(profiled):
    """Source of the standard library: what is profiled, or else what is tested."""
    return Path((inspect if profiled else argparse).__file__).read_text(encoding="utf-8")


def twice(tokens, between, n_tokens):
    """`n_tokens` tokens that say the same twice: the answer to the second half stands in the first."""
    half = tokens[: n_tokens // 2]
    return np.concatenate((half, [between], half[1:]))[:n_tokens]


def documentation():
    """Texts of this project: its pages without code blocks, and what it says of its public functions."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
    pages = [re.sub(r"```.*?```", " ", file.read_text(encoding="utf-8"), flags=re.DOTALL) for file in files
             if "_build" not in file.parts]
    functions = [getattr(module, name) for module in (sa, sa.patterns, sa.variants) for name in sorted(module.__all__)]
    return [*pages, "\n\n".join(inspect.getdoc(function) for function in functions if inspect.isfunction(function))]
