"""ETC's labels: which label a pair has, and what labels add to the scores, with gradients."""

from typing import Any, NamedTuple

import numpy as np

from sparseattn.xp import compute_dtype, namespace


class LabelNumbers(NamedTuple):
    """What belongs to the labels, as given: each ([2,] [n_heads | 1,] n_labels ...), or None."""

    vectors: Any
    scalars: Any

    @property
    def some(self):
        return self.scalars if self.vectors is None else self.vectors

    @property
    def n_labels(self) -> int:
        return self.vectors.shape[-2] if self.vectors is not None else self.scalars.shape[-1]

    def of(self, side):
        """Vectors (n_heads | 1, n_labels, head_dim) and scalars (n_heads | 1, n_labels) of one softmax."""
        return [None if x is None else _padded(x, n_axes)[side % len(_padded(x, n_axes))]
                for x, n_axes in ((self.vectors, 4), (self.scalars, 3))]

    def collected(self, gradients):
        """Gradients of what was given from those of the two softmaxes, ((dvectors, dscalars), (dvectors, dscalars))."""
        return [None if x is None else _summed_to(x, pair, n_axes)
                for x, pair, n_axes in zip(self, zip(*gradients), (4, 3))]


def check_numbers(numbers, labels, q):
    """Raise where vectors and scalars do not fit each other or the queries."""
    if labels is None or numbers.some is None:
        if labels is not None or numbers.some is not None:
            raise ValueError("labels and the numbers of labels need each other; give labels= together with "
                             "label_vectors= or label_scalars=")
        return
    heads = q.shape[-3] if q.ndim > 2 else 1
    for name, x, tail in (("label_vectors", numbers.vectors, (numbers.n_labels, q.shape[-1])),
                          ("label_scalars", numbers.scalars, (numbers.n_labels,))):
        if x is None:
            continue
        if x.dtype not in (q.dtype, compute_dtype(q.dtype)):
            raise TypeError(f"{name} has dtype {x.dtype}; expected that of q_long, {q.dtype}")
        fits = x.ndim <= len(tail) + 2 and x.shape[-len(tail):] == tail
        if not fits or any(a not in (1, b) for a, b in zip(x.shape[:-len(tail)][::-1], (heads, 2))):
            raise ValueError(f"{name} has shape {x.shape}; expected ([2,] [n_heads={heads},] n_labels"
                             f"{', head_dim' if len(tail) > 1 else ''}) with {tail} at the end")


def pair_labels(labels, numbers, sentence, q, n, g):
    """For the long and the global softmax, and in each for global and long keys: (labels, left) as `bias.labels` takes
    them."""
    if labels is None:
        return ((None, None),) * 2
    if isinstance(labels, (int, np.integer)) and not isinstance(labels, bool):
        return _published(int(labels), numbers, sentence, namespace(q), n, g)
    if not isinstance(labels, (tuple, list)) or len(labels) != 2:
        raise TypeError(f"labels is {type(labels).__name__}; expected an int, or two arrays of int: of long and of "
                        "global queries")
    lead = q.shape[:-2] if q.ndim == 4 else (1,) + q.shape[:-2]
    for x, n_queries in zip(labels, (n, g)):
        whole = (1,) * (2 - len(lead)) + lead + (n_queries, g + n)
        if x.ndim > 4 or x.shape[-1:] != (g + n,) or any(a not in (1, b) for a, b in zip(x.shape[::-1], whole[::-1])):
            raise ValueError(f"labels holds an array of shape {x.shape}; expected one that broadcasts to {whole} with "
                             "all of the last axis: the global keys, then the long ones")
    return tuple(((x[..., :g], None), (x[..., g:], None)) for x in labels)


def _published(m, numbers, sentence, xp, n, g):
    """The rule of the released code with clip m."""
    if m < 1 or numbers.n_labels != 2 * m + 3:
        raise ValueError(f"labels is {m} and there are numbers for {numbers.n_labels} labels; expected a clip m of at "
                         "least 1 and 2 * m + 3 labels")
    if sentence is None:
        raise ValueError("published labels need sentence=: the global token that stands for each long token")
    t = xp.arange(-m, m + 1, dtype=xp.int32)
    distances = xp.where(t < 0, m - t, t), m
    own = xp.asarray(sentence)[..., None] == xp.arange(g)
    l2g = xp.where(own, 2 * m + 2, 2 * m + 1).astype(xp.int32)
    l2g = l2g.reshape(-1, 1, n, g) if l2g.size else l2g.reshape(1, 1, n, g)
    return ((l2g, None), distances), (distances, (l2g.swapaxes(2, 3), None))


def label_table(q, vectors, scalars, scale):
    """What each label adds to the scores of each query, (batch | 1, n_heads | 1, n_queries | 1, n_labels)."""
    dtype, table = compute_dtype(q.dtype), 0
    if vectors is not None:
        table = q.astype(dtype) @ vectors.astype(dtype).swapaxes(1, 2)
    if scalars is not None:
        table = table + scalars.astype(dtype)[None, :, None]
    return dtype.type(scale) * table


def label_table_backward(dtable, q, vectors, scalars, scale):
    """(dq | 0, dvectors, dscalars) from the gradient of a table, in the dtype of computing."""
    dtype = compute_dtype(q.dtype)
    dtable = dtype.type(scale) * dtable
    dscalars = None if scalars is None else dtable.sum((0, 2))
    if vectors is None:
        return 0, None, dscalars
    return dtable @ vectors.astype(dtype), (dtable.swapaxes(2, 3) @ q.astype(dtype)).sum(0), dscalars


def _padded(x, n_axes):
    return x.reshape((1,) * (n_axes - x.ndim) + x.shape)


def _summed_to(x, pair, n_axes):
    """Two gradients added up over the axes that x shares."""
    both = namespace(x).stack(pair)
    shared = tuple(axis for axis, size in enumerate(_padded(x, n_axes).shape) if size == 1)
    return both.sum(shared).reshape(x.shape).astype(x.dtype)
