"""Pictures of what came out. They need matplotlib."""

import numpy as np

from models import wheels

INKS = "#1f4e79", "#c06a1f", "#3f7d57"


def save_scatter(path, points, across, upward):
    """Name -> (share of the pairs, {task: loss}); a number a pattern, a color a task, what is lost on a log axis."""
    figure = _figure(9, 3.8)
    axes, beside = figure.subplots(1, 2, width_ratios=(2, 1.1))
    tasks = list(next(iter(points.values()))[1])
    for ink, task in zip(INKS, tasks):
        axes.plot([pairs for pairs, _ in points.values()], [max(lost[task], 0) for _, lost in points.values()], "o",
                  color=ink, label=task, alpha=0.8)
    for number, (pairs, lost) in enumerate(points.values(), start=1):
        axes.annotate(str(number), (pairs, max(*lost.values(), 0)), (5, 3), textcoords="offset points", fontsize=8)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel=across, ylabel=upward)
    names = [f"{number}  {name}" for number, name in enumerate(points, start=1)]
    axes.legend(fontsize=8)
    beside.text(0, 1, "\n".join(names), fontsize=6.5, va="top", linespacing=1.6)
    beside.axis("off")
    figure.savefig(path, dpi=110)


def save_grids(path, keys, maps):
    """A column a pattern: which patches the one in the middle attends, and below it the saliency map."""
    figure = _figure(2 * len(keys), 4.6)
    lowest, highest = (f(next(iter(maps.values()))) for f in (np.min, np.max))
    for number, name in enumerate(keys):
        above, below = (figure.add_subplot(2, len(keys), at) for at in (number + 1, len(keys) + number + 1))
        above.imshow(keys[name], cmap="Blues", vmin=0, vmax=1.4)
        above.plot(*(length // 2 for length in keys[name].shape), ".", color=INKS[1])
        below.imshow(maps[name][::4, ::4], cmap="magma", vmin=lowest, vmax=highest)
        above.set_title(name.replace(", ", ",\n"), fontsize=8)
        for axes in (above, below):
            axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def _figure(width, height):
    return wheels.module("matplotlib.figure", "matplotlib").Figure(figsize=(width, height), layout="constrained")
