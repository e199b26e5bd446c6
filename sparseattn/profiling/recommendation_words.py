"""A recommendation as a table."""

from __future__ import annotations

TITLES = ("head", "pattern", "cost", "error", "recall", "low", "best keys", "next best")
CHOOSING = "* looks at q and k; the cost of choosing is not in these pairs, but in cost=\"time\" and \"measured\".\n"
NOTE = """\
error: of the output on the profiled rows; recall: captured mass, mean and {quantile:.0%} quantile of the rows;
best keys: pairs that the best choice of keys needs for this recall. Rank by error: a head that looks everywhere takes a
mean, which an even sample estimates well while it holds little of the mass. Test the whole model in the end."""


def table(rec) -> str:
    """The lines that a person decides from."""
    rows = [TITLES, *(_row(rec, choice) for choice in rec.heads)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(TITLES))]
    left = {1, 7}
    lines = ["  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]
    note = NOTE.format(quantile=rec.asked.quantile)
    if rec.asked.cost == "pairs" and any(choice.candidate.dynamic for choice in rec.heads):
        note = CHOOSING + note
    return "\n".join([_head(rec), *(line.rstrip() for line in lines), _sum(rec), note])


def _head(rec):
    asked = rec.asked
    wanted = [f"error up to {asked.max_error:g}"] if asked.max_error is not None else []
    if asked.target_recall is not None:
        wanted.append(f"recall from {asked.target_recall:g} in all but {asked.quantile:.0%} of the rows")
    if asked.budget is not None:
        wanted.append(f"within {asked.budget:.0%} of dense" if asked.budget <= 1 else f"in {asked.budget:,.0f} pairs")
    n_queries, n_keys = rec.shape
    return (f"Recommendation for {len(rec.heads)} heads, {n_queries:,} x {n_keys:,} tokens"
            f"{', causal' if rec.causal else ''}: {', '.join(wanted)}")


def _row(rec, choice):
    error = "" if choice.error is None else f"{choice.error:.3f}"
    other = "none" if choice.runner_up is None else f"{choice.runner_up} ({choice.runner_up_share:.1%})"
    marks = "*" * choice.candidate.dynamic + ("" if choice.met else " (misses)")
    return (str(choice.head), choice.choice + marks, f"{choice.share:.1%}", error,
            f"{choice.recall_mean:.3f}", f"{choice.recall_low:.3f}", f"{choice.oracle_pairs / rec.whole:.1%}", other)


def _sum(rec):
    unit = {"pairs": "pairs in blocks", "time": "predicted time", "measured": "measured time"}[rec.asked.cost]
    dense = sum(choice.candidate.family == "dense" for choice in rec.heads)
    missing = sum(not choice.met for choice in rec.heads)
    return (f"All heads: {rec.share:.1%} of dense attention's {unit}, {rec.density:.1%} of its pairs; {dense} of "
            f"{len(rec.heads)} stay dense" + (f"; {missing} miss what was asked" if missing else "") + ".")
