"""The choice of a pattern for each head, from what a profile measured."""

from __future__ import annotations

import itertools
import math
import numbers

import numpy as np

from sparseattn.profiling.evidence import gather
from sparseattn.profiling.recommendation import Asked, Recommendation

COSTS = ("pairs", "time", "measured")


def recommend(profile, *, max_error=0.2, target_recall=None, quantile=0.05, budget=None,
              cost="pairs", dynamic=True) -> Recommendation:
    """For each head the cheapest candidate of a profile that loses no more than asked.

    Parameters
    ----------
    profile : Profile
        Of `sparseattn.profile`; one combined of several counts by its worst input, or by the mean if combined so.
    max_error : float or None
        Largest error of the attention output on the profiled rows, ``||o_sparse - o_dense|| / ||o_dense||`` in the
        Frobenius norm. None: not asked for.
    target_recall : float, optional
        Least share of the attention mass that the pattern must hold, in all but the share `quantile` of the rows.
    quantile : float
        Which quantile of the rows' recall has to reach `target_recall`.
    budget : float or int, optional
        Pairs to spend over all heads, after rounding to blocks (or time, see `cost`): up to 1, a share of what dense
        attention takes; above, a number of pairs of one batch item. The next pairs always go to the head whose error
        they lower most; a head that meets what is asked gets no more.
    cost : {"pairs", "time", "measured"}
        What is to be small: pairs of the blocks that the CPU kernels compute, the time that their model predicts for a
        forward pass (choosing included), or the time measured here, on the profiled arrays.

    dynamic : bool
        Whether candidates take part that look at q and k (`top_k`, blocks, pages ...).

    Returns
    -------
    Recommendation
        With `heads`, one record each, and `pattern`; ``print`` shows it as a table.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit, nothing was asked for, the profile lacks what was (candidates, or v for errors), or
        the budget does not even hold the cheapest candidates.

    Notes
    -----
    What is not None must be met; heads that no candidate serves stay dense, which is an answer. Under a budget some
    heads may miss what was asked: their `met` is False. Query heads that share a key/value head get one candidate, by
    the worst of them.

    Pairs are those of attention alone. Candidates that look at q and k have to choose first, which costs up to one of
    dense attention's two products and may cost more time than the pairs saved: "time" and "measured" count it,
    ``dynamic=False`` leaves them out.

    Rank by error, not by mass. A head that looks everywhere computes an average; an even sample of the keys estimates
    it well while it holds little of the mass, and the nearest keys estimate it badly while they hold much. High recall
    (0.95) is safe and dear. Neither is the model's loss: errors add up over layers, so finish with a test of the whole.

    With a budget, only candidates on the lower convex hull of error over cost take part, and the steps of all heads are
    taken in order of gain per cost, which for convex curves spends the budget best, up to its last step. Choosing costs
    O(candidates * heads); "measured" runs every candidate twice.

    References
    ----------
    .. [1] Jiang et al., MInference 1.0, arXiv:2407.02490, section 3.
    .. [2] Feng et al., Ada-KV, arXiv:2407.11550, section 3.
    """
    asked = _asked(max_error, target_recall, quantile, budget, cost)
    if not profile.candidates:
        raise ValueError("the profile tried no candidates; profile again with candidates=None or a list of patterns")
    evidence = gather(profile, asked.quantile, cost)
    if not dynamic:
        evidence = evidence.only([not c.dynamic for c in evidence.candidates])
    if evidence.error is None and asked.max_error is not None:
        raise ValueError("max_error needs output errors, but the profile was taken without v; pass v to profile, or "
                         "max_error=None and target_recall=")
    met = _met(evidence, asked)
    goals = _goals(evidence, met, asked)
    chosen = goals if budget is None else _spend(evidence, goals, asked)
    return Recommendation.of(evidence, chosen, _runners_up(evidence, met, chosen, asked), met, asked)


def _asked(max_error, target_recall, quantile, budget, cost):
    """The request, checked."""
    if cost not in COSTS:
        raise ValueError(f'cost is {cost!r}; expected "pairs", "time" or "measured"')
    if max_error is None and target_recall is None and budget is None:
        raise ValueError("nothing is asked for; give max_error, target_recall or budget")
    budget = _number(budget, "budget", 0.0, math.inf)
    if budget is not None and budget > 1 and cost != "pairs":
        raise ValueError(f"budget is {budget}, a number of pairs, but cost is {cost!r}; give a share of dense, up to 1")
    return Asked(_number(max_error, "max_error", 0.0, math.inf), _number(target_recall, "target_recall", 0.0, 1.0),
                 _number(quantile, "quantile", 0.0, 1.0), budget, cost)


def _number(x, name, low, high):
    """A number from `low` to `high`, or None where that is allowed."""
    if x is None and name != "quantile":
        return None
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, numbers.Real):
        raise TypeError(f"{name} is {x!r}; expected a number" + ("" if name == "quantile" else " or None"))
    if not low <= x <= high:
        raise ValueError(f"{name} is {x}; expected a number from {low:g} to {high:g}")
    return float(x)


def _met(evidence, asked):
    """Which candidates give which head what was asked, bool (n_candidates, n_heads)."""
    met = np.ones(evidence.cost.shape, bool)
    if asked.max_error is not None:
        met &= evidence.error <= asked.max_error
    if asked.target_recall is not None:
        met &= evidence.recall_low >= asked.target_recall
    return met


def _goals(evidence, met, asked):
    """For each head the cheapest candidate that meets what was asked, of equal ones that of the least loss; where only
    a budget was given, that of the least loss."""
    cost = np.where(met, evidence.cost, np.inf)
    return np.lexsort((cost, evidence.loss) if asked.only_budget else (evidence.loss, cost), axis=0)[0]


def _spend(evidence, goals, asked):
    """For each head the candidate that it has when the budget is spent; whole groups of heads step together."""
    heads = range(0, goals.size, evidence.group)
    paths = {head: _hull(evidence.cost[:, head], evidence.loss[:, head], goals[head]) for head in heads}
    limit = asked.budget * len(paths) if asked.budget <= 1 else asked.budget / evidence.whole / evidence.group
    spent = sum(evidence.cost[path[0], head] for head, path in paths.items())
    if spent > limit * (1 + 1e-9):
        raise ValueError(f"budget is {asked.budget:g}, but the cheapest candidates of all heads take "
                         f"{spent / len(paths):.2%} of dense attention; give more, or profile cheaper candidates")
    reached = dict.fromkeys(heads, 0)
    for _, head, at, more in sorted(step for own in heads for step in _steps(evidence, own, paths[own])):
        if reached[head] == at - 1 and spent + more <= limit * (1 + 1e-9):
            reached[head], spent = at, spent + more
    return np.repeat([paths[head][reached[head]] for head in heads], evidence.group)


def _hull(cost, loss, goal):
    """Candidates from the cheapest to `goal` on the lower convex hull of loss over cost."""
    points = [c for c in range(cost.size) if cost[c] < cost[goal] and loss[c] > loss[goal]] + [goal]
    hull: list[int] = []
    for c in sorted(points, key=lambda c: (cost[c], loss[c])):
        if hull and loss[c] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(cost, loss, hull[-2], c) <= _slope(cost, loss, hull[-2], hull[-1]):
            hull.pop()
        hull.append(c)
    return hull


def _slope(cost, loss, a, b):
    return (loss[b] - loss[a]) / max(cost[b] - cost[a], 1e-300)


def _steps(evidence, head, path):
    """(loss for cost, head, position on its path, cost) of each step of a head, the best has the lowest slope."""
    cost, loss = evidence.cost[:, head], evidence.loss[:, head]
    return [(_slope(cost, loss, a, b), head, at, cost[b] - cost[a])
            for at, (a, b) in enumerate(itertools.pairwise(path), start=1)]


def _runners_up(evidence, met, chosen, asked):
    """For each head the cheapest candidate of another family that serves as well; -1: there is none."""
    families = np.array([c.family for c in evidence.candidates])
    served = evidence.loss <= evidence.loss[chosen, np.arange(chosen.size)] if asked.only_budget else met
    cost = np.where(served & (families[:, None] != families[chosen]), evidence.cost, np.inf)
    return np.where(np.isfinite(cost).any(axis=0), cost.argmin(axis=0), -1)
