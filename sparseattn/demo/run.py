"""The demo from beginning to end."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import sparseattn as sa
from sparseattn.demo import measure, patterns, picture, report, texts
from sparseattn.demo.model import CONTEXT, ByteLM

SHOWN_HEAD = 5  # of the last layer: it follows copies


@dataclass(frozen=True)
class Sizes:
    """Tokens of a text, tokens of the long sequence."""

    text: int
    long: int


FULL, QUICK = Sizes(CONTEXT, 65536), Sizes(1024, 8192)


def inputs(file, out, sizes):
    """The texts to read; OSError or ValueError where `file` or the folder of `out` is no good, before anything runs."""
    folder = Path(out).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{out} cannot be written: {folder} is no folder; create it or choose another --out")
    return texts.samples(sizes.text) if file is None else texts.from_file(file, sizes.text)


def run(chosen_texts, sizes, *, out, threads=None):
    """Read the texts through every pattern, run the long sequences, print the tables and write the picture."""
    console = Console()
    columns = TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn()
    progress = Progress(*columns, console=console, transient=True)
    with sa.threads(threads) if threads else nullcontext(), progress:
        rows, shown = read_texts(chosen_texts, progress)
        runs = run_long(sizes.long, progress)
    console.print(report.model_table(rows, chosen_texts))
    console.print(report.verdict(rows, chosen_texts), "\n")
    console.print(report.long_table(runs))
    titles = [f"{row.name}\n{row.pairs:.1%} of the pairs, copy {row.bits['copy']:.3f} bits" for row in rows]
    picture.draw(out, shown, titles, SHOWN_HEAD)
    console.print(f"Picture: {out} (head {SHOWN_HEAD} of the last layer, reading the copy)")


def read_texts(chosen_texts, progress):
    """(a Row for each pattern, the pattern in which each read the last text)."""
    model = ByteLM()
    choosers = make_choosers(chosen_texts, model.n_heads)
    task = progress.add_task("compiling (once per machine)", total=1 + len(choosers) * len(chosen_texts))
    sa.warm(dtypes=("float32",), head_dims=(32, 64))
    progress.advance(task)
    rows, shown = [], []
    for name, (choose, by_content) in choosers.items():
        readings = {}
        for text in chosen_texts:
            progress.update(task, description=f"{text.name}: {name}")
            readings[text.name], last = measure.read(model, text, choose(len(text.tokens)))
            progress.advance(task)
        rows.append(make_row(name, by_content, readings))
        shown.append(last)
    return rows, shown


def make_choosers(chosen_texts, n_heads):
    """Name -> (function of n_tokens that gives a function of q, k that gives a Pattern, whether it looks at q, k)."""
    by_length = {len(text.tokens): patterns.by_position(len(text.tokens), n_heads) for text in chosen_texts}
    longest = by_length[max(by_length)]
    dense, *others = longest
    # A window wider than the text is dense once more.
    names = [dense] + [name for name in others if not longest[name].same_pairs(longest[dense])]
    choosers = {name: (lambda n, name=name: lambda q, k: by_length[n][name], False) for name in names}
    choosers.update({name: (lambda n, choose=choose: choose, True) for name, choose in patterns.by_content().items()})
    return choosers


def make_row(name, by_content, readings):
    """One line of the table from the readings of all texts."""
    pairs = float(np.mean([r.pairs for r in readings.values()]))
    attention, choosing = (sum(getattr(r, kind) for r in readings.values()) for kind in ("attention", "choosing"))
    bits = {text: r.bits for text, r in readings.items()}
    return report.Row(name, by_content, pairs, attention, choosing if by_content else 0.0, bits)


def run_long(n_tokens, progress):
    """A LongRun for a causal window and for a strided pattern."""
    chosen = {
        "window 512": patterns.window(n_tokens, 512),
        "strided 256": sa.patterns.strided(n_tokens, stride=256),
    }
    task = progress.add_task(f"{n_tokens:,} tokens", total=len(chosen))
    arrays = measure.long_inputs(n_tokens)
    runs = []
    for name, pattern in chosen.items():
        progress.update(task, description=f"{n_tokens:,} tokens: {name}")
        runs.append(measure.run_long(name, pattern, *arrays))
        progress.advance(task)
    return runs
