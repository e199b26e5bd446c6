"""The demo's words: two tables, and one sentence made from the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table

LOST = 0.25  # bits per byte above dense from which a copy counts as lost


@dataclass(frozen=True)
class Row:
    """One pattern over all texts: mean share of the pairs, summed seconds, bits per byte on each text."""

    name: str
    by_content: bool
    pairs: float
    attention: float
    choosing: float
    bits: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.attention + self.choosing


def model_table(rows, texts):
    """Rows beside the first, dense; bits over their difference to dense."""
    table = Table(box=box.SIMPLE_HEAD, title="bytelm, one pattern in every layer", title_justify="left")
    table.add_column("pattern")
    for head in ["pairs", "attention", "choosing", *(f"{text.name}" for text in texts)]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row.pairs:.1%}", f"{row.attention:.2f} s", f"{row.choosing:.2f} s" if row.by_content else ""]
        for name, bits in row.bits.items():
            cells.append(f"{bits:.3f}" if row is rows[0] else f"{bits:.3f}\n{bits - rows[0].bits[name]:+.3f}")
        table.add_row(row.name, *cells)
    table.caption = (
        "pairs: share of the causal triangle; attention, choosing: over texts and layers;\n"
        + "texts: bits per byte in the second half, below that the difference to dense."
    )
    table.caption_justify = "left"
    return table


def long_table(runs):
    """Time and memory of long sequences beside what dense would need."""
    first = runs[0]
    title = f"{first.n_tokens:,} tokens, 8 heads of 64, float32"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("pattern", no_wrap=True)
    for head in ("pairs", "forward", "backward", "memory", "dense would take"):
        table.add_column(head, justify="right", no_wrap=True)
    for run in runs:
        cells = f"{run.pairs:.2%}", f"{run.forward:.2f} s", f"{run.backward:.2f} s", f"{run.peak / 1e9:.2f} GB"
        table.add_row(run.name, *cells, f"{run.dense_seconds:,.0f} s")
    table.caption = (
        "memory: the most that inputs, results and scratch held at once.\n"
        + "dense is computed, not run: all causal pairs, forward and backward, at the row's rate:\n"
        + f"{first.dense_flops / 1e12:,.1f} TFLOP, and {first.dense_bytes / 1e9:,.1f} GB where all scores are stored."
    )
    table.caption_justify = "left"
    return table


def verdict(rows, texts):
    """One sentence on what the rows show. First row: dense; second: the nearest keys. Last text: the copy."""
    return "; ".join((_near(rows, texts[0]), _copy(rows, texts[-1]), _time(rows, texts[0]))) + "."


def _near(rows, text):
    dense, near = rows[:2]
    cost = near.bits[text.name] - dense.bits[text.name]
    return (
        f"{near.name.capitalize()} computes {near.pairs:.0%} of the pairs"
        f" in {near.attention / dense.attention:.2f} of dense's time for {cost:+.2f} bits per byte on {text.name}"
    )


def _copy(rows, text):
    dense, distance = rows[0], text.start - 1
    if dense.bits[text.name] > 1:
        return f"dense itself does not repeat the copy from {distance:,} bytes back ({dense.bits[text.name]:.2f} bits)"
    lost = [row for row in rows[1:] if row.bits[text.name] - dense.bits[text.name] > LOST]
    kept = [row for row in rows[1:] if row not in lost]
    by_position = [row for row in rows[1:] if not row.by_content]
    if lost == by_position:
        losers = "every pattern that chooses by position alone"
    else:
        losers = _names(lost) or "none"
    words = f"a copy from {distance:,} bytes back is lost by {losers}"
    if lost:
        words += f" ({min(row.bits[text.name] for row in lost):.2f} bits at best, dense {dense.bits[text.name]:.3f})"
    if kept:
        best = min(kept, key=lambda row: row.bits[text.name])
        words += f" and kept by {best.name} ({best.bits[text.name]:.3f} bits) at {best.pairs:.0%} of the pairs"
    return words


def _time(rows, text):
    dense = rows[0]
    slow = [row for row in rows[1:] if row.seconds >= dense.seconds]
    where = f"at {len(text.tokens):,} tokens"
    if not slow:
        return f"{where} every pattern takes less time than dense, choosing blocks included"
    most = max(row.seconds for row in slow) / dense.seconds
    return f"{where} dense is faster than {_names(slow)} (up to {most:.1f} times), choosing blocks included"


def _names(rows):
    return " and ".join(filter(None, (", ".join(row.name for row in rows[:-1]), *(row.name for row in rows[-1:]))))
