"""demo.png: which blocks each pattern attends."""

from __future__ import annotations

from matplotlib.figure import Figure

COLUMNS = 4


def draw(path, patterns, titles, head):
    """Write a picture of Patterns, one head of each, with a title each."""
    n_rows = -(-len(patterns) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 3.6 * n_rows), layout="constrained")
    for index, (pattern, title) in enumerate(zip(patterns, titles)):
        axes = figure.add_subplot(n_rows, COLUMNS, index + 1)
        pattern.plot(axes, head=min(head, pattern.n_heads - 1))
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.label_outer()
    figure.suptitle("Query by key. Dark: all pairs of the cell are attended; light: some; white: none.", fontsize=10)
    figure.savefig(path, dpi=130)
