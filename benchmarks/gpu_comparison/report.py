"""Rows of a comparison as text, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

OURS, PEER, BAR, INK = "#2a6f97", "#b8bec7", "#d1495b", "#22262b"


@dataclass(frozen=True)
class Question:
    """A number, and the least (or most) that it should be."""

    label: str
    value: float
    bar: float | None = None
    at_most: bool = False
    unit: str = "x"

    @property
    def missed(self):
        return self.bar is not None and (self.value > self.bar if self.at_most else self.value < self.bar)


@dataclass
class Row:
    """One call of one workload: milliseconds by contestant, and what follows from them."""

    section: str
    workload: str
    direction: str
    times: dict[str, float] = field(default_factory=dict)
    flop: float = 0
    differs: dict[str, float] = field(default_factory=dict)  # largest difference over the largest entry
    missing: dict[str, str] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)

    def ask(self, peer, bar=None, ours="ours"):
        """How many times as fast `ours` is as a peer, where both ran."""
        if peer in self.times and ours in self.times:
            value = self.times[peer] / self.times[ours]
            self.questions.append(Question(f"{ours} beside {peer}", value, bar))


def show(row):
    """Print a row as soon as it is there."""
    for name, ms in row.times.items():
        rate = f"{row.flop / ms / 1e9:8.1f} TFLOP/s" if row.flop else ""
        differs = f"  differs {row.differs[name]:.0e}" if name in row.differs else ""
        print(f"{row.workload:<34}{row.direction:<10}{name:<22}{ms:9.4f} ms{rate}{differs}")
    for name, reason in row.missing.items():
        print(f"{row.workload:<34}{row.direction:<10}{name:<22} not run: {reason}")
    for q in row.questions:
        bar = "" if q.bar is None else f"  bar {q.bar:g}{'  MISSED' if q.missed else ''}"
        print(f"{row.workload:<34}{row.direction:<10}  {q.label:<34}{q.value:8.2f} {q.unit}{bar}", flush=True)


def summary(rows):
    missed = [(r, q) for r in rows for q in r.questions if q.missed]
    lines = [f"  {r.section}, {r.workload}, {r.direction}: {q.label} {q.value:.2f} {q.unit}, bar {q.bar:g}"
             for r, q in missed]
    return "\n".join(["\nBars missed:", *lines] if lines else ["\nNo bar is missed."])


def write(rows, machine, path):
    with open(path, "w") as file:
        json.dump({"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}, file, indent=1)


def draw(rows, machine, path):
    """Bars of how many times as fast ours is as its first peer, with a mark at the bar to reach."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(row, row.questions[0]) for row in rows if row.questions and row.questions[0].unit == "x"]
    if not shown:
        raise SystemExit("nothing to plot: no row here has a ratio; leave out --plot")
    figure, ax = pyplot.subplots(figsize=(9, 1.2 + 0.24 * len(shown)))
    for at, (row, question) in enumerate(shown):
        ax.barh(at, question.value, color=OURS if row.direction == "forward" else PEER, height=0.74)
        ax.annotate(f"{question.value:.2f}", (question.value, at), xytext=(5, 0), textcoords="offset points",
                    va="center", fontsize=7.5, color=INK)
        if question.bar is not None:
            ax.plot((question.bar, question.bar), (at - 0.45, at + 0.45), color=BAR, linewidth=2)
    ax.set_yticks(range(len(shown)), [f"{row.workload}, {row.direction}" for row, _ in shown], fontsize=7.5)
    ax.set_xscale("log")
    ax.axvline(1, color=INK, linewidth=0.8)
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(lambda x, _: f"{x:g}")
    ax.tick_params(axis="x", which="both", labelsize=7.5)
    ax.margins(x=0.08)
    ax.invert_yaxis()
    labels = ", ".join(dict.fromkeys(question.label for _, question in shown))
    ax.set_title(f"{labels}\n{machine}; red: the bar", fontsize=8, loc="left")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
