"""Several profiles as one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparseattn.profiling.costs import Cost
from sparseattn.profiling.quantities import OF_CANDIDATES, Rows

LEAST_IS_WORST = {"max_weight", "sink_mass", "oracle_recall", "sparsity_at_mass", "recall", "recall_without_sink",
                  "cosine"}
HOW = ("mean", "worst")
SUMS = ("column_mean", "column_rows", "offset_mean", "offset_rows")  # along tokens


@dataclass(frozen=True)
class CombinedRows(Rows):
    """The rows of several inputs side by side; means are over inputs, or of the worst one."""

    pieces: tuple = ()
    how: str = "mean"

    def mean(self, name):
        """As of one input, then over inputs."""
        found = [rows.mean(name) for rows in self.pieces]
        if found[0] is None:
            return None
        return over_inputs(found, self.how, name in LEAST_IS_WORST)


def over_inputs(found, how, least_is_worst=False):
    """The mean of arrays, or the worst of them."""
    stacked = np.stack(found)
    return stacked.mean(axis=0) if how == "mean" else (stacked.min if least_is_worst else stacked.max)(axis=0)


def combine(profiles, how):
    """See `Profile.combine`."""
    from sparseattn.profiling.record import Profile

    if how not in HOW:
        raise ValueError(f'how is {how!r}; expected "mean" or "worst"')
    if not profiles:
        raise ValueError("no profiles to combine; give at least one")
    for p in profiles:
        if not isinstance(p, Profile):
            raise TypeError(f"expected profiles, got {type(p).__name__}")
    parts = [part for p in profiles for part in p.parts]
    _check_alike(parts)
    first = parts[0]
    changed = {name: _joined(parts, name, how) for name in (*SUMS, "block_share", "output_error", "l1_error",
                                                            "variability")}
    return replace(
        first, rows=_rows(parts, how), row_positions=np.concatenate([p.row_positions for p in parts]), **changed,
        costs=None if first.costs is None else _mean_cost([p.costs for p in parts]),
        dense_cost=_mean_cost([p.dense_cost for p in parts]), q=None, k=None, v=None, how=how, pieces=tuple(parts),
    )


def _check_alike(parts):
    """Refuse profiles of other heads, options or candidates."""
    first = parts[0]
    for p in parts[1:]:
        for name in ("batch", "n_heads", "n_kv_heads", "causal", "masses", "quantiles", "shares", "block_sizes"):
            own, other = getattr(first, name), getattr(p, name)
            if own != other:
                raise ValueError(f"profiles differ in {name}, {own} and {other}; combine those of equal calls")
        mine, theirs = ([c.name for c in x.candidates] for x in (first, p))
        if mine != theirs:
            odd = sorted(set(mine) ^ set(theirs)) or mine
            raise ValueError(f"profiles have different candidates, among them {odd[0]!r}; the default ones depend on "
                             "what is profiled: pass candidates= of the first, first.candidates, to the others")
        if (first.output_error is None) != (p.output_error is None):
            raise ValueError("one profile has output errors and another has none; give v to all or to none")


def _rows(parts, how):
    """Rows side by side."""
    pieces = tuple(p.rows for p in parts)
    found = {}
    for name in Rows.__dataclass_fields__:
        each = [getattr(rows, name) for rows in pieces]
        axis = 3 if name in OF_CANDIDATES else 2
        found[name] = None if any(x is None for x in each) else np.concatenate(each, axis=axis)
    return CombinedRows(**found, pieces=pieces, how=how)


def _joined(parts, name, how):
    """A quantity of the profile: counts are added up, sums along tokens are means, the rest goes by `how`."""
    each = [getattr(p, name) for p in parts]
    if any(x is None for x in each):
        return None
    if len({x.shape for x in each}) > 1:
        return None  # inputs of other lengths have other tokens
    if name.endswith("_rows"):
        return sum(each)
    return over_inputs(each, "mean" if name in SUMS else how)


def _mean_cost(costs):
    return Cost(*(np.mean([getattr(c, name) for c in costs], axis=0) for name in ("kept", "stored", "seconds")))
