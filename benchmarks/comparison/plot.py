"""The picture of a comparison: bars of shares of the machine's rates, with the floor and the aim of each."""

OURS, PEER, BAR, INK, FAINT = "#2a6f97", "#b8bec7", "#d1495b", "#22262b", "#6b7280"
ROW, GAP = 0.26, 0.6  # inches: of a bar, of a workload's title


def draw(results, path, note, judged):
    """Write a PNG of every contestant that has a share, workloads in two columns; bars only where `judged`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [(r, rows) for r in results if (rows := _rows(r))]
    if not groups:
        raise SystemExit("nothing to plot: no workload here has a share of a machine's rate; leave out --plot")
    columns = _columns(groups)
    height = max(map(_height, columns))
    figure, axes = pyplot.subplots(1, len(columns), figsize=(6.6 * len(columns), height + 1.0), squeeze=False)
    widest = max(share for _, rows in groups for _, share in rows)
    for ax, column in zip(axes[0], columns):
        top = 0.0
        for result, rows in column:
            top = _group(ax, result, rows, top, judged)
        _frame(ax, height, max(1.12, widest * 1.02))
    _legend(axes[0, 0], note, judged)
    figure.tight_layout(w_pad=3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _rows(result):
    """(contestant, share), in the order of the workload."""
    pairs = [(c, c.share(result.seconds)) for c in result.workload.contestants]
    return [(c, s) for c, s in pairs if s is not None]


def _height(groups):
    return sum(len(rows) * ROW + GAP for _, rows in groups)


def _columns(groups):
    """One or two lists of groups, in order, of about equal height."""
    if len(groups) < 4:
        return [groups]
    at = min(range(1, len(groups)), key=lambda i: abs(_height(groups[:i]) - _height(groups[i:])))
    return [groups[:at], groups[at:]]


def _group(ax, result, rows, top, judged):
    """Bars of one workload below `top`; returns the next one's top."""
    machine = "matrix products" if rows[0][0].flop else "reading memory"
    ax.text(0, top + GAP * 0.7, result.workload.title, weight="bold", fontsize=9, color=INK, va="center")
    ax.annotate(f"of {machine}", (1, top + GAP * 0.7), xycoords=("axes fraction", "data"), fontsize=7.5, color=FAINT,
                ha="right", va="center")
    bars = {q.needs[0]: q for q in result.workload.questions if judged and q.unit == "%"}
    at = top + GAP + ROW / 2
    for contestant, share in rows:
        ax.barh(at, share, height=ROW * 0.74, color=PEER if contestant.peer else OURS)
        ax.annotate(contestant.name, (0, at), xytext=(-5, 0), textcoords="offset points", ha="right", va="center",
                    fontsize=8, color=INK)
        ax.annotate(f"{share:.0%}" if share >= 0.095 else f"{share:.1%}", (1, at), xycoords=("axes fraction", "data"),
                    xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
                    weight="normal" if contestant.peer else "bold")
        if contestant.name in bars:
            _marks(ax, bars[contestant.name], at)
        at += ROW
    return at - ROW / 2


def _marks(ax, question, at):
    """A solid line at the floor, a dotted one at the aim."""
    for bar, style in ((question.floor, "-"), (question.aim, (0, (1, 0.7)))):
        if bar is not None:
            ax.plot((bar, bar), (at - ROW * 0.46, at + ROW * 0.46), linestyle=style, color=BAR, linewidth=2,
                    solid_capstyle="butt")


def _frame(ax, bottom, right):
    ax.set_ylim(bottom + GAP * 0.2, 0)
    ax.set_xlim(0, right)
    ax.set_yticks([])
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    ax.tick_params(labelsize=8, color="#9aa1ab", labelcolor=INK)
    ax.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _legend(ax, note, judged):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=OURS, label="sparseattn"), Patch(color=PEER, label="peer")]
    if judged:
        handles += [Line2D([], [], color=BAR, label="floor"), Line2D([], [], color=BAR, linestyle=":", label="aim")]
    legend = ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncol=4,
                       frameon=False, fontsize=8, title=f"Rates as shares of the machine's own, {note}")
    legend.get_title().set(fontsize=9, color=FAINT)
    legend._legend_box.align = "left"
