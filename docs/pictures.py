"""Pictures of patterns: each pair where it lies, and the same pairs in the order in which they are stored."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from sparseattn import Pattern

PAPER, GREY = "#f4f1ea", "#dcdcdc"
INKS = ("#1f4e79", "#c06a1f", "#3f7d57")  # pairs of the first part, of the second ...
TINTS = ("#c9dbea", "#f3d9c0", "#cfe3d6")  # the rest of the tiles that hold them
SIDE = 2.2  # inches of the longest side of a panel
GAP, TOP, BOTTOM = 0.45, 0.4, 0.2  # inches between panels, above and below them
NARROWEST = 1.0  # inches that a title needs
DPI = 180


class Panel(NamedTuple):
    """One square of a picture: a number per cell, and the color of each number."""

    title: str
    image: np.ndarray
    colors: tuple
    words: tuple  # below, beside
    lines: bool = False  # between cells


def picture(pattern, tile=None, grid=None):
    """A figure of one head of a pattern: its pairs, then its first parts if some have an order.

    tile: slots of a tile, for small pictures; None: that of the pattern. grid: the lengths of its two axes, to show the
    keys of one query there.
    """
    cut = _cut(pattern[:1, :1], tile)
    parts = [Pattern.from_parts([part], pattern.shape) for part in cut.tiles()]
    dense = [part.to_dense()[0, 0] for part in parts]
    panels = [_one_query(sum(dense) > 0, grid)] if grid else []
    if any(_is_reordered(part) for part in parts):
        size = parts[0].parts[0].block_size
        full = f"tiles {fullness(sum(dense) > 0, size):.0%} full"
        panels.append(where_it_lies(dense, [size] * len(parts), f"where it lies\n{full}"))
        panels += [_as_stored(part, number, len(parts)) for number, part in enumerate(parts[: len(INKS)])]
    else:
        sizes = [part.parts[0].block_size for part in parts]
        full = "single pairs" if set(sizes) == {(1, 1)} else f"tiles {cut.density_in_tiles:.0%} full"
        panels.append(where_it_lies(dense, sizes, full))
    return drawn(panels)


def drawn(panels):
    """A figure of panels beside each other, their cells of one size but for those with lines."""
    longest = max(max(panel.image.shape) for panel in panels if not panel.lines)
    sizes = [[n * SIDE / (n if panel.lines else longest) for n in panel.image.shape] for panel in panels]
    widths = [max(width, NARROWEST) + GAP for _, width in sizes]
    whole = sum(widths), max(height for height, _ in sizes) + TOP + BOTTOM
    figure = Figure(figsize=whole, dpi=DPI)
    for number, (panel, (height, width)) in enumerate(zip(panels, sizes)):
        left = sum(widths[:number]) + GAP * 0.6
        box = left / whole[0], 1 - (TOP + height) / whole[1], width / whole[0], height / whole[1]
        _show(figure.add_axes(box), panel, height)
    return figure


def fullness(pairs, tile):
    """Pairs over pairs of the tiles that hold them, where they lie."""
    return pairs.sum() / max(_touched(pairs, tile).sum() * tile[0] * tile[1], 1)


def where_it_lies(dense, tiles, title):
    """The pairs of all parts, each in the color of its part and shaded by its tiles."""
    image = np.max([np.minimum(_shaded(pairs, tile), 1) for pairs, tile in zip(dense, tiles)], axis=0)
    for number, pairs in enumerate(dense):
        image[pairs] = 2 + number % len(INKS)
    return Panel(title, image, (PAPER, GREY, *INKS), ("keys", "queries"))


def _as_stored(part, number, count):
    """One part, slot by slot, without tiles of slots that are nobody's."""
    (stored,) = part.parts
    bare = replace(stored, shape=(stored.n_q_slots, stored.n_k_slots), q_order=None, k_order=None)
    somebody = [np.ones(n, bool) if order is None else order.listing()[0, 0] >= 0
                for n, order in zip(bare.shape, (stored.q_order, stored.k_order))]
    slots = Pattern.from_parts([bare], bare.shape).to_dense()[0, 0] & somebody[0][:, None] & somebody[1]
    name = "as stored" if count == 1 else f"part {number + 1} of {count} as stored"
    kept = [np.repeat(_touched(there[None], (1, side))[0], side)[: there.size]
            for there, side in zip(somebody, stored.block_size)]
    image = _shaded(slots, stored.block_size)[np.ix_(*kept)]
    return Panel(f"{name}\ntiles {part.density_in_tiles:.0%} full", image,
                 (PAPER, TINTS[number], INKS[number]), ("keys", "queries"))


def _one_query(pairs, grid):
    """The keys of the query in the middle of a grid."""
    middle = tuple(length // 2 for length in grid)
    image = pairs[np.ravel_multi_index(middle, grid)].reshape(grid).astype(int)
    image[middle] += 1
    return Panel("the keys of one query\non the grid", image, (PAPER, TINTS[0], INKS[0]), ("columns", "rows"), True)


def _cut(pattern, tile):
    return pattern if tile is None else pattern.reblock(tile)


def _is_reordered(part):
    return any(p.q_order is not None or p.k_order is not None for p in part.parts)


def _touched(pairs, tile):
    """Which tiles hold a pair, bool (rows, cols)."""
    rows, cols = (-(-n // side) for n, side in zip(pairs.shape, tile))
    padded = np.zeros((rows * tile[0], cols * tile[1]), bool)
    padded[: pairs.shape[0], : pairs.shape[1]] = pairs
    return padded.reshape(rows, tile[0], cols, tile[1]).any((1, 3))


def _shaded(pairs, tile):
    """0: no pair in the tile, 1: none here, but in the tile, 2: a pair."""
    touched = np.kron(_touched(pairs, tile), np.ones(tile, int))
    return touched[: pairs.shape[0], : pairs.shape[1]] + pairs


def _show(ax, panel, height):
    rows, cols = panel.image.shape
    ax.imshow(panel.image, cmap=ListedColormap(panel.colors), vmin=0, vmax=len(panel.colors) - 1, aspect="auto",
              interpolation="nearest", extent=(0, cols, rows, 0))
    ax.set(xticks=[], yticks=[])
    ax.set_title(panel.title, fontsize=7.5, loc="left", pad=4)
    below, beside = panel.words
    ax.set_xlabel(below, fontsize=7, labelpad=3)
    low = {"rotation": 0, "ha": "right", "va": "center"} if height < 0.4 else {}
    ax.set_ylabel(beside, fontsize=7, labelpad=3, **low)
    if panel.lines:
        ax.hlines(range(1, rows), 0, cols, color="white", linewidth=0.8)
        ax.vlines(range(1, cols), 0, rows, color="white", linewidth=0.8)
    for spine in ax.spines.values():
        spine.set(color="#9a9a9a", linewidth=0.5)
