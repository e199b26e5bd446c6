"""A recommendation as a picture."""

from __future__ import annotations

import numpy as np

WORST = 1.2  # losses above are worse than no attention at all: not shown


def plot(rec, axes=None):
    """Loss over cost, a picture a head."""
    n_heads = len(rec.heads)
    if axes is None:
        axes = _figure(n_heads)
    axes = np.asarray(axes)
    if axes.size < n_heads:
        raise ValueError(f"{axes.size} axes are given for {n_heads} heads; give one a head")
    for choice, ax in zip(rec.heads, axes.flat):
        _draw(ax, rec, choice)
    for ax in axes.flat[n_heads:]:
        ax.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[0].figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small")
    return axes


def _figure(n_heads):
    import matplotlib.pyplot as plt

    columns = min(n_heads, 4)
    rows = -(-n_heads // columns)
    _, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows + 0.8), sharex=True, sharey=True,
                           squeeze=False, layout="constrained")
    return axes


def _draw(ax, rec, choice):
    points, head = rec.points, choice.head
    families = list(dict.fromkeys(points.families))
    for number, family in enumerate(families):
        at = [i for i, own in enumerate(points.families) if own == family]
        at.sort(key=lambda i: points.share[i, head])
        share, lost = points.share[at, head], points.loss[at, head]
        color = f"C{number % 10}"
        ax.plot(share, lost, ".", color=color, markersize=4, alpha=0.6)
        ax.plot(share, np.minimum.accumulate(lost), color=color, linewidth=0.8, linestyle="-" if number < 10 else ":",
                marker="." if len(at) == 1 else None, label=family.replace("_", " "))
    loss = 1 - choice.recall_mean if choice.error is None else choice.error
    ax.plot([choice.share], [loss], "*", color="black", markersize=11, zorder=3)
    if rec.asked.max_error is not None and choice.error is not None:
        ax.axhline(rec.asked.max_error, color="gray", linewidth=0.7, linestyle="--")
    ax.set_xscale("log")
    ax.set_ylim(-0.03, WORST)
    ax.set_title(f"head {head}: {choice.choice}", fontsize="small")
    ax.set_xlabel("cost / dense", fontsize="small")
    ax.set_ylabel(points.loss_name, fontsize="small")
    ax.tick_params(labelsize="x-small")
