"""Score terms before and after a call: what was given, bound to the call's sizes, and the gradient brought back."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from sparseattn.options import Term
from sparseattn.xp import compute_dtype, gpu_of, library, namespace

Array = Any


class Bias:
    """What a function in `sparseattn.bias` returns: an additive score term for ``attend(..., bias=)``.

    Attributes
    ----------
    name : str
        The function that made it.
    """

    def __init__(self, name, given):
        self.name, self.given = name, given

    def __repr__(self):
        return f"<bias {self.name} {tuple(self.given.shape)} {self.given.dtype}>"

    def bind(self, q, k, ndim) -> Term:
        """The term for q, k (batch, n_heads, n_tokens, head_dim), which the caller gave with `ndim` axes."""
        raise NotImplementedError

    def pull(self, dvalues, term) -> Array:
        """The gradient of what was given, from that of the values of the bound term."""
        return dvalues.reshape(self.given.shape).astype(self.given.dtype, copy=False)

    def _values(self, q, shape):
        """What was given, in this 4-D shape and the dtype that q is computed in."""
        return self.given.reshape(shape).astype(compute_dtype(q.dtype), copy=False)

    def _check_library(self, q):
        if library(self.given) != library(q):
            raise TypeError(f"bias {self.name} holds {library(self.given)} arrays but q is a {library(q)} array; "
                            f"build it from {library(q)} arrays")

    def _check_heads(self, wanted, n_heads):
        if wanted not in (1, n_heads):
            raise ValueError(f"bias {self.name} is for {wanted} heads but q has {n_heads}; build it for 1 or {n_heads}")


class Dense(Bias):
    """An array of the caller, broadcastable to the scores."""

    def __init__(self, given):
        super().__init__("array", given)

    def bind(self, q, k, ndim):
        self._check_library(q)
        self._check_dtype(q)
        whole = (*q.shape[:3], k.shape[2])
        expected, shape = whole[4 - ndim:], self.given.shape
        fits = len(shape) <= ndim and all(n in (1, w) for n, w in zip(shape[::-1], expected[::-1]))
        if not fits:
            names = ", ".join(("batch", "n_heads", "n_queries", "n_keys")[4 - ndim:])
            raise ValueError(f"bias has shape {shape}; expected one that broadcasts to {expected}, ({names})")
        return Term(self._values(q, (1,) * (4 - len(shape)) + shape))

    def _check_dtype(self, q):
        dtype, wide = self.given.dtype, compute_dtype(q.dtype)
        if dtype.kind == "b":
            raise TypeError("bias is an array of bool; pairs are left out by the pattern: pattern & "
                            "Pattern.from_mask(mask), or pass a bias of 0 and -inf")
        if dtype not in (q.dtype, wide):
            raise TypeError(f"bias has dtype {dtype}; expected {wide}{'' if wide == q.dtype else f' or {q.dtype}'}: "
                            f"bias.astype(np.{wide})")


class _Distances(Bias):
    """A term whose table is looked up by ``j - i - offset + left``; no offset: the last query sits at the last key."""

    def __init__(self, name, given, left, offset):
        super().__init__(name, given)
        self.left, self.offset = left, offset

    def _offsets(self, q, k):
        """One int, or one a batch item."""
        if self.offset is None:
            return (k.shape[2] - q.shape[2],)
        if len(self.offset) not in (1, q.shape[0]):
            raise ValueError(f"bias {self.name} has {len(self.offset)} offsets but q has batch {q.shape[0]}; give one, "
                             f"or one per batch item")
        return self.offset

    def _codes(self, q, k, left):
        """(q_codes, k_codes, shift) of a bound term."""
        return _distance_codes(_place(q), q.shape[2], k.shape[2], left, self._offsets(q, k))


class Slopes(_Distances):
    """ALiBi: the table is made for all distances of the call."""

    def __init__(self, name, given, offset):
        super().__init__(name, given, None, offset)

    def bind(self, q, k, ndim):
        self._check_library(q)
        self._check_heads(self.given.shape[0], q.shape[1])
        xp, offset = namespace(q), self._offsets(q, k)
        left = q.shape[2] - 1 + max(offset)  # how far the most distant key lies before its query
        size = max(left + k.shape[2] - min(offset), 1) + 1
        values = xp.empty((1, self.given.shape[0], 1, size), compute_dtype(q.dtype))
        slopes = self.given if self.given.dtype.itemsize > 2 else self.given.astype(xp.float64)
        xp.multiply(slopes[:, None], _falling(_place(q), size, left), out=values[0, :, 0], casting="same_kind")
        return Term(values, None, *self._codes(q, k, left), spare=True)

    def pull(self, dvalues, term):
        n_queries, n_keys, size = term.q_codes.size, term.k_codes.size, dvalues.shape[3]
        left = n_queries - 1 + (n_keys - n_queries if self.offset is None else max(self.offset))
        return (dvalues[0, :, 0] * _falling(_place(dvalues), size, left)).sum(1).astype(self.given.dtype)


class ByOffset(_Distances):
    """A table by distance, 0 outside."""

    def bind(self, q, k, ndim):
        self._check_library(q)
        n_heads, size = (1, *self.given.shape)[-2:]
        self._check_heads(n_heads, q.shape[1])
        return Term(self._values(q, (1, n_heads, 1, size)), None, *self._codes(q, k, self.left))


class Relative2D(Bias):
    """A table by the difference of two places on a grid.

    Bound rows are as wide as two rows of the grid can differ, so that no pair beyond the window meets another's entry.
    """

    def __init__(self, name, given, shape, window):
        super().__init__(name, given)
        self.shape, self.window = shape, window
        self.reach = max(shape[1], window[1])  # columns of a bound row on each side, the middle one counted twice

    def bind(self, q, k, ndim):
        self._check_library(q)
        self._check_heads(self.given.shape[1], q.shape[1])
        n_tokens = self.shape[0] * self.shape[1]
        for name, x in (("q", q), ("k", k)):
            if x.shape[2] != n_tokens:
                raise ValueError(f"bias relative_2d is for the {n_tokens} tokens of a {self.shape[0]} x "
                                 f"{self.shape[1]} grid but {name} has {x.shape[2]}; pass the shape of the grid that "
                                 f"q and k hold")
        xp, n_heads, rows = namespace(q), self.given.shape[1], 2 * self.window[0] - 1
        values = xp.zeros((1, n_heads, rows, 2 * self.reach - 1), compute_dtype(q.dtype))
        values[..., self._inside()] = self.given.T.reshape(1, n_heads, rows, 2 * self.window[1] - 1)
        values = values.reshape(1, n_heads, 1, rows * (2 * self.reach - 1))
        return Term(values, None, *_grid_codes(_place(q), self.shape, self.window[0] - 1, self.reach))

    def pull(self, dvalues, term):
        n_heads = dvalues.shape[1]
        rows = dvalues.reshape(n_heads, 2 * self.window[0] - 1, 2 * self.reach - 1)[..., self._inside()]
        return rows.reshape(n_heads, self.given.shape[0]).T.astype(self.given.dtype)

    def _inside(self):
        """The columns of a bound row that the published table has."""
        return slice(self.reach - self.window[1], self.reach + self.window[1] - 1)


class Labels(_Distances):
    """A table by label, and a label for each pair or, with `left`, for each distance."""

    def __init__(self, name, given, labels, left, offset):
        super().__init__(name, given, left, offset)
        self.labels = labels.astype("int32", copy=False)

    def bind(self, q, k, ndim):
        self._check_library(q)
        shape = self.given.shape
        shape = (1, shape[0], 1, shape[1]) if len(shape) == 2 else (1,) * (4 - len(shape)) + shape
        self._check_heads(shape[1], q.shape[1])
        if shape[0] not in (1, q.shape[0]) or shape[2] not in (1, q.shape[2]):
            raise ValueError(f"table of bias labels has shape {self.given.shape}; expected (n_heads, n_labels) or "
                             f"([batch,] n_heads, n_queries, n_labels) for batch {q.shape[0]} and {q.shape[2]} queries")
        values = self._values(q, shape)
        if self.left is not None:
            return Term(values, self.labels, *self._codes(q, k, self.left))
        found, whole = (1,) * (4 - self.labels.ndim) + self.labels.shape, (*q.shape[:3], k.shape[2])
        if not all(n in (1, w) for n, w in zip(found, whole)):
            raise ValueError(f"labels has shape {self.labels.shape}; expected one that broadcasts to {whole}, (batch, "
                             f"n_heads, n_queries, n_keys)")
        return Term(values, self.labels.reshape(found))


def _place(x):
    """Where an array is, as the functions below take it: its library, and for CuPy the number of its GPU."""
    return namespace(x), gpu_of(x)


@functools.lru_cache(1000)
def _distance_codes(place, n_queries, n_keys, left, offset):
    """(q_codes, k_codes, shift) of a table by distance. Equal calls get the same arrays, whatever their bias."""
    shift = _made(place, lambda xp: left - xp.asarray(offset, xp.int64))
    return _falling(place, n_queries, 0), _rising(place, n_keys), shift


@functools.lru_cache(100)
def _grid_codes(place, shape, up, reach):
    """(q_codes, k_codes, shift) of a table of bound rows by the difference of two places on a grid."""
    def make(xp):
        y, x = xp.divmod(xp.arange(shape[0] * shape[1], dtype=xp.int64), shape[1])
        code = y * (2 * reach - 1) + x
        return code, -code, xp.full(1, up * (2 * reach - 1) + reach - 1, xp.int64)

    return _made(place, make)


def _rising(place, size):
    """0, 1, 2, ...: views of arrays that live on, since a graph may have captured a call that reads them."""
    return _long_rising(place, size.bit_length())[:size]


def _falling(place, size, left):
    """-abs(i - left) for each i < size: what a slope of 1 adds."""
    if not 0 <= left <= size:
        return -abs(_rising(place, size) - left)
    first = (1 << size.bit_length()) - left
    return _long_falling(place, size.bit_length())[first:first + size]


@functools.cache
def _long_rising(place, bits):
    return _made(place, lambda xp: xp.arange(1 << bits, dtype=xp.int64))


@functools.cache
def _long_falling(place, bits):
    return _made(place, lambda xp: -abs(xp.arange(-(1 << bits), 1 << bits, dtype=xp.int64)))


def _made(place, make):
    """make(xp) at a place."""
    xp, device = place
    with contextlib.nullcontext() if device is None else xp.cuda.Device(device):
        return make(xp)
