"""The demo's words: tables, and sentences made from the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table

LOST = 0.25  # bits per byte above dense from which a copy counts as lost


@dataclass(frozen=True)
class Row:
    """One choice of patterns over all texts: mean share of the pairs, summed seconds, bits per byte on each text."""

    name: str
    by_content: bool
    pairs: float
    attention: float
    choosing: float
    bits: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.attention + self.choosing


def heads_table(kinds, profiles):
    """Heads by layers. kinds: lists of names, a list a layer; profiles: of one text, a layer each."""
    table = _table("What the heads do", padding=0)
    table.add_column("")
    for head in range(len(kinds[0])):
        table.add_column(f"head {head}", no_wrap=True)
    for layer, (names, own) in enumerate(zip(kinds, profiles)):
        numbers = [f"{h:.1f} {d:.0f}" for h, d in zip(own.entropy[0], own.distance[0])]
        table.add_row(f"layer {layer}", *(f"{name}\n{both}" for name, both in zip(names, numbers)))
    return _explained(table, (
        "numbers: entropy of the weights in nats, mean distance to the keys in bytes.\n"
        "copy: aims at what followed the last time; start: at the byte between texts;\n"
        "previous: at the byte before; local: 0.9 of the weights within 32 bytes;\n"
        "spread: entropy over 5; mixed: the rest."
    ))


def choices_table(kinds, columns):
    """What some heads get. columns: title -> recommendations, a layer each, side by side."""
    table = _table("What they get, and the share of dense attention's pairs")
    for title in ("head", *columns):
        table.add_column(title)
    for layer, head in telling(kinds):
        cells = [recs[layer].heads[head] for recs in columns.values()]
        table.add_row(f"{layer}.{head} {kinds[layer][head]}", *(f"{c.choice} ({c.share:.0%})" for c in cells))
    n_heads = sum(len(names) for names in kinds)
    table.add_section()
    table.add_row(f"all {n_heads}", *(f"{sum(rec.share for rec in recs) / len(recs):.0%}" for recs in columns.values()))
    return _explained(table, "each head: the cheapest pattern whose output is at most 20% off.")


def telling(kinds):
    """(layer, head) of all that copy and of the first of each other kind."""
    found, seen = [], set()
    for layer, names in enumerate(kinds):
        for head, name in enumerate(names):
            if name == "copy" or name not in seen:
                found.append((layer, head))
                seen.add(name)
    return sorted(found, key=lambda at: kinds[at[0]][at[1]] != "copy")


def model_table(rows, texts):
    """Rows beside the first, dense; bits over their difference to dense."""
    table = _table("bytelm on text that was not profiled")
    table.add_column("pattern")
    for head in ["pairs", "attention", "choosing", *(text.name for text in texts)]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row.pairs:.1%}", f"{row.attention:.2f} s", f"{row.choosing:.2f} s" if row.by_content else ""]
        for text in texts:
            bits, dense = row.bits[text.name], rows[0].bits[text.name]
            change = f"{bits - dense:+.3f}" if text.repeats else f"{bits / dense - 1:+.1%}"
            cells.append(f"{bits:.3f}" if row is rows[0] else f"{bits:.3f}\n{change}")
        table.add_row(row.name, *cells)
    return _explained(table, (
        "pairs: share of the causal triangle; attention, choosing: over texts and layers;\n"
        "texts: bits per byte in the second half, below that the difference to dense;\n"
        "as many pairs: as the third row."
    ))


def long_table(runs):
    """Time and memory of long sequences beside what dense would need."""
    first = runs[0]
    title = f"{first.n_tokens:,} tokens, 8 heads of 64, float32"
    table = _table(title)
    table.add_column("pattern", no_wrap=True)
    for head in ("pairs", "forward", "backward", "memory", "dense would take"):
        table.add_column(head, justify="right", no_wrap=True)
    for run in runs:
        cells = f"{run.pairs:.2%}", f"{run.forward:.2f} s", f"{run.backward:.2f} s", f"{run.peak / 1e9:.2f} GB"
        table.add_row(run.name, *cells, f"{run.dense_seconds:,.0f} s")
    return _explained(table, (
        "memory: the most that inputs, results and scratch held at once.\n"
        "dense is computed, not run: all causal pairs, forward and backward, at the row's rate:\n"
        f"{first.dense_flops / 1e12:,.1f} TFLOP, and {first.dense_bytes / 1e9:,.1f} GB where all scores are stored."
    ))


def _table(title, padding=(0, 1)):
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=padding)


def _explained(table, words):
    table.caption, table.caption_justify = words, "left"
    return table


def verdict(rows, texts, *, dynamic_by_time):
    """What the rows show, a sentence a line. Rows: dense, what was recommended (up to three), what that is compared
    with. Last text: the copy. dynamic_by_time: how many heads choose by content where time is the price."""
    return "\n".join((_copy(rows, texts[-1]), _cost(rows, texts[:-1]), _time(rows, texts[0], dynamic_by_time)))


def _copy(rows, text):
    """Who loses the copy, and who keeps it."""
    dense = rows[0].bits[text.name]
    groups = {"lost by": [], "kept by": []}
    for row in rows[1:]:
        bits = row.bits[text.name]
        groups["lost by" if bits - dense > LOST else "kept by"].append(f'"{row.name}" ({bits:.2f})')
    found = [f"{what} {listed(names)}" for what, names in groups.items() if names]
    return f"A copy from {text.start - 1:,} bytes back, in bits (dense {dense:.2f}): {'; '.join(found)}."


def _cost(rows, texts):
    """What the last recommendation costs elsewhere."""
    last = rows[1:4][-1]
    costs = [f"{last.bits[text.name] / rows[0].bits[text.name] - 1:+.1%} bits on {text.name}" for text in texts]
    return f'"{last.name.capitalize()}" computes {last.pairs:.0%} of the pairs for {listed(costs)}.'


def _time(rows, text, dynamic_by_time):
    """Where dense wins."""
    dense, found = rows[0], []
    for faster, words in ((True, "faster than dense are"), (False, "dense is faster than")):
        own = [row for row in rows[1:] if (row.seconds < dense.seconds) == faster]
        if own:
            times = listed([f'"{row.name}" (x {row.seconds / dense.seconds:.1f})' for row in own])
            found.append(f"{words} {times}")
    who = f"{dynamic_by_time} heads" if dynamic_by_time else "no head"
    return (f"Time at {len(text.tokens):,} tokens, choosing included: {'; '.join(found)}. "
            f"Asked for time instead of pairs, recommend lets {who} choose by content.")


def listed(names):
    """a, b and c"""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
