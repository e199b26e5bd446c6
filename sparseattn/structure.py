"""The records of an index structure: Order (which token sits at a slot), BlockCSR (blocks of pairs), Ranges (key
ranges)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparseattn.xp import library, namespace

Array = Any


class Memo:
    """Derived data of one frozen record, made on first use; safe for threads, never pickled."""

    def __init__(self):
        self._lock = threading.RLock()
        self._values = {}

    def get(self, key, make: Callable[[], Any]):
        """The value stored under `key`, made by `make()` where there is none yet."""
        value = self._values.get(key, self)  # itself: nothing there
        if value is self:
            with self._lock:
                if key not in self._values:
                    self._values[key] = make()
                return self._values[key]
        return value

    def __reduce__(self):
        return Memo, ()


def digest(*items) -> bytes:
    """A 16-byte fingerprint of arrays (dtype, shape and bytes; a GPU's are waited for) and of the rest by its repr."""
    state = hashlib.blake2b(digest_size=16)
    for item in items:
        if hasattr(item, "__cuda_array_interface__"):
            item = item.get()
        if isinstance(item, np.ndarray):
            state.update(repr((item.dtype.str, item.shape)).encode())
            state.update(np.ascontiguousarray(item).data)
        else:
            state.update(repr(item).encode())
    return state.digest()


@dataclass(frozen=True, eq=False)
class Order:
    """Which token sits at each slot; -1 = nobody. Affine (`digits` over a grid, no memory) or a list (`tokens`).

    An affine order counts its slots through `digits`, the last one fastest. Digit (axis, size, step) adds
    `step * digit` to the coordinate along `axis` of the grid; the token is the coordinate's raster number,
    nobody where a coordinate lies outside the grid.
    """

    n_tokens: int
    tokens: Array | None = None  # int32 (1 | batch, 1 | heads, n_slots)
    grid: tuple[int, ...] = ()
    digits: tuple[tuple[int, int, int], ...] = ()  # (axis, size, step)
    origin: tuple[int, ...] = ()  # coordinates of slot 0
    memo: Memo = field(default_factory=Memo, init=False, repr=False)

    @staticmethod
    def listed(tokens, n_tokens: int) -> Order:
        """The token at each slot as an int32 array (n_slots,) or (1 | batch, 1 | heads, n_slots)."""
        tokens = tokens.astype(np.int32, copy=False) if library(tokens) == "cupy" else np.asarray(tokens, np.int32)
        return Order(int(n_tokens), tokens.reshape((1,) * (3 - tokens.ndim) + tokens.shape))

    @staticmethod
    def affine(grid, digits, origin=None) -> Order:
        """Slots counted through `digits` = (axis, size, step), ... over a grid of tokens in raster order."""
        grid = tuple(int(g) for g in grid)
        origin = (0,) * len(grid) if origin is None else tuple(int(o) for o in origin)
        return Order(int(np.prod(grid)), None, grid, tuple((int(a), int(n), int(s)) for a, n, s in digits), origin)

    @property
    def is_affine(self) -> bool:
        return self.tokens is None

    @property
    def n_slots(self) -> int:
        return self.tokens.shape[2] if self.tokens is not None else int(np.prod([n for _, n, _ in self.digits]))

    @property
    def lead(self) -> tuple[int, int]:
        """(1 | batch, 1 | heads) of the list; an affine order is shared."""
        return self.tokens.shape[:2] if self.tokens is not None else (1, 1)

    def listing(self) -> Array:
        """int32 (1 | batch, 1 | heads, n_slots), written out on first use. Kept."""
        return self.tokens if not self.is_affine else self.memo.get("listing", self._write_out)

    def filled(self, block) -> Array:
        """`listing` with each list filled up with nobody to whole blocks."""
        tokens = self.listing()
        missing = (0, 0), (0, 0), (0, -tokens.shape[2] % block)
        return namespace(tokens).pad(tokens, missing, constant_values=-1)

    def _write_out(self):
        sizes = [n for _, n, _ in self.digits]
        token, inside = np.zeros(sizes, np.int64), np.ones(sizes, bool)
        stride = 1
        for axis in reversed(range(len(self.grid))):
            place = np.full((1,) * len(sizes), self.origin[axis])
            for d, (which, n, step) in enumerate(self.digits):
                if which == axis:
                    place = place + step * np.arange(n).reshape([-1 if e == d else 1 for e in range(len(sizes))])
            inside &= (place >= 0) & (place < self.grid[axis])
            token += place * stride
            stride *= self.grid[axis]
        return np.where(inside, token, -1).astype(np.int32).reshape(1, 1, -1)

    def inverse(self) -> Array:
        """int32 (1 | batch, 1 | heads, n_tokens): the slot of each token, -1 for a token at none. Kept.

        Only for an order without repeats; see `repeats`.
        """
        return self.memo.get("inverse", self._invert)

    def _invert(self):
        tokens = self.listing()
        xp, flat = namespace(tokens), tokens.reshape(-1)
        there = xp.flatnonzero(flat >= 0)
        line, slot = xp.divmod(there, tokens.shape[2])
        slots = xp.full((tokens.shape[0] * tokens.shape[1], self.n_tokens), -1, np.int32)
        slots[line, flat[there]] = slot
        return slots.reshape(*tokens.shape[:2], self.n_tokens)

    @property
    def is_full(self) -> bool:
        """Whether every slot holds a token."""
        return self.memo.get("is full", lambda: bool((self.listing() >= 0).all()))

    @property
    def is_onto(self) -> bool:
        """Whether every token sits at some slot, of an order without repeats."""
        return self.memo.get("is onto", lambda: bool((self.inverse() >= 0).all()))

    @property
    def repeats(self) -> bool:
        """Whether some token sits at more than one slot."""
        return self.memo.get("repeats", lambda: bool((self.occurrence() > 0).any()))

    def occurrence(self) -> Array:
        """int32 like `listing`: how many earlier slots hold the same token (0 for nobody). Kept."""
        return self.memo.get("occurrence", self._count_occurrences)

    def _count_occurrences(self):
        tokens = self.listing()
        xp, n_slots = namespace(tokens), tokens.shape[2]
        short = np.min_scalar_type(self.n_tokens)  # NumPy sorts 16 bits in linear time
        by_token = xp.argsort((tokens + 1).astype(short), axis=2, kind="stable")
        ordered = xp.take_along_axis(tokens, by_token, axis=2)
        new = xp.ones(tokens.shape, bool)
        new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
        first = xp.flatnonzero(new)[xp.cumsum(new) - 1]  # slot of the same token, through all lists
        at = xp.arange(tokens.size)
        count = xp.zeros(tokens.size, np.int32)
        count[at // n_slots * n_slots + by_token.reshape(-1)] = xp.where(ordered.reshape(-1) >= 0, at - first, 0)
        return count.reshape(tokens.shape)

    @property
    def digest(self) -> bytes:
        return self.memo.get("digest", lambda: digest(self.n_tokens, self.tokens, self.grid, self.digits, self.origin))

    def __eq__(self, other):
        if self is other or not isinstance(other, Order):
            return self is other
        if library(self.tokens) == library(other.tokens) == "cupy":  # no need to wait for whole lists
            tokens = self.tokens, other.tokens
            return self.n_tokens == other.n_tokens and bool(namespace(self.tokens).array_equal(*tokens))
        return self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)


@dataclass(frozen=True, eq=False)
class BlockCSR:
    """Blocks of (query slot, key slot) pairs in compressed rows, each full or with a shared bit mask.

    Parameters
    ----------
    shape : tuple of int
        (n_queries, n_keys), tokens.
    block_size : tuple of int
        (block_q, block_k) slots; (1, 1) is plain CSR.
    indptr : array, int64, (1 | batch, 1 | heads, n_rows + 1)
        Where the blocks of each row of blocks begin and end in `indices`.
    indices : array, int32, (n_blocks,)
        Key-block numbers, increasing within a row.
    mask_ids : array, int32, (n_blocks,), optional
        0: every pair of the block; m > 0: those in ``masks[m]``. None: every block is full.
    masks : array, uint32, (n_masks, block_q, ceil(block_k / 32)), optional
        Bits of pairs, low bit first; ``masks[0]`` is all ones. Bits of slots beyond the end or of nobody mean nothing.
    q_order, k_order : Order, optional
        The token at each query and key slot; None: slot = token.
    heads : array, int32, (n,), optional
        The heads of the pattern this part is about, increasing; None: all. Then `heads` axes count within it.

    Notes
    -----
    A token is at most once in `q_order` and may repeat in `k_order`; no pair stands twice. Empty blocks are not stored,
    and a block whose pairs of existing tokens are all attended is full.
    """

    shape: tuple[int, int]
    block_size: tuple[int, int]
    indptr: Array
    indices: Array
    mask_ids: Array | None = None
    masks: Array | None = None
    q_order: Order | None = None
    k_order: Order | None = None
    heads: Array | None = None
    memo: Memo = field(default_factory=Memo, init=False, repr=False)

    @property
    def n_q_slots(self) -> int:
        return self.shape[0] if self.q_order is None else self.q_order.n_slots

    @property
    def n_k_slots(self) -> int:
        return self.shape[1] if self.k_order is None else self.k_order.n_slots

    @property
    def n_rows(self) -> int:
        """Rows of blocks."""
        return self.indptr.shape[2] - 1

    @property
    def n_cols(self) -> int:
        """Columns of blocks."""
        return -(-self.n_k_slots // self.block_size[1])

    @property
    def n_blocks(self) -> int:
        return self.indices.shape[0]

    @property
    def lead(self) -> tuple[int, int]:
        """(1 | batch, 1 | heads) over the structure and its orders."""
        return _lead(self.indptr.shape[:2], self.q_order, self.k_order)

    @property
    def space(self) -> tuple:
        """What two parts must share for their slots to mean the same tokens."""
        return self.shape, self.q_order, self.k_order

    @property
    def digest(self) -> bytes:
        orders = [o and o.digest for o in (self.q_order, self.k_order)]
        return self.memo.get("digest", lambda: digest("blocks", self.shape, self.block_size, self.indptr, self.indices,
                                                      self.mask_ids, self.masks, self.heads, *orders))


@dataclass(frozen=True, eq=False)
class Ranges:
    """Ranges of key slots: query slot s attends slots ``starts[..., s] <= t < stops[..., s]``. O(n_queries) memory.

    Parameters
    ----------
    shape : tuple of int
        (n_queries, n_keys), tokens.
    starts, stops : array, int32, (1 | batch, 1 | heads, n_q_slots)
        ``0 <= start <= stop <= n_k_slots``; an empty range is (0, 0), and so is that of a slot of nobody.
    q_order, k_order, heads
        As in BlockCSR. In the natural order, slots are tokens.
    block_size : tuple of int, optional
        The tiles a kernel should cut the ranges into; None: chosen by their reach.
    """

    shape: tuple[int, int]
    starts: Array
    stops: Array
    q_order: Order | None = None
    k_order: Order | None = None
    heads: Array | None = None
    block_size: tuple[int, int] | None = None
    memo: Memo = field(default_factory=Memo, init=False, repr=False)

    @property
    def n_q_slots(self) -> int:
        return self.starts.shape[2]

    @property
    def n_k_slots(self) -> int:
        return self.shape[1] if self.k_order is None else self.k_order.n_slots

    @property
    def lead(self) -> tuple[int, int]:
        """(1 | batch, 1 | heads) over the ranges and their orders."""
        return _lead(self.starts.shape[:2], self.q_order, self.k_order)

    @property
    def space(self) -> tuple:
        """What two parts must share for their slots to mean the same tokens."""
        return self.shape, self.q_order, self.k_order

    @property
    def digest(self) -> bytes:
        orders = [o and o.digest for o in (self.q_order, self.k_order)]
        return self.memo.get("digest", lambda: digest("ranges", self.shape, self.starts, self.stops, self.heads,
                                                      self.block_size, *orders))


def is_listed(part) -> bool:
    """Whether a part lists, query by query in the order of tokens, which blocks of keys it attends. Such a part is
    transposed and made ready for kernels where its arrays lie, others where they were made."""
    return isinstance(part, BlockCSR) and part.block_size[0] == 1 and part.q_order is part.k_order is part.heads is None


def _lead(own, *orders):
    """(1 | batch, 1 | heads) over a record's arrays and its orders."""
    if orders == (None, None):
        return own
    leads = [own] + [o.lead for o in orders if o is not None]
    return max(b for b, _ in leads), max(h for _, h in leads)
