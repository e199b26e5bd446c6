"""What a profile holds of each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OF_CANDIDATES = {"recall", "recall_without_sink", "kept", "row_error", "cosine"}  # candidates are the first axis


@dataclass(frozen=True)
class Rows:
    """Every sampled query, as arrays (batch, n_heads, n_rows, ...); NaN (whole numbers: 0) where it has no key.

    Attributes
    ----------
    lse : array
        Natural logarithm of the sum of exponentials of the scores.
    allowed : array
        How many keys the query may attend.
    entropy, normalized_entropy : array
        ``-sum p log p``, natural logarithm; over the logarithm of `allowed`, 0 where that is 1.
    effective_keys, collision_keys : array
        ``exp(entropy)``, and ``1 / sum p**2``: as many equal weights would be as spread out.
    max_weight, best_offset : array
        The largest weight, and its key less the key that the query sits at.
    distance, offset : array
        Mean distance between query and key, and the signed mean of key less query, in tokens.
    distance_quantiles : array, last axis: quantiles
        The least distance within which that much of the mass lies.
    keys_at_mass : array of int, last axis: masses
        The fewest keys that hold that much of the mass.
    sparsity_at_mass : array, last axis: masses
        The share of the allowed keys that are not among these.
    oracle_recall : array, last axis: shares
        The most mass that a share of the allowed keys (rounded up) can hold.
    sink_mass : array
        Weight of the first key.
    target_weight, target_hit : array or None
        Weight of the query's target, and whether it is the largest; NaN for queries without one.
    axis_distance : array or None, last axis: axes, then through space
        Mean distance on the grid, among its tokens.
    recall, recall_without_sink : array or None, candidates in front
        Mass that a candidate captures; the same share of what is not on the first key.
    kept : array or None, candidates in front
        Keys of the query in the candidate.
    row_error, cosine : array or None, candidates in front
        ``|o_sparse - o_dense| / |o_dense|``, and the cosine of the angle between both.
    """

    lse: np.ndarray
    allowed: np.ndarray
    entropy: np.ndarray
    normalized_entropy: np.ndarray
    effective_keys: np.ndarray
    collision_keys: np.ndarray
    max_weight: np.ndarray
    best_offset: np.ndarray
    distance: np.ndarray
    offset: np.ndarray
    distance_quantiles: np.ndarray
    keys_at_mass: np.ndarray
    sparsity_at_mass: np.ndarray
    oracle_recall: np.ndarray
    sink_mass: np.ndarray
    target_weight: np.ndarray | None = None
    target_hit: np.ndarray | None = None
    axis_distance: np.ndarray | None = None
    recall: np.ndarray | None = None
    recall_without_sink: np.ndarray | None = None
    kept: np.ndarray | None = None
    row_error: np.ndarray | None = None
    cosine: np.ndarray | None = None

    def mean(self, name: str) -> np.ndarray | None:
        """The mean of a quantity over the rows that have keys, and that have it, in float64.

        Parameters
        ----------
        name : str
            One of the attributes.

        Returns
        -------
        array or None
            NaN where no row has keys.
        """
        x = getattr(self, name)
        if x is None:
            return None
        axis = 3 if name in OF_CANDIDATES else 2
        allowed = self.allowed.reshape((1,) * (axis - 2) + self.allowed.shape + (1,) * (x.ndim - axis - 1))
        there = (allowed > 0) & ~np.isnan(x)
        count = there.sum(axis=axis)
        return np.where(there, x, 0).sum(axis=axis, dtype=float) / np.where(count, count, np.nan)
