"""Pattern: its parts, the set algebra, slices, and what is derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparseattn.index_ops.algebra import as_tiles, compact, difference, intersection
from sparseattn.index_ops.axes import widened
from sparseattn.index_ops.blocks import reblock
from sparseattn.index_ops.counting import count_pairs, write_dense, write_reached
from sparseattn.index_ops.transpose import transposed
from sparseattn.pattern import checking, devices, files, picture, words
from sparseattn.pattern.builders import Builders
from sparseattn.pattern.slicing import concatenate, sliced
from sparseattn.structure import BlockCSR, Memo, Ranges, digest


@dataclass(frozen=True, eq=False, repr=False)
class Pattern(Builders):
    """A set of (query, key) pairs: which key each query attends, the same for all heads or one by one.

    Patterns combine as sets: ``a | b``, ``a & b``, ``a - b``. They are built by the families in `sparseattn.patterns`
    or by the ``from_*`` builders here, and never change.

    Parameters
    ----------
    parts : tuple of BlockCSR or Ranges
        Pairwise disjoint sets of pairs, each in the order of tokens in which it is dense.
    shape : tuple of int
        (n_queries, n_keys), tokens.
    batch, n_heads : int
        Entries of the batch and head axes; 1: shared by all. With grouped heads `n_heads` may be that of k, v or of q.

    Notes
    -----
    Nothing is stored per pair: memory is O(blocks) or, for ranges, O(n_queries).
    """

    parts: tuple[BlockCSR | Ranges, ...]
    shape: tuple[int, int]
    batch: int = 1
    n_heads: int = 1
    memo: Memo = field(default_factory=Memo, init=False, repr=False)

    @property
    def nnz(self) -> int:
        """Pairs over the pattern's own batch and head axes: ``to_dense().sum()``."""
        return self.memo.get("nnz", lambda: sum(count_pairs(p, self.batch, self.n_heads) for p in self.to("cpu").parts))

    @property
    def density(self) -> float:
        """Share of all pairs that is attended, 0 to 1."""
        whole = self.batch * self.n_heads * self.shape[0] * self.shape[1]
        return self.nnz / whole if whole else 0.0

    @property
    def density_in_tiles(self) -> float:
        """Pairs over pairs of the tiles that hold them, 0 to 1: what share of a tile kernel's work is useful."""
        stored = 0
        for part in self.tiles():
            heads = self.n_heads if part.heads is None else part.heads.size
            copies = (self.batch // part.indptr.shape[0]) * (heads // part.indptr.shape[1])
            stored += part.n_blocks * part.block_size[0] * part.block_size[1] * copies
        return self.nnz / stored if stored else 1.0

    @property
    def uncovered(self) -> np.ndarray:
        """Bool (batch, n_heads, n_queries) over the pattern's own axes: queries without a key, whose output is 0."""
        return self.memo.get("uncovered", self._find_uncovered)

    def _find_uncovered(self):
        reached = np.zeros((self.batch, self.n_heads, self.shape[0]), bool)
        for part in self.to("cpu").parts:
            write_reached(reached, part)
        return ~reached

    @devices.structural
    def __or__(self, other: Pattern) -> Pattern:
        """Pairs in either pattern. Whole parts in the natural order are kept, the other side's parts give way."""
        batch, n_heads = self._common_axes(other, "|")
        sides = [(p, side) for side, pattern in enumerate((self, other)) for p in pattern.parts_over(n_heads)]
        kept: list[tuple[Any, int]] = []
        for part, side in sorted(sides, key=lambda item: _union_rank(item[0])):
            pieces = [part]
            for there, owner in kept:
                if owner != side:
                    pieces = [piece for p in pieces for piece in difference(p, there, n_heads)]
            kept += [(piece, side) for piece in pieces]
        return Pattern(tuple(compact([p for p, _ in kept], n_heads)), self.shape, batch, n_heads)

    @devices.structural
    def __and__(self, other: Pattern) -> Pattern:
        """Pairs in both patterns, each part in the order of the one with fewer pairs; ranges clip the other's
        blocks."""
        batch, n_heads = self._common_axes(other, "&")
        both = self.parts_over(n_heads), other.parts_over(n_heads)
        parts = [p for a in both[0] for b in both[1] for p in intersection(a, b, n_heads)]
        return Pattern(tuple(compact(parts, n_heads)), self.shape, batch, n_heads)

    @devices.structural
    def __sub__(self, other: Pattern) -> Pattern:
        """Pairs of this pattern that are not in the other."""
        batch, n_heads = self._common_axes(other, "-")
        parts = list(self.parts_over(n_heads))
        for b in other.parts_over(n_heads):
            parts = [piece for a in parts for piece in difference(a, b, n_heads)]
        return Pattern(tuple(compact(parts, n_heads)), self.shape, batch, n_heads)

    def _common_axes(self, other, sign):
        if not isinstance(other, Pattern):
            raise TypeError(f"pattern {sign} {type(other).__name__}: both sides must be patterns; build one with "
                            f"Pattern.from_mask or another builder")
        if self.shape != other.shape:
            raise ValueError(f"pattern {sign} pattern: shapes {self.shape} and {other.shape} differ; build both for "
                             "the same n_queries and n_keys")
        for name, a, b in (("batch", self.batch, other.batch), ("n_heads", self.n_heads, other.n_heads)):
            fits = a == b or 1 in (a, b) or (name == "n_heads" and max(a, b) % min(a, b) == 0)
            if not fits:
                raise ValueError(f"pattern {sign} pattern: {name} {a} and {b} do not fit; they must be equal, or one "
                                 "of them 1")
        return max(self.batch, other.batch), max(self.n_heads, other.n_heads)

    def parts_over(self, n_heads: int) -> tuple[BlockCSR | Ranges, ...]:
        """The parts as those of a pattern of more heads, in which each head of this one stands for several.

        Parameters
        ----------
        n_heads : int
            A multiple of the pattern's own.

        Returns
        -------
        tuple of BlockCSR or Ranges
            The pattern's own parts, unless some name their heads.
        """
        return tuple(widened(p, self.n_heads, n_heads) for p in self.parts)

    def same_pairs(self, other: Pattern) -> bool:
        """Whether both hold the same pairs, however they are stored.

        Parameters
        ----------
        other : Pattern
            Any pattern; one of another shape holds other pairs.

        Returns
        -------
        bool
            Costs two differences.
        """
        return self.shape == other.shape and (self - other).nnz == 0 and (other - self).nnz == 0

    @property
    def T(self) -> Pattern:
        """The pattern of (key, query) pairs; kept."""
        return self.memo.get("T", lambda: _turned(self))

    @devices.where_made
    def reblock(self, block_size: tuple[int, int] | int) -> Pattern:
        """The same pairs in tiles of another size; speed only.

        Parameters
        ----------
        block_size : int or tuple of int
            (block_q, block_k) slots.

        Returns
        -------
        Pattern
            With every stored block re-cut. O(blocks); partial blocks are rebuilt bit by bit.
        """
        size = checking.block_size(block_size)
        return replace(self, parts=tuple(replace(p, block_size=size) if isinstance(p, Ranges) else reblock(p, size)
                                         for p in self.parts))

    def tiles(self) -> tuple[BlockCSR, ...]:
        """The parts as blocks, ranges cut and parts of one order joined: what a kernel runs; kept."""
        return self.memo.get("tiles", lambda: as_tiles(self.parts, self.n_heads))

    def to_dense(self) -> np.ndarray:
        """Bool (batch, n_heads, n_queries, n_keys) over the pattern's own axes: for tests and small sizes."""
        dense = np.zeros((self.batch, self.n_heads) + self.shape, bool)
        for part in self.to("cpu").parts:
            write_dense(dense, part)
        return dense

    def to_scipy(self):
        """A `scipy.sparse.csr_array` of bool, (n_queries, n_keys), of a pattern shared by all heads. O(nnz)."""
        return files.to_scipy(self)

    def to(self, device) -> Pattern:
        """The pattern with its arrays on a device.

        Parameters
        ----------
        device : str or device
            "cpu": NumPy arrays. "cuda": CuPy arrays on the current GPU, "cuda:1" on that of this number; or the
            `device` of an array.

        Returns
        -------
        Pattern
            This one if it is there already, else a copy; kept, so that asking again costs nothing.
        """
        wanted = devices.named(device)
        if wanted == self.device:
            return self
        return self.memo.get(("on", wanted), lambda: devices.move(self, wanted))

    @property
    def device(self) -> str:
        """Where its arrays are: "cpu", or "cuda:0" and so on."""
        return self.memo.get("device", lambda: devices.device_of(self))

    def prepare(self, backend: str | None = None, *, backward: bool = True) -> Pattern:
        """Make ahead all that a backend derives from the pattern, so that a timed or captured call meets no first use.

        Parameters
        ----------
        backend : str, optional
            Name of a backend; None: the first choice for arrays that are where the pattern is.
        backward : bool
            Also what the gradient needs.

        Returns
        -------
        Pattern
            This pattern.

        Notes
        -----
        On a GPU, what depends on the sizes and dtype of the arrays is made at the first call of its kind. Make one such
        call before you capture others in a CUDA graph.
        """
        # the one import against the direction of the layers: patterns know no backend, this asks one by its name
        from sparseattn.dispatch import BACKENDS, named

        default = BACKENDS["numpy" if self.device == "cpu" else "cupy"][0]
        named(default if backend is None else backend).prepare(self, backward=backward)
        return self

    @devices.structural
    def __getitem__(self, key) -> Pattern:
        """``pattern[batch, heads, queries, keys]``, slices with positive steps; fewer of them mean the first axes.

        Notes
        -----
        So a prompt is taken in chunks and a cache decoded from, whatever the pattern: the queries a to b over the b
        keys so far are ``pattern[:, :, a:b, :b]``, over a longer cache ``pattern[:, :, a:b]``; keys and values that
        no query attends are not read, so slots not yet written may hold anything. Caches of different lengths in one
        batch: ``Pattern.per_batch([pattern[:, :, n - 1:n] for n in lengths])``, or the `offset` of the families that
        have one. O(kept blocks).

        Examples
        --------
        >>> import sparseattn as sa
        >>> sa.patterns.strided(1000, stride=32)[:, :, 640:700, :700].shape
        (60, 700)
        """
        return sliced(self, key)

    @staticmethod
    def concatenate(patterns, axis: int) -> Pattern:
        """Patterns side by side along an axis.

        Parameters
        ----------
        patterns : sequence of Pattern
            Along the axes 2 and 3 they attend nothing across: concatenated queries keep their own keys, and
            concatenated keys add to the same queries.
        axis : int
            0 batch, 1 heads, 2 queries, 3 keys, or counted from behind.

        Returns
        -------
        Pattern
        """
        return concatenate(patterns, axis)

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the stored structure; kept."""
        whole = (self.shape, self.batch, self.n_heads)
        return self.memo.get("digest", lambda: digest(*whole, [p.digest for p in self.parts]))

    def __eq__(self, other):
        return self is other or self.digest == other.digest if isinstance(other, Pattern) else NotImplemented

    def __hash__(self):
        return hash(self.digest)

    def __repr__(self):
        return words.describe(self)

    def check(self) -> Pattern:
        """Verify every rule of the structure, that parts are disjoint included; ValueError names the first broken one.

        Returns
        -------
        Pattern
            This pattern. Costs about as much as combining the parts.
        """
        checking.check(self.to("cpu"))
        return self

    def plot(self, ax=None, *, head: int = 0, batch: int = 0):
        """Draw the pattern as a picture of blocks: full, partial, empty. Needs matplotlib.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; None: a new figure.
        head, batch : int
            Which entry of the pattern's own axes.

        Returns
        -------
        matplotlib axes
        """
        return picture.plot(self, ax, head, batch)

    def save(self, path) -> None:
        """Write the pattern to one `.npz` file, without pickle.

        Parameters
        ----------
        path : str or path-like
            The file; an existing one is replaced.
        """
        files.save(self.to("cpu"), path)

    @staticmethod
    def load(path) -> Pattern:
        """Read a file written by `save`.

        Parameters
        ----------
        path : str or path-like
            The file.

        Returns
        -------
        Pattern
            Checked by every rule of `check`.

        Raises
        ------
        ValueError
            The file is damaged, hostile or something else; sizes are compared before memory is taken.
        """
        return files.load(path)


@devices.where_made
def _turned(pattern):
    """The pattern of (key, query) pairs."""
    return Pattern(tuple(transposed(pattern.parts)), pattern.shape[::-1], pattern.batch, pattern.n_heads)


def _union_rank(part):
    """Order in which parts of a union are kept whole: natural ranges, natural blocks, then reordered ones."""
    reordered = (part.q_order is not None) + (part.k_order is not None)
    return reordered, not isinstance(part, Ranges)

