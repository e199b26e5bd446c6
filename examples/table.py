"""Tables in plain text."""

from collections import Counter


def table(head, rows):
    """Lines with columns of equal width; the first column to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.rjust(width) if at else cell.ljust(width)
                               for at, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def head_lines(profiles, candidates):
    """Head and rows of a table of profiles by layer: what heads look at, and the mass that some candidates hold."""
    head = "layer", "entropy", "distance", "keys of half the mass", *(f"{name} holds" for name in candidates)
    rows = []
    for layer, profile in profiles.items():
        names = [candidate.name for candidate in profile.candidates]
        recalls = [profile.recall[names.index(name), 0] for name in candidates]
        shown = [(profile.entropy[0], 2), (profile.distance[0], 0), (profile.keys_at_mass[0, :, 0], 0),
                 *((recall, 2) for recall in recalls)]
        rows.append([layer, *(f"{x.mean():.{d}f} ({x.min():.{d}f} to {x.max():.{d}f})" for x, d in shown)])
    return head, rows


def counted(recommendations, n_shown=6):
    """How many heads of all layers got what, the most frequent first."""
    names = [head.choice for chosen in recommendations.values() for head in chosen.heads]
    kinds = Counter(names).most_common()
    others = sum(count for _, count in kinds[n_shown:])
    return ", ".join(f"{count} {name}" for name, count in kinds[:n_shown]) + (f", {others} others" if others else "")


def slower(seconds):
    """A sentence on what takes longer than the first, from name -> seconds."""
    first, *others = seconds
    names = [name.strip() for name in others if seconds[name] >= seconds[first]]
    return f"Takes no less time than {first!r}, choosing included: {'; '.join(names) or 'nothing'}."
