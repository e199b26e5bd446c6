"""What was recommended: a table, a pattern, a file, a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.profiling import recommendation_files, recommendation_plot, recommendation_words
from sparseattn.profiling.candidates import Candidate
from sparseattn.structure import Memo
from sparseattn.xp import library


@dataclass(frozen=True)
class Asked:
    """What was asked for; see `recommend`."""

    max_error: float | None
    target_recall: float | None
    quantile: float
    budget: float | None
    cost: str

    @property
    def only_budget(self) -> bool:
        """Whether nothing is asked of a head, so that less loss is always better."""
        return self.max_error is None and self.target_recall is None


@dataclass(frozen=True)
class HeadChoice:
    """The candidate of one head, and what the profile says of it.

    Attributes
    ----------
    head : int
        Query head.
    candidate : Candidate
        What was chosen, for all heads of the profile; `choice` is its name.
    pairs, kept : float
        Pairs of a batch item after and before rounding to blocks.
    share : float
        Cost as a share of dense attention's: of pairs after rounding, or of time, as asked.
    recall_mean, recall_low : float
        Captured mass: the mean over rows, and the quantile that was asked for; of several inputs the least.
    error : float or None
        Error of the output on the profiled rows, of several inputs the largest; None for a profile without v.
    oracle_pairs : float
        Pairs that the best choice of keys needs for the same mean recall.
    runner_up : str or None
        The cheapest candidate of another family that meets what was asked (or loses no more, where only a budget was
        given); `runner_up_share` is its cost.
    met : bool
        Whether it meets what was asked.
    """

    head: int
    candidate: Candidate
    pairs: float
    kept: float
    share: float
    recall_mean: float
    recall_low: float
    error: float | None
    oracle_pairs: float
    runner_up: str | None
    runner_up_share: float | None
    met: bool

    @property
    def choice(self) -> str:
        """Name of the candidate."""
        return self.candidate.name


@dataclass(frozen=True)
class Points:
    """Of all candidates, for pictures: names, families, and arrays (n_candidates, n_heads)."""

    names: tuple[str, ...]
    families: tuple[str, ...]
    share: np.ndarray
    loss: np.ndarray
    loss_name: str


@dataclass(frozen=True, eq=False, repr=False)
class Recommendation:
    """A candidate for each head: `print` it for the table, run its `pattern`, `build` it for other q and k.

    Attributes
    ----------
    heads : tuple of HeadChoice
        One record a query head.
    asked : Asked
        The arguments of `recommend`.
    causal : bool
        As in the profile.
    scale : float or None
        As in the profile.
    n_kv_heads : int
        Key/value heads of the profile.
    shape : tuple of int
        (n_queries, n_keys) of the profile; of several, those of the first.
    whole, dense_pairs : float
        Pairs of a head of dense attention, after and before rounding to blocks.
    points : Points
        All candidates, for `plot`.
    """

    heads: tuple[HeadChoice, ...]
    asked: Asked
    causal: bool
    scale: float | None
    n_kv_heads: int
    shape: tuple[int, int]
    whole: float
    dense_pairs: float
    points: Points
    profiled: Any = None
    memo: Memo = field(default_factory=Memo, init=False)

    @classmethod
    def of(cls, evidence, chosen, runners_up, met, asked) -> Recommendation:
        """From the evidence and the numbers of the chosen candidates and the runners-up, each (n_heads,)."""
        first = evidence.parts[0]
        heads = tuple(_record(evidence, met, head, int(c), int(other))
                      for head, (c, other) in enumerate(zip(chosen, runners_up)))
        points = Points(tuple(c.name for c in evidence.candidates), tuple(c.family for c in evidence.candidates),
                        evidence.cost, evidence.loss, "lost mass" if evidence.error is None else "error")
        arrays = (first.q, first.k) if len(evidence.parts) == 1 and first.q is not None else None
        return cls(heads, asked, first.causal, first.scale, first.n_kv_heads, tuple(first.shape), evidence.whole,
                   evidence.dense_pairs, points, arrays)

    @property
    def share(self) -> float:
        """Cost of all heads as a share of dense attention's."""
        return float(np.mean([h.share for h in self.heads]))

    @property
    def density(self) -> float:
        """Attended pairs of all heads as a share of those that dense attention has."""
        return float(np.mean([h.kept for h in self.heads])) / max(self.dense_pairs, 1)

    @property
    def pattern(self) -> Pattern:
        """The pattern for the q and k that were profiled; kept. Heads of one family and size share its parts."""
        if self.profiled is None:
            raise ValueError("the profile no longer holds one q and k (it was loaded from a file, or combined from "
                             "several); use build(q, k)")
        return self.memo.get("pattern", lambda: self.build(*self.profiled))

    def build(self, q, k) -> Pattern:
        """The pattern for other q and k: heads that look at them choose again.

        Parameters
        ----------
        q, k : array, ([[batch,] n_heads,] n_tokens, head_dim)
            With as many heads as were profiled, and any number of tokens: the sizes of the families stay (a window of
            64 keys remains one), so profile again where texts are much longer.

        Returns
        -------
        Pattern
            Shape (n_queries, n_keys), for 1 or all heads, on the device of q.

        Raises
        ------
        ValueError
            Another number of heads, or a given pattern for other lengths.
        """
        q, k = (x[(None,) * (4 - x.ndim)] for x in (q, k))
        n_heads = len(self.heads)
        if (q.shape[1], k.shape[1]) != (n_heads, self.n_kv_heads):
            raise ValueError(f"q has {q.shape[1]} heads and k {k.shape[1]}; the profile had {n_heads} and "
                             f"{self.n_kv_heads}; profile arrays of these heads")
        together: dict[str, list[int]] = {}
        for choice in self.heads:
            together.setdefault(choice.choice, []).append(choice.head)
        found = {choice: self._of_heads(heads, q, k) for choice, heads in together.items()}
        if len(found) == 1:
            pattern = found[self.heads[0].choice]
        else:
            each = [(found[h.choice], together[h.choice].index(h.head)) for h in self.heads]
            pattern = Pattern.per_head([p[:, at : at + 1] if p.n_heads > 1 else p for p, at in each])
        return pattern.to(q.device) if library(q) == "cupy" else pattern

    def _of_heads(self, heads, q, k):
        """The pattern of some heads that have one candidate, on the CPU."""
        n_heads = len(self.heads)
        candidate = self.heads[heads[0]].candidate.of_heads(heads, n_heads)
        own_k = k if len(heads) == n_heads else k[:, [h * self.n_kv_heads // n_heads for h in heads]]
        return candidate.build(q[:, heads], own_k, self.causal, self.scale).to("cpu")

    def save(self, path) -> None:
        """Write it to one `.npz` file, without pickle and without q and k.

        Parameters
        ----------
        path : str or path-like
            The file; an existing one is replaced.
        """
        recommendation_files.save(self, path)

    @staticmethod
    def load(path) -> Recommendation:
        """Read a file written by `save`; use `build` then.

        Parameters
        ----------
        path : str or path-like
            The file.

        Returns
        -------
        Recommendation
        """
        return recommendation_files.load(path)

    def plot(self, axes=None):
        """Error against cost of every candidate, a picture a head, lines by family, the choice marked. Needs
        matplotlib.

        Parameters
        ----------
        axes : array of matplotlib axes, optional
            One a head; None: a new figure.

        Returns
        -------
        array of matplotlib axes
        """
        return recommendation_plot.plot(self, axes)

    def __repr__(self):
        return recommendation_words.table(self)


def _record(evidence, met, head, c, other):
    """The HeadChoice of a head that gets candidate c."""
    pick = {name: float(getattr(evidence, name)[c, head]) for name in ("pairs", "kept", "recall_mean", "recall_low")}
    return HeadChoice(head, evidence.candidates[c], share=float(evidence.cost[c, head]),
                      error=None if evidence.error is None else float(evidence.error[c, head]),
                      oracle_pairs=float(evidence.oracle[c, head]),
                      runner_up=None if other < 0 else evidence.candidates[other].name,
                      runner_up_share=None if other < 0 else float(evidence.cost[other, head]),
                      met=bool(met[c, head]), **pick)
