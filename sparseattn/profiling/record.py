"""What a profile holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseattn.profiling import combining, files, heads, picture, shapes, table
from sparseattn.profiling.costs import Cost
from sparseattn.profiling.quantities import Rows


@dataclass(frozen=True, eq=False)
class Profile:
    """What dense attention looks at, head by head: the result of `sparseattn.profile`.

    Every attribute of `rows` is one of the profile as well: its mean over rows, ``(batch, n_heads, ...)``, with
    candidates in front where they are.

    Attributes
    ----------
    rows : Rows
        The sampled queries one by one.
    row_positions : array of int
        Which queries these are.
    shape : tuple of int
        (n_queries, n_keys).
    n_kv_heads, causal, scale
        Of the call.
    masses, quantiles, shares, block_sizes : tuple
        What the last axes of `keys_at_mass`, `distance_quantiles`, `oracle_recall` and `block_share` stand for.
    column_mean : array, (batch, n_heads, n_keys)
        Mean weight of each key over all rows.
    column_rows : array of int, (batch, n_keys)
        How many of the rows may attend each key.
    offset_mean : array, (batch, n_heads, n_offsets)
        Mean weight at each of `offsets` over all rows, 0 where there is no such key.
    offset_rows : array of int, (batch, n_offsets)
        How many of the rows have such a key.
    block_share : array, (batch, n_heads, n_block_sizes)
        Share of the mass in the best tenth of the square blocks that hold allowed pairs of the rows. `column_share` and
        `diagonal_share` are the same for keys and offsets.
    variability : array or None, (n_heads,)
        How much weights differ between batch items: 0 where position decides alone, towards 1 where content does. None
        for a batch of one.
    candidates : tuple of Candidate
        The patterns that were tried.
    output_error, l1_error : array or None, (n_candidates, batch, n_heads)
        Error of the output over all rows, relative to the dense output: Frobenius norm, and sum of absolute values.
    costs, dense_cost : Cost
        Of the candidates, arrays (n_candidates, n_heads), and of dense attention, (n_heads,).
    names : tuple of str
        What the heads are called.
    grid : tuple of int or None
        Lengths of the axes, where the last tokens are a grid.
    q, k, v : array or None
        What was profiled, not copied; None once loaded from a file.
    parts : tuple of Profile
        What the profile was combined from; itself if it was not.
    how : str or None
        How it was combined, "mean" or "worst".

    References
    ----------
    .. [1] Yang, Liu, Lee, Understanding Self-Attention of Self-Supervised Audio Transformers, arXiv:2006.03265
       (globalness, verticality, diagonality).
    .. [2] Vig, Belinkov, Analyzing the Structure of Attention in a Transformer Language Model, arXiv:1906.04284
       (variability).
    """

    rows: Rows
    row_positions: np.ndarray
    shape: tuple[int, int]
    n_kv_heads: int
    causal: bool
    scale: float
    masses: tuple
    quantiles: tuple
    shares: tuple
    block_sizes: tuple
    column_mean: np.ndarray
    column_rows: np.ndarray
    offset_mean: np.ndarray
    offset_rows: np.ndarray
    block_share: np.ndarray
    variability: np.ndarray | None = None
    candidates: tuple = ()
    output_error: np.ndarray | None = None
    l1_error: np.ndarray | None = None
    costs: Cost | None = None
    dense_cost: Cost | None = None
    names: tuple = ()
    grid: tuple | None = None
    q: Any = None
    k: Any = None
    v: Any = None
    how: str | None = None
    pieces: tuple = ()

    def __getattr__(self, name):
        if name not in Rows.__dataclass_fields__:
            raise AttributeError(f"a profile has no {name!r}")
        return self.rows.mean(name)

    @property
    def parts(self) -> tuple[Profile, ...]:
        return self.pieces or (self,)

    @property
    def batch(self) -> int:
        return self.rows.entropy.shape[0]

    @property
    def n_heads(self) -> int:
        return self.rows.entropy.shape[1]

    @property
    def offsets(self) -> np.ndarray:
        """Key less query of each entry of the offset profile, int64 (n_offsets,)."""
        return np.arange(self.along("offset_mean").shape[-1]) - (self.shape[1] - 1)

    @property
    def column_profile(self) -> np.ndarray:
        """Mean weight of each key over the rows that may attend it, NaN where none may, (batch, n_heads, n_keys)."""
        return self._where_possible("column")

    @property
    def offset_profile(self) -> np.ndarray:
        """Mean weight at each of `offsets` over the rows that have such a key, (batch, n_heads, n_offsets)."""
        return self._where_possible("offset")

    def _where_possible(self, which):
        """A mean over rows as one over those where it may be more than 0; of several inputs the mean of these."""
        self.along(f"{which}_mean")
        total, n = 0.0, 0
        for part in self.parts:
            mean, possible = part.along(f"{which}_mean"), part.along(f"{which}_rows")[:, None]
            n_rows = (part.rows.allowed[:, :1] > 0).sum(axis=2)[..., None]
            total = total + np.where(possible > 0, mean * n_rows / np.maximum(possible, 1), 0.0)
            n = n + (possible > 0)
        return np.where(n > 0, total / np.maximum(n, 1), np.nan)

    def along(self, name: str) -> np.ndarray:
        """A quantity along tokens, which inputs of different lengths do not share.

        Parameters
        ----------
        name : str
            An attribute, as "column_mean" or "offset_rows".

        Returns
        -------
        array

        Raises
        ------
        ValueError
            The profile is combined from inputs of different lengths.
        """
        found = getattr(self, name)
        if found is None or len({part.shape for part in self.parts}) > 1:
            raise ValueError("the profile is combined from inputs of different lengths, which have no keys or offsets "
                             "in common; look at its parts")
        return found

    @property
    def distance_mass(self) -> np.ndarray:
        """Mass at each distance, the mean over rows, (batch, n_heads, n_distances)."""
        zero = self.shape[1] - 1
        mean = self.along("offset_mean")
        before, behind = mean[..., zero::-1], mean[..., zero + 1 :]
        mass = np.zeros((*before.shape[:-1], max(before.shape[-1], behind.shape[-1] + 1)))
        mass[..., : before.shape[-1]] += before
        mass[..., 1 : behind.shape[-1] + 1] += behind
        return mass

    @property
    def distance_curve(self) -> np.ndarray:
        """Mass within each distance, the mean over rows, (batch, n_heads, n_distances)."""
        return np.cumsum(self.distance_mass, axis=-1)

    @property
    def globalness(self) -> np.ndarray:
        """Mean entropy, (batch, n_heads)."""
        return self.entropy

    @property
    def verticality(self) -> np.ndarray:
        """Entropy of the mean row, negative: high where few keys take the mass, (batch, n_heads)."""
        return shapes.verticality(self.along("column_mean"))

    @property
    def diagonality(self) -> np.ndarray:
        """Mean distance over the number of keys, negative: near 0 where the mass is near the diagonal."""
        return -self.distance / self.shape[1]

    @property
    def column_share(self) -> np.ndarray:
        """Share of the mass on the best tenth of the keys, (batch, n_heads)."""
        return shapes.best_tenth(self.along("column_mean"), self.column_rows)

    @property
    def diagonal_share(self) -> np.ndarray:
        """Share of the mass on the best tenth of the offsets, (batch, n_heads)."""
        return shapes.best_tenth(self.along("offset_mean"), self.offset_rows)

    @property
    def largest_row_error(self) -> np.ndarray | None:
        """The largest error of a row's output over its norm, (n_candidates, batch, n_heads)."""
        error = self.rows.row_error
        return None if error is None else np.fmax.reduce(error, axis=-1)

    @property
    def efficiency(self) -> np.ndarray | None:
        """Recall over the most that as many keys can hold, the mean over rows, (n_candidates, batch, n_heads).

        That most is known for `shares` of the keys; between them it is taken from the straight line, which lies a
        little below: the efficiency is at most this.
        """
        if self.rows.recall is None:
            return None
        oracle = shapes.between(self.rows.kept / np.maximum(self.rows.allowed, 1), self.shares, self.rows.oracle_recall)
        there = (self.rows.allowed > 0) & (oracle > 0)
        ratio = np.where(there, self.rows.recall / np.where(there, oracle, 1), 0.0)
        return ratio.sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)

    @property
    def recall_low(self) -> np.ndarray | None:
        """The lowest 5% of recall over rows, (n_candidates, batch, n_heads)."""
        return None if self.rows.recall is None else shapes.quantile(self.rows.recall, self.rows.allowed > 0, 0.05)

    @property
    def distance_high(self) -> np.ndarray:
        """The 95% quantiles of the distance quantiles over rows, (batch, n_heads, quantiles)."""
        x = np.moveaxis(self.rows.distance_quantiles, 3, 0)
        return np.moveaxis(shapes.quantile(x, self.rows.allowed > 0, 0.95), 0, 2)

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """What each head is, by published criteria, see `kind`."""
        return [self.kind(head) for head in range(self.n_heads)]

    def kind(self, head: int) -> tuple[str, ...]:
        """Names for what a head does, of the means over batch items.

        Parameters
        ----------
        head : int
            Which one.

        Returns
        -------
        tuple of str
            None, one or several of "positional", "previous token", "next token", "sink", "broad", "local",
            "retrieval", "induction".

        Notes
        -----
        ================ ===============================================================================
        positional       the largest weight is at the same offset in at least 90% of the rows [1]_
        previous, next   mean weight above 0.5 at offset -1, +1 [2]_
        sink             mean weight of the first key above 0.3 [3]_
        broad            mean normalized entropy at least 0.9 (ours; the criterion is that of [2]_)
        local            on average 0.9 of the mass within 32 tokens, fewer than an eighth of the keys (ours)
        retrieval        the largest weight is the target's in more than 10% of the rows that have one [4]_
        induction        mean weight of the target above 0.3 (ours; the score is that of [5]_)
        ================ ===============================================================================

        Rows with fewer than two allowed keys do not count. Of a combined profile: what the head is in any of its parts.

        References
        ----------
        .. [1] Voita et al., arXiv:1905.09418.
        .. [2] Clark et al., arXiv:1906.04341.
        .. [3] Gu et al., arXiv:2410.10781.
        .. [4] Wu et al., arXiv:2404.15574.
        .. [5] Olsson et al., arXiv:2209.11895.
        """
        found = {name for part in self.parts for name in heads.kinds_of(part, head)}
        return tuple(name for name in heads.KINDS if name in found)

    @staticmethod
    def combine(profiles, how: str = "mean") -> Profile:
        """Several profiles as one: of several tasks, texts or lengths.

        Parameters
        ----------
        profiles : sequence of Profile
            With equal heads, batch, candidates and options.
        how : {"mean", "worst"}
            What means over rows and errors are of the inputs: their mean, or that of the input that is hardest for a
            sparse pattern (the lowest recall and weights, the highest errors, entropies, distances and key counts).

        Returns
        -------
        Profile
            Its `rows` are those of all, side by side; `parts` are the profiles.

        Notes
        -----
        A head that idles in one task may be what another lives on: a choice made from prose alone loses the copying
        heads. `recommend` looks at the worst of the parts, whatever `how` is.
        """
        return combining.combine(list(profiles), how)

    def plot(self, axes=None, *, head: int | None = None, batch: int = 0):
        """Draw entropy, distance and kind of every head, or the profiles of one. Needs matplotlib.

        Parameters
        ----------
        axes : sequence of matplotlib axes, optional
            Three to draw into; None: a new figure.
        head : int, optional
            Draw this head's mass by distance, by key, and the mass that its best keys hold.
        batch : int
            Which batch item.

        Returns
        -------
        array of matplotlib axes
        """
        return picture.plot(self, axes, head, batch)

    def save(self, path) -> None:
        """Write the profile to one `.npz` file, without pickle and without q, k, v.

        Parameters
        ----------
        path : str or path-like
            The file; an existing one is replaced.

        Notes
        -----
        Candidates are kept by their family and options; of given patterns and functions only the name stays.
        """
        files.save(self, path)

    @staticmethod
    def load(path) -> Profile:
        """Read a file written by `save`.

        Parameters
        ----------
        path : str or path-like
            The file.

        Returns
        -------
        Profile

        Raises
        ------
        ValueError
            The file is something else, or of another version.
        """
        return files.load(path)

    def __repr__(self):
        return (f"Profile({self.batch} x {self.n_heads} heads, {self.shape[0]} x {self.shape[1]} tokens, "
                f"{self.row_positions.size} rows, {len(self.candidates)} candidates)")

    def __str__(self):
        return table.of(self)
