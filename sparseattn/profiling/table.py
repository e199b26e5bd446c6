"""A profile in words: a line a head."""

from __future__ import annotations

import numpy as np

HEADER = ("head", "entropy", "of most", "distance", "90% within", "keys for 90%", "sink", "largest", "kinds")
NEAREST = 0.9  # the mass and quantile shown are those nearest to this


def of(profile) -> str:
    """The table; means over rows and batch items."""
    mass, quantile = (int(np.argmin(np.abs(np.array(x) - NEAREST))) if x else None
                      for x in (profile.masses, profile.quantiles))
    header = list(HEADER)
    header[4] = f"{profile.quantiles[quantile]:.0%} within" if quantile is not None else "-"
    header[5] = f"keys for {profile.masses[mass]:.0%}" if mass is not None else "-"
    within = None if quantile is None else profile.distance_quantiles[..., quantile]
    keys = None if mass is None else profile.keys_at_mass[..., mass]
    columns = [(profile.entropy, ".2f"), (profile.normalized_entropy, ".2f"), (profile.distance, ".0f"),
               (within, ".0f"), (keys, ".0f"), (profile.sink_mass, ".2f"), (profile.max_weight, ".2f")]
    lines = [header] + [
        [profile.names[h], *("-" if x is None else format(x[:, h].mean(), form) for x, form in columns),
         ", ".join(profile.kind(h)) or "-"] for h in range(profile.n_heads)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(w) if i in (0, len(header) - 1) else cell.rjust(w)
                      for i, (cell, w) in enumerate(zip(line, widths))).rstrip() for line in lines]
    inputs = f"{len(profile.parts)} inputs, {profile.how}; " if profile.how else ""
    n_queries, n_keys = profile.shape
    return "\n".join([f"{inputs}{profile.row_positions.size} of {n_queries} queries, {n_keys} keys, "
                      f"{'causal' if profile.causal else 'not causal'}", *text])
