"""A profile as a picture. Needs matplotlib."""

from __future__ import annotations

import numpy as np


def plot(profile, axes, head, batch):
    """Three axes: all heads, or one."""
    if not 0 <= batch < profile.batch:
        raise ValueError(f"batch is {batch}; expected 0 to {profile.batch - 1}")
    if head is not None and not 0 <= head < profile.n_heads:
        raise ValueError(f"head is {head}; expected 0 to {profile.n_heads - 1}")
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    axes = np.asarray(axes).ravel()
    if axes.size != 3:
        raise ValueError(f"{axes.size} axes are given; expected 3")
    (_draw_heads if head is None else _draw_head)(profile, axes, batch, head)
    return axes


def _draw_heads(profile, axes, batch, _):
    """Entropy and distance of every head, and what each is."""
    place = np.arange(profile.n_heads)
    axes[0].bar(place, profile.normalized_entropy[batch])
    axes[0].set_ylabel("normalized entropy")
    axes[0].set_ylim(0, 1)
    axes[1].bar(place, profile.distance[batch], label="mean")
    for i, q in enumerate(profile.quantiles):
        axes[1].plot(place, profile.distance_quantiles[batch, :, i], "_", color=f"C{i + 1}", markersize=12,
                     label=f"{q:.0%} within")
    axes[1].set_ylabel("distance (tokens)")
    axes[1].set_yscale("symlog")
    axes[1].legend(fontsize="small")
    names = sorted({name for kinds in profile.kinds for name in kinds})
    table = np.array([[name in kinds for kinds in profile.kinds] for name in names], float).reshape(-1, place.size)
    axes[2].imshow(table if names else np.zeros((1, place.size)), aspect="auto", cmap="Greys", vmin=0, vmax=1.2)
    axes[2].set_yticks(np.arange(max(len(names), 1)), names or ["no kind"])
    for ax in axes:
        ax.set_xticks(place, profile.names, rotation=90 if profile.n_heads > 6 else 0, fontsize="small")


def _draw_head(profile, axes, batch, head):
    """Mass by distance and by key, and what the best keys hold."""
    curve = profile.distance_curve[batch, head]
    axes[0].plot(np.arange(1, curve.size + 1), curve)
    axes[0].set_xscale("log")
    axes[0].set_xlabel("distance + 1 (tokens)")
    axes[0].set_ylabel("mass within")
    axes[1].plot(profile.column_profile[batch, head], linewidth=0.8)
    axes[1].set_xlabel("key")
    axes[1].set_ylabel("mean weight where allowed")
    axes[2].plot(profile.shares, profile.oracle_recall[batch, head], marker=".", label="best keys")
    if profile.recall is not None:
        share = profile.costs.kept[:, head] / profile.dense_cost.kept[head]
        axes[2].plot(share, profile.recall[:, batch, head], "+", label="candidates")
    axes[2].set_xscale("log", base=2)
    axes[2].set_xlabel("share of the keys")
    axes[2].set_ylabel("mass held")
    axes[2].legend(fontsize="small")
    axes[0].set_title(f"{profile.names[head]}: {', '.join(profile.kind(head)) or 'no kind'}", fontsize="small")
