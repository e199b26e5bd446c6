"""ETC's attention: a long and a global sequence, each with one softmax over both, and labels of pairs."""

from typing import Any, NamedTuple

import numpy as np

from sparseattn import bias, patterns
from sparseattn.attention import attend, attend_backward, merge
from sparseattn.variants.arguments import check_pairs, n_tokens
from sparseattn.variants.etc_labels import (LabelNumbers, check_numbers, label_table, label_table_backward,
                                            pair_labels)
from sparseattn.xp import device_of, on_cpu, on_its_device

Array = Any


class EtcGradients(NamedTuple):
    """Gradients of `etc`, each with the shape and dtype of its input; None where there is no such input."""

    dq_long: Array
    dk_long: Array
    dv_long: Array
    dq_global: Array
    dk_global: Array
    dv_global: Array
    dlabel_vectors: Array | None = None
    dlabel_scalars: Array | None = None


@on_its_device
def etc(q_long, k_long, v_long, q_global, k_global, v_global, *, radius, labels=None, label_vectors=None,
        label_scalars=None, scale=None, sentence=None, hard=False, valid=None, valid_global=None, backend=None):
    """Long tokens attend a window and the global tokens, global tokens attend everything; two softmaxes.

    Parameters
    ----------
    q_long, k_long, v_long : array, (batch, n_heads, n_long, head_dim)
        The long sequence; without batch, or without batch and heads, as well.
    q_global, k_global, v_global : array, (batch, n_heads, n_global, head_dim)
        The global sequence.
    radius : int
        Long keys on each side of a long query, self extra.
    labels : int or pair of arrays of int, optional
        A label for each pair. An int m: the published rule, ``2 * m + 3`` labels by distance up to m and by sentence.
        Two arrays: labels of long and of global queries, broadcastable to (batch, n_heads, n_queries, n_global +
        n_long), the global keys first.
    label_vectors : array, (n_heads, n_labels, head_dim), optional
        Vector of each label, met by the query; without heads: shared by them, with 2 in front: the tables of the long
        and of the global softmax, which else share one.
    label_scalars : array, (n_heads, n_labels), optional
        Number of each label; likewise.
    scale : float, optional
        Factor of the scores, those of the labels included; None: 1 / sqrt(head_dim).
    sentence : array of int, (n_long,) or (batch, n_long), optional
        The global token that stands for each long token; negative: none. What `hard` and the published labels need.
    hard : bool or {"l2g", "g2l"}
        As in `sparseattn.patterns.etc`.
    valid, valid_global : array of bool, (batch, n) or (n,), optional
        True: a real token of the long, or the global sequence. Padded queries get 0.
    backend : str, optional
        Name of a backend, as in `attend`.

    Returns
    -------
    (out_long, out_global) : tuple of two arrays
        The attention of each sequence.
    vjp : function
        ``vjp((dout_long, dout_global))`` gives a named tuple with one gradient an input: dq_long, dk_long, dv_long,
        dq_global, dk_global, dv_global, dlabel_vectors, dlabel_scalars.

    Raises
    ------
    TypeError, ValueError
        The arrays do not belong together, or an option does not fit; nothing was computed.

    Notes
    -----
    The pairs are those of `sparseattn.patterns.etc`; each has the score::

        s = scale * (q[i] . k[j] + q[i] . label_vectors[h, label] + label_scalars[h, label])

    The paper has the vectors alone, the released code both. Published labels with clip m, for t = j - i within a
    sequence: t up to m for keys behind the query, ``m + abs(t)`` up to ``2 * m`` for keys before it; between the
    sequences ``2 * m + 2`` where the long token is of the global token's sentence, else ``2 * m + 1``. Keys and values
    are not concatenated: each sequence is a call of `attend`, and `merge` makes one softmax of the two. Memory beside
    `attend`'s: batch * n_long * n_global labels, and n_labels numbers a query and head.

    References
    ----------
    .. [1] Ainslie et al., ETC, arXiv:2004.08483, section 3.
    """
    sides = (q_long, k_long, v_long), (q_global, k_global, v_global)
    n, g = _check(*sides)
    numbers = LabelNumbers(label_vectors, label_scalars)
    check_numbers(numbers, labels, q_long)
    names = pair_labels(labels, numbers, sentence, q_long, n, g)
    pairs = _pairs(patterns.etc(n, g, radius=radius, sentence=sentence, hard=hard), n, g, valid, valid_global)
    lead = (None,) * (4 - q_long.ndim)
    (q_long, k_long, v_long), (q_global, k_global, v_global) = ([x[lead] for x in side] for side in sides)
    scale = q_long.shape[3] ** -0.5 if scale is None else scale
    keys = (k_global, v_global), (k_long, v_long)
    outs, pulls = zip(*(_softmax(q, keys, pairs[side], names[side], numbers.of(side), scale, backend)
                        for side, q in enumerate((q_long, q_global))))
    bare = (0,) * len(lead)
    outs = tuple(out[bare] for out in outs)

    @on_its_device
    def vjp(douts):
        _check_douts(douts, outs)
        (dq_long, *dlong, dnumbers), (dq_global, *dglobal, dmore) = (
            pull(dout[lead]) for pull, dout in zip(pulls, douts))
        dk_global, dv_global, dk_long, dv_long = (a + b for a, b in zip(dlong, dglobal))
        arrays = (dq_long, dk_long, dv_long, dq_global, dk_global, dv_global)
        return EtcGradients(*(x[bare] for x in arrays), *numbers.collected((dnumbers, dmore)))

    return outs, vjp


def _softmax(q, keys, pairs, names, numbers, scale, backend):
    """One softmax of the queries over the global and the long keys.

    Returns the output and pull(dout) -> (dq, dk_global, dv_global, dk_long, dv_long, (dvectors, dscalars)).
    """
    added = [None, None]
    if names[0] is not None:
        table = label_table(q, *numbers, scale)
        added = [bias.labels(table, labels, left=left) for labels, left in names]
    calls = [((q, k, v), pattern.to(device_of(q)), {"scale": scale, "bias": term, "backend": backend})
             for (k, v), pattern, term in zip(keys, pairs, added)]
    out, lse = merge([attend(*arrays, pattern, return_lse=True, **options) for arrays, pattern, options in calls])

    def pull(dout):
        parts = [attend_backward(dout, *arrays, out, lse, pattern, **options) for arrays, pattern, options in calls]
        dq, dnumbers = sum(part.dq.astype(lse.dtype) for part in parts), (None, None)
        if names[0] is not None:
            more, *dnumbers = label_table_backward(sum(part.dbias for part in parts), q, *numbers, scale)
            dq = dq + more
        return dq.astype(q.dtype), parts[0].dk, parts[0].dv, parts[1].dk, parts[1].dv, dnumbers

    return out, pull


def _check(long, global_):
    """(n_long, n_global) of two times q, k, v."""
    names = [[(f"{name}_{side}", x) for name, x in zip("qkv", arrays)]
             for side, arrays in (("long", long), ("global", global_))]
    tokens = [[n_tokens(*pair) for pair in side] for side in names]
    for counts, side in zip(tokens, names):
        if len(set(counts)) > 1:
            raise ValueError(f"{', '.join(name for name, _ in side)} have {counts} tokens; expected as many of each")
    # all but the tokens
    for axes in (slice(None, -2), slice(-1, None)):
        check_pairs("both sequences need equal batches, heads, head_dims and dtypes", zip(*names), axes)
    return tokens[0][0], tokens[1][0]


def _check_douts(douts, outs):
    if not isinstance(douts, (tuple, list)) or len(douts) != 2:
        raise TypeError(f"douts is {type(douts).__name__}; expected a pair (dout_long, dout_global)")
    for name, dout, out in zip(("dout_long", "dout_global"), douts, outs):
        check_pairs("a gradient has the shape and dtype of its output", [((name, dout), (name[1:], out))])


def _pairs(found, n, g, valid, valid_global):
    """The patterns of the long and the global softmax, each cut into that of global and that of long keys."""
    if valid is not None or valid_global is not None:
        valid, valid_global = _valid("valid", valid, n), _valid("valid_global", valid_global, g)
        batch = max(len(valid), len(valid_global))
        if {len(valid), len(valid_global)} - {1, batch}:
            raise ValueError(f"valid has {len(valid)} batch items and valid_global {len(valid_global)}; give as many "
                             "of each")
        keys = np.concatenate([np.broadcast_to(x, (batch, x.shape[1])) for x in (valid_global, valid)], axis=1)
        found = [pattern & patterns.padding(keys, query_valid=rows)
                 for pattern, rows in zip(found, (valid, valid_global))]
    return [(pattern[:, :, :, :g], pattern[:, :, :, g:]) for pattern in found]


def _valid(name, x, n):
    """bool (1 | batch, n)."""
    x = np.ones(n, bool) if x is None else on_cpu(x)
    if x.dtype != bool or x.ndim not in (1, 2) or x.shape[-1] != n:
        raise ValueError(f"{name} is {x.dtype} of shape {x.shape}; expected bool ({n},) or (batch, {n})")
    return np.atleast_2d(x)
