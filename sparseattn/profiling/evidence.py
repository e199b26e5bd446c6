"""What a profile says of its candidates, in the form in which a choice is made: a number a candidate and head."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from sparseattn.profiling import costs
from sparseattn.profiling.candidates import Candidate


LEFT = 1e-4  # mass that only all keys leave out


@dataclass(frozen=True)
class Evidence:
    """Arrays (n_candidates, n_heads); of several inputs the worst (the mean, if they were combined so), costs the mean.
    Heads that share keys and values stand together: each has the worst of its group.

    Attributes
    ----------
    candidates : tuple of Candidate
        Those of the profile, and dense attention.
    group : int
        Query heads for each key/value head.
    parts : tuple of Profile
        Where all this comes from.
    recall_mean, recall_low : array
        Mass captured: the mean over rows, and the quantile asked for.
    error : array or None
        Frobenius norm of the output's error over that of the output; None for a profile without v.
    pairs, kept : array
        Pairs of a head after and before rounding to blocks.
    cost : array
        What is to be small, as a share of dense attention's.
    oracle : array
        Pairs that the best choice of keys needs for the same mean recall.
    whole, dense_pairs : float
        Pairs of a head of dense attention, after and before rounding to blocks.
    """

    candidates: tuple[Candidate, ...]
    group: int
    parts: tuple
    recall_mean: np.ndarray
    recall_low: np.ndarray
    error: np.ndarray | None
    pairs: np.ndarray
    kept: np.ndarray
    cost: np.ndarray
    oracle: np.ndarray
    whole: float
    dense_pairs: float

    @property
    def loss(self) -> np.ndarray:
        """The error, or without v the mass that is lost."""
        return 1 - self.recall_mean if self.error is None else self.error

    def only(self, kept) -> Evidence:
        """With some of the candidates, bool (n_candidates,)."""
        names = ("recall_mean", "recall_low", "error", "pairs", "kept", "cost", "oracle")
        arrays = {name: getattr(self, name)[kept] for name in names if getattr(self, name) is not None}
        return replace(self, candidates=tuple(c for c, stays in zip(self.candidates, kept) if stays), **arrays)


def gather(profile, quantile: float, cost: str) -> Evidence:
    """The evidence of a profile, or of several combined in one."""
    parts = profile.parts
    group = parts[0].n_heads // parts[0].n_kv_heads
    how = np.mean if profile.how == "mean" else None
    low = functools.partial(np.quantile, q=quantile)
    found = Evidence(
        candidates=tuple(profile.candidates), group=group, parts=parts,
        recall_mean=_worst([_recall(p, np.mean) for p in parts], np.min, group, how),
        recall_low=_worst([_recall(p, low) for p in parts], np.min, group, how),
        error=None if any(p.output_error is None for p in parts) else
        _worst([_error(p) for p in parts], np.max, group, how),
        pairs=_mean([p.costs.stored for p in parts], group), kept=_mean([p.costs.kept for p in parts], group),
        cost=_mean([_share(p, cost) for p in parts], group), oracle=_mean([_oracle(p) for p in parts], group),
        whole=float(np.mean([p.dense_cost.stored for p in parts])),
        dense_pairs=float(np.mean([p.dense_cost.kept for p in parts])),
    )
    return found if any(c.family == "dense" for c in found.candidates) else _with_dense(found)


def _with_dense(found):
    """One more candidate, which costs all and loses nothing."""
    n_heads = found.cost.shape[1]
    last = {"recall_mean": 1.0, "recall_low": 1.0, "error": 0.0, "cost": 1.0, "pairs": found.whole,
            "kept": found.dense_pairs, "oracle": found.dense_pairs}
    more = {name: np.concatenate([getattr(found, name), np.full((1, n_heads), value)])
            for name, value in last.items() if getattr(found, name) is not None}
    return replace(found, candidates=(*found.candidates, costs.DENSE), **more)


def _recall(profile, reduced):
    """(n_candidates, n_heads) of recall (n_candidates, batch, n_heads, n_rows); rows that are not there are NaN."""
    recall = np.moveaxis(np.asarray(profile.rows.recall), 2, 1)
    flat = recall.reshape(*recall.shape[:2], -1)
    there = ~np.isnan(flat).any(axis=(0, 1))
    return reduced(flat[..., there], axis=-1)


def _error(profile):
    """(n_candidates, n_heads): over batch items the root of the mean square."""
    return np.sqrt(np.mean(np.square(profile.output_error), axis=1))


def _worst(found, worse, group, how):
    """The worst over inputs (or `how` else they are to count) and over the heads of a group, given to each of these."""
    together = (how or worse)(np.stack(found), axis=0)
    return _each(worse(together.reshape(len(together), -1, group), axis=2), group)


def _mean(found, group):
    together = np.mean(np.stack(found), axis=0)
    return _each(together.reshape(len(together), -1, group).mean(axis=2), group)


def _each(x, group):
    return np.repeat(x, group, axis=1)


def _share(profile, cost):
    """What is to be small, (n_candidates, n_heads), as a share of dense attention's."""
    if cost == "measured":
        seconds = costs.measured(profile)
    else:
        seconds = profile.costs.stored if cost == "pairs" else profile.costs.seconds
    return seconds / costs.of_dense(profile, cost)


def _oracle(profile):
    """Pairs that the keys of most mass need for the mean recall of each candidate, (n_candidates, n_heads): between the
    profile's masses along the logarithm of what is left, and never more than the candidate has."""
    keys = np.asarray(profile.rows.keys_at_mass, float)
    keys = np.nanmean(np.where(keys > 0, keys, np.nan), axis=(0, 2))  # (n_heads, masses); rows without a key have 0
    left = np.concatenate([[1.0], 1 - np.asarray(profile.masses), [LEFT]])
    allowed = float(np.mean(profile.dense_cost.kept)) / profile.shape[0]
    lost = np.clip(1 - _recall(profile, np.mean), LEFT, 1.0)
    found = np.empty(lost.shape)
    for head, own in enumerate(keys):
        curve = np.concatenate([[0.0], own, [max(allowed, own[-1])]])
        found[:, head] = np.interp(-np.log(lost[:, head]), -np.log(left), curve)
    return np.minimum(found * profile.shape[0], profile.costs.kept)
