"""Names for what heads do, by published criteria; `Profile.kind` says which."""

from __future__ import annotations

import numpy as np

KINDS = ("positional", "previous token", "next token", "sink", "broad", "local", "retrieval", "induction")
POSITIONAL = 0.9  # share of rows whose largest weight is at one offset
NEIGHBOUR = 0.5  # mean weight of the previous or the next token
SINK = 0.3  # mean weight of the first key
BROAD = 0.9  # mean normalized entropy
LOCAL, NEAR = 0.9, 32  # mean mass within so many tokens
RETRIEVAL = 0.1  # share of rows whose largest weight is the target's
INDUCTION = 0.3  # mean weight of the target


def kinds_of(profile, head):
    """The names of one head."""
    rows = profile.rows
    there = rows.allowed[:, head] > 1
    if not there.any():
        return ()
    offsets = rows.best_offset[:, head][there]
    _, counts = np.unique(offsets, return_counts=True)
    found = {
        "positional": counts.max() >= POSITIONAL * offsets.size,
        "previous token": _at(profile, head, -1) > NEIGHBOUR,
        "next token": _at(profile, head, 1) > NEIGHBOUR,
        "sink": rows.sink_mass[:, head][there].mean() > SINK,
        "broad": rows.normalized_entropy[:, head][there].mean() >= BROAD,
        "local": profile.shape[1] > 8 * NEAR and profile.distance_curve[:, head, NEAR].mean() >= LOCAL,
        "retrieval": _mean(rows.target_hit, head) > RETRIEVAL,
        "induction": _mean(rows.target_weight, head) > INDUCTION,
    }
    return tuple(name for name, is_one in found.items() if is_one)


def _at(profile, head, offset):
    """Mean weight at an offset over the rows that have such a key; 0 where none has."""
    at = np.flatnonzero(profile.offsets == offset)
    found = profile.offset_profile[:, head, at] if at.size else np.zeros(1)
    return np.nanmean(found) if not np.isnan(found).all() else 0.0


def _mean(x, head):
    """The mean over rows with a target; 0 where there is none."""
    return 0.0 if x is None or np.isnan(x[:, head]).all() else np.nanmean(x[:, head])
