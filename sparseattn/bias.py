"""Additive score terms in token coordinates, each with its gradient: what `attend` takes as ``bias=``."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from sparseattn.counts import Counts
from sparseattn.pattern import Pattern
from sparseattn.terms import Bias, ByOffset, Labels, Relative2D, Slopes
from sparseattn.xp import library

Array = Any

__all__ = ["Bias", "alibi", "by_offset", "labels", "log_count", "relative_2d"]


def alibi(slopes, *, offset=None):
    """Linear penalty of distance, a slope a head: ``-slopes[h] * |i + offset - j|`` is added to the scores.

    Parameters
    ----------
    slopes : array of float, (n_heads,)
        Slope of each query head; of one entry: shared by all heads.
    offset : int or sequence of int, optional
        The key at which query 0 sits, one for all or one per batch item. None: ``n_keys - n_queries``.

    Returns
    -------
    Bias
        For ``attend(..., bias=)``; `dbias` has the shape and dtype of `slopes`.

    Notes
    -----
    O(n_heads * (n_queries + n_keys + spread of the offsets)) memory and time a call. The array is kept, not copied: a
    later call sees its values of then.

    References
    ----------
    .. [1] Press et al., Train Short, Test Long, arXiv:2108.12409, section 3.
    """
    return Slopes("alibi", _numbers("slopes", slopes, (1,), "(n_heads,)"), _offsets(offset))


def by_offset(table, *, left, offset=None):
    """A number for each distance, as in T5: ``table[h, j - i - offset + left]`` is added, 0 outside the table.

    Parameters
    ----------
    table : array of float, (n_heads, size) or (size,)
        One row a query head, or one for all.
    left : int
        How far the table reaches to the left: its first entry is for the key `left` tokens before the query. Negative
        where it begins behind the query.
    offset : int or sequence of int, optional
        The key at which query 0 sits, one for all or one per batch item. None: ``n_keys - n_queries``.

    Returns
    -------
    Bias
        For ``attend(..., bias=)``; `dbias` has the shape and dtype of `table`.

    Notes
    -----
    The array is kept, not copied: a later call sees its values of then. T5 shares an entry between many distances;
    fill the table from its buckets, and add up `dbias` by bucket.

    References
    ----------
    .. [1] Raffel et al., T5, arXiv:1910.10683, section 2.1.
    .. [2] Guo et al., LongT5, arXiv:2112.07916, section 3.1.
    """
    table = _numbers("table", table, (1, 2), "(n_heads, size) or (size,)")
    return ByOffset("by_offset", table, _integer("left", left), _offsets(offset))


def relative_2d(table, shape, window):
    """A number for each difference of two tokens of a grid, as in Swin.

    Parameters
    ----------
    table : array of float, ((2 * w0 - 1) * (2 * w1 - 1), n_heads)
        In the published layout, query minus key, the last axis of the grid fastest; with one column: shared by all
        heads.
    shape : tuple of int
        Rows and columns of the grid whose tokens, in raster order, are both the queries and the keys.
    window : int or tuple of int
        Side (w0, w1) of the windows that the table was made for.

    Returns
    -------
    Bias
        For ``attend(..., bias=)``; `dbias` has the shape and dtype of `table`.

    Notes
    -----
    Token i at (y_i, x_i) and token j at (y_j, x_j) get ``table[(y_i - y_j + w0 - 1) * (2 * w1 - 1) + x_i - x_j + w1 -
    1, h]``, and 0 where ``|y_i - y_j| >= w0`` or ``|x_i - x_j| >= w1``. It does not matter whether windows are
    shifted. The array is kept, not copied: a later call sees its values of then.

    References
    ----------
    .. [1] Liu et al., Swin Transformer, arXiv:2103.14030, section 3.2.
    """
    shape, window = _sides("shape", shape), _sides("window", window)
    table = _numbers("table", table, (2,), "((2 * w0 - 1) * (2 * w1 - 1), n_heads)")
    size = (2 * window[0] - 1) * (2 * window[1] - 1)
    if table.shape[0] != size:
        raise ValueError(f"table has {table.shape[0]} rows; expected {size}, one for each difference within a window "
                         f"of {window[0]} x {window[1]}: pass the window that the table was made for")
    return Relative2D("relative_2d", table, shape, window)


def labels(table, labels, *, left=None, offset=None):
    """A number for each label, and a label for each pair, as in ETC: ``table[h, label(i, j)]`` is added.

    Parameters
    ----------
    table : array of float, (n_heads, n_labels), (n_heads, n_queries, n_labels) or with batch in front
        Number of each label, for a query head, or for every query of it. Any axis but the last may be 1: shared.
    labels : array of int
        Label of each pair, broadcastable to (batch, n_heads, n_queries, n_keys); with `left` (n,): label of each
        distance.
    left : int, optional
        Labels are by distance: key j has for query i the label ``labels[j - i - offset + left]``, and beyond the ends
        that of the end.
    offset : int or sequence of int, optional
        With `left`: the key at which query 0 sits, one for all or one per batch item. None: ``n_keys - n_queries``.

    Returns
    -------
    Bias
        For ``attend(..., bias=)``; `dbias` has the shape and dtype of `table`.

    Notes
    -----
    The arrays are kept, not copied: a later call sees the table's values of then. Labels are compared with the size
    of the table once, here, and must not change after it. For ETC's scores ``(q . k + q . E[label]) / sqrt(head_dim)``
    pass the table ``scale * q @ E.T`` and take its gradient on to q and E.

    References
    ----------
    .. [1] Ainslie et al., ETC, arXiv:2004.08483, section 3.
    .. [2] Shaw et al., Relative Position Representations, arXiv:1803.02155.
    """
    table = _numbers("table", table, (2, 3, 4), "(n_heads, n_labels) or ([batch,] n_heads, n_queries, n_labels)")
    most = 4 if left is None else 1
    if library(labels) is None or labels.dtype.kind not in "iu":
        raise TypeError(f"labels is {_kind(labels)}; expected a NumPy or CuPy array of integers")
    if labels.ndim > most or (left is not None and not labels.size):
        raise ValueError(f"labels has shape {labels.shape}; expected it "
                         + ("broadcastable to (batch, n_heads, n_queries, n_keys)" if left is None else
                            "(n,), the label of each distance, with n >= 1; leave out left= for labels of pairs"))
    if labels.size and not (labels.min() >= 0 and labels.max() < table.shape[-1]):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but the table has {table.shape[-1]} "
                         f"entries; expected 0 <= label < {table.shape[-1]}")
    if left is None and offset is not None:
        raise ValueError("offset is for labels by distance; give left= too, or leave offset out")
    return Labels("labels", table, labels, None if left is None else _integer("left", left), _offsets(offset))


def log_count(counts):
    """Pairs that count several times: the weight of a pair is ``count * exp(score)``, as if log(count) were added.

    Parameters
    ----------
    counts : sequence of Pattern, or scipy.sparse matrix or array of int ([[batch,] n_heads,] n_queries, n_keys)
        How often each pair counts: in how many of the patterns it is, or its number. A pair of the call's pattern that
        counts 0 times has no weight.

    Returns
    -------
    Counts
        For ``attend(..., bias=)``; it has no gradient, `dbias` is None.

    Notes
    -----
    Nothing is added to the scores: the call runs over as many copies of a pair as it counts, made once a pattern and
    kept. Time is that of all copies together. A sparse matrix or an array becomes one pattern for each threshold 1, 2,
    ... up to its largest number, so numbers should be small.

    References
    ----------
    .. [1] Kitaev et al., Reformer, arXiv:2001.04451, appendix A.
    """
    if hasattr(counts, "tocsr"):
        return Counts("log_count", _of_sparse(counts))
    if library(counts) == "numpy":
        return Counts("log_count", _of_array(counts))
    wrong = f"counts is {_kind(counts)}; expected a sequence of patterns, or a scipy.sparse matrix or an array of int"
    if not isinstance(counts, (list, tuple)):
        raise TypeError(wrong)
    if not counts:
        raise ValueError("counts is empty; expected at least one pattern")
    for number, pattern in enumerate(counts):
        if not isinstance(pattern, Pattern):
            raise TypeError(f"counts[{number}] is {_kind(pattern)}; expected a sparseattn.Pattern")
        if pattern.shape != counts[0].shape:
            raise ValueError(f"counts[{number}] has shape {pattern.shape} but counts[0] {counts[0].shape}; build all "
                             f"for the same queries and keys")
    return Counts("log_count", tuple(counts))


def _of_sparse(counts):
    """A pattern for each threshold of a sparse matrix; one that holds nothing where there is no count."""
    counts = counts.tocsr(copy=True)
    counts.sum_duplicates()
    _check_counts(counts.data)
    largest = int(counts.data.max(initial=1))
    found = []
    for least in range(1, largest + 1):
        kept = counts.data >= least
        indptr = np.append(0, np.cumsum(kept))[counts.indptr]
        found.append(Pattern.from_csr(indptr, counts.indices[kept], counts.shape[1]))
    return tuple(found)


def _of_array(counts):
    if not 2 <= counts.ndim <= 4:
        raise ValueError(f"counts has shape {counts.shape}; expected ([[batch,] n_heads,] n_queries, n_keys)")
    _check_counts(counts)
    largest = int(counts.max()) if counts.size else 1
    return tuple(Pattern.from_mask(counts >= least) for least in range(1, max(largest, 1) + 1))


def _check_counts(numbers):
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"counts has dtype {numbers.dtype}; expected integers: counts.astype(np.int32)")
    if numbers.size and numbers.min() < 0:
        raise ValueError(f"counts holds {numbers.min()}; expected numbers >= 0")


def _numbers(name, x, axes, expected):
    """x, an array of floating numbers with so many axes."""
    if library(x) is None:
        raise TypeError(f"{name} is {_kind(x)}; expected a NumPy or CuPy array {expected}: np.asarray({name}, "
                        f"np.float32)")
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {x.dtype}; expected a floating one: {name}.astype(np.float32)")
    if x.ndim not in axes:
        raise ValueError(f"{name} has shape {x.shape}; expected {expected}")
    if not x.shape[-1]:
        raise ValueError(f"{name} has shape {x.shape}; expected at least one entry on the last axis")
    return x


def _integer(name, x):
    if not isinstance(x, numbers.Integral) or isinstance(x, bool):
        raise TypeError(f"{name} is {x!r}; expected an int")
    if abs(x) >= 2**31:
        raise ValueError(f"{name} is {x}; expected -2**31 < {name} < 2**31 tokens")
    return int(x)


def _offsets(offset):
    """None, or where query 0 sits as a tuple of one int or one a batch item."""
    if offset is None:
        return None
    if isinstance(offset, numbers.Integral):
        return (_integer("offset", offset),)
    if np.ndim(offset) != 1 or not len(offset):
        raise TypeError(f"offset is {offset!r}; expected an int, or a sequence of one int per batch item")
    return tuple(_integer("offset", x) for x in offset)


def _sides(name, sides):
    """Two sides of a rectangle; one number is both for a window."""
    if name == "window" and isinstance(sides, numbers.Integral):
        sides = (sides, sides)
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        raise TypeError(f"{name} is {sides!r}; expected two numbers of tokens, rows and columns")
    rows, columns = (_integer(name, side) for side in sides)
    if min(rows, columns) < 1:
        raise ValueError(f"{name} is {sides!r}; expected sides of at least 1")
    return rows, columns


def _kind(x):
    return f"an array of {x.dtype}" if library(x) is not None else "None" if x is None else f"a {type(x).__name__}"
