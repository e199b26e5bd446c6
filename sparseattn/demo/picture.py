"""demo.png: the heads by layers, what each gets, and error against pairs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from sparseattn.demo.survey import KINDS

SHOWN = ("copy", "local", "spread", "start")  # a head of each, where there is one
WORST = 1.2  # errors above are drawn here


def draw(path, kinds, profiles, columns):
    """Write the picture. kinds, profiles: as for the tables; columns: title -> recommendations, a layer each."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 4)
    letters = np.array([[name[:2] for name in names] for names in kinds])
    entropy, distance = ([getattr(own, name)[0] for own in profiles] for name in ("entropy", "distance"))
    _heads(figure, axes[0, 0], "entropy (nats)", entropy, letters)
    _heads(figure, axes[0, 1], "log10 of the distance (bytes)", np.log10(distance), letters)
    for ax, (title, recs) in zip(axes[0, 2:], columns.items()):
        _heads(figure, ax, f"pairs / dense, {title}", [[h.share for h in rec.heads] for rec in recs], letters, (0, 1))
    recs = list(columns.values())[-1]
    for ax, (layer, head) in zip(axes[1], _shown(kinds)):
        _error(ax, recs[layer], head, f"head {layer}.{head}, {kinds[layer][head]}")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, fontsize="small")
    figure.suptitle("Above: heads by layers (" + ", ".join(f"{name[:2]}: {name}" for name in KINDS)
                    + "). Below: error against pairs of all patterns tried; the star is chosen.", fontsize=10)
    figure.savefig(path, dpi=110)


def _heads(figure, ax, title, values, letters, limits=(None, None)):
    """A number a head as a picture, layers downwards."""
    image = ax.imshow(np.array(values), aspect="auto", cmap="Blues", vmin=limits[0], vmax=limits[1])
    for (layer, head), text in np.ndenumerate(letters):
        dark = image.norm(image.get_array()[layer, head]) > 0.6
        ax.text(head, layer, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    figure.colorbar(image, ax=ax)


def _shown(kinds):
    """(layer, head) of one of each kind in SHOWN, then of others: four in all."""
    places = [(layer, head) for layer, names in enumerate(kinds) for head in range(len(names))]
    first = {}
    for layer, head in places:
        first.setdefault(kinds[layer][head], (layer, head))
    found = [first[name] for name in SHOWN if name in first]
    return (found + [place for place in places if place not in found])[:4]


def _error(ax, rec, head, title):
    """Error of every candidate over its pairs, and the choice."""
    points = rec.points
    for family in dict.fromkeys(points.families):
        own = np.array(points.families) == family
        ax.plot(points.share[own, head], np.minimum(points.loss[own, head], WORST), ".", label=family)
    chosen = rec.heads[head]
    ax.plot(chosen.share, chosen.error, "*", color="black", markersize=11)
    ax.axhline(rec.asked.max_error, color="gray", linewidth=0.7, linestyle="--")
    ax.set_xscale("log", base=2)
    ax.set_ylim(-0.03, WORST + 0.05)
    ax.set_title(f"{title}: {chosen.choice}", fontsize=9)
    ax.set_xlabel("pairs / dense")
    ax.set_ylabel("error")
