"""The demo from beginning to end: profile, recommend, run, compare; then a long sequence."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import sparseattn as sa
from sparseattn.demo import measure, patterns, picture, report, survey, texts
from sparseattn.demo.model import CONTEXT, ByteLM


@dataclass(frozen=True)
class Sizes:
    """Tokens of a text, queries to profile in it, tokens of the long sequence."""

    text: int
    rows: int
    long: int


FULL, QUICK = Sizes(CONTEXT, 256, 65536), Sizes(1024, 128, 8192)


@dataclass(frozen=True)
class Survey:
    """What is known of the heads: a list a layer of kinds and of profiles of the plain text, recommendations by
    title, and how many heads choose by content where time is the price."""

    kinds: list
    plain: list
    columns: dict
    dynamic_by_time: int


def inputs(file, out, sizes):
    """(texts to profile, texts to test); OSError or ValueError where `file` or the folder of `out` is no good, before
    anything runs."""
    folder = Path(out).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{out} cannot be written: {folder} is no folder; create it or choose another --out")
    return texts.halves(file, sizes.text)


def run(profiled, tested, sizes, *, out, threads=None):
    """Profile some texts, read others with what was recommended, run the long sequences, print, write the picture."""
    console = Console()
    bars = TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn()
    progress = Progress(*bars, console=console, transient=True)
    with sa.threads(threads) if threads else nullcontext(), progress:
        model = ByteLM()
        found = look(model, profiled, sizes.rows, progress)
        progress.console.print(report.heads_table(found.kinds, found.plain))
        progress.console.print(report.choices_table(found.kinds, found.columns))
        rows = read_texts(model, tested, found.columns, progress)
        progress.console.print(report.model_table(rows, tested))
        progress.console.print(report.verdict(rows, tested, dynamic_by_time=found.dynamic_by_time), "\n")
        runs = run_long(sizes.long, progress)
    console.print(report.long_table(runs))
    picture.draw(out, found.kinds, found.plain, found.columns)
    console.print(f"Picture: {out}")


def look(model, profiled, rows, progress):
    """The Survey of the model on some texts, of which the last is the copy."""
    task = progress.add_task("compiling (once per machine)", total=1 + model.n_layers * len(profiled))
    sa.warm(dtypes=("float32",), head_dims=(32, 64))
    progress.advance(task)
    offered = patterns.candidates(min(len(text.tokens) for text in profiled))
    profiles = {}
    for text in profiled:
        progress.update(task, description=f"profile of {text.name}")
        profiles[text.name] = survey.profile_model(model, text, offered, rows, lambda: progress.advance(task))
    return summary(profiles, profiled)


def summary(profiles, profiled):
    """The Survey from profiles by the name of their text."""
    names = list(profiles)
    plain, copy = profiles[names[0]], profiles[names[-1]]
    columns = {
        f"from {names[0]} alone": survey.recommend(profiles, names[:1], dynamic=False),
        f"from {' + '.join(names)}": survey.recommend(profiles, names, dynamic=False),
        "the same + by content": survey.recommend(profiles, names),
    }
    by_time = [h for rec in survey.recommend(profiles, names, cost="time") for h in rec.heads if h.candidate.dynamic]
    kinds = [survey.kinds(own, other, profiled[-1]) for own, other in zip(plain, copy)]
    return Survey(kinds, plain, columns, len(by_time))


def read_texts(model, tested, columns, progress):
    """A Row for dense, for each recommendation, and for what these are compared with."""
    chosen = choosers(columns, len(tested[0].tokens), model.n_heads)
    task = progress.add_task("reading", total=len(chosen) * len(tested))
    rows = []
    for name, choose in chosen.items():
        readings = {}
        for text in tested:
            progress.update(task, description=f"{text.name}: {name}")
            readings[text.name] = measure.read(model, text, choose)
            progress.advance(task)
        rows.append(make_row(name, choose.by_content, readings))
    return rows


def choosers(columns, n_tokens, n_heads):
    """Name -> function of (layer, q, k): dense, the recommendations, a window and random blocks with as many pairs as
    the second of them."""
    recommended = {name: patterns.Recommended(recs) for name, recs in columns.items()}
    share = list(recommended.values())[1].density
    size = patterns.window_of(n_tokens, share)[1]
    return {
        "dense causal": patterns.Fixed(sa.patterns.causal),
        **recommended,
        f"window {size:,}, as many pairs": patterns.Fixed(lambda n: patterns.window_of(n, share)[0]),
        "random blocks, as many pairs": patterns.Fixed(lambda n: patterns.random_of(n, share, n_heads)),
    }


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
