"""Reformer's attention: one array is queries and, at unit length, keys."""

from typing import Any, NamedTuple

import numpy as np

from sparseattn import checks
from sparseattn.attention import vjp as attend_vjp
from sparseattn.counts import repeating
from sparseattn.pattern import Pattern
from sparseattn.patterns.content.lsh import hash_rounds
from sparseattn.variants.arguments import n_tokens
from sparseattn.xp import compute_dtype, device_of, namespace, on_its_device

Array = Any

SHORTEST = 1e-12  # what "l2_unit" divides by at least
MEAN_SQUARE = 1e-6  # what "rms_unit" adds to the mean square


class ReformerGradients(NamedTuple):
    """Gradients of `reformer`, each with the shape and dtype of its input."""

    dqk: Array
    dv: Array


@on_its_device
def reformer(qk, v, *, key_norm="rms_unit", duplicates="once", n_buckets, n_hashes, chunk_length, chunks_before=1,
             chunks_after=0, causal=False, same_bucket=False, rotations=None, seed=0, valid=None, scale=None,
             backend=None):
    """Attention among tokens that hash alike, where queries and keys are one projection.

    Parameters
    ----------
    qk : array, (batch, n_heads, n_tokens, head_dim)
        Queries; keys are the same vectors at unit length. Without batch, or without batch and heads, as well.
    v : array, (batch, n_heads, n_tokens, v_head_dim)
        Values.
    key_norm : {"rms_unit", "l2_unit"}
        Keys are ``x / sqrt(mean(x**2) + 1e-6) / sqrt(head_dim)``, as in trax and transformers, or ``x / max(|x|,
        1e-12)``, as in reformer-pytorch.
    duplicates : {"once", "count"}
        A pair that meets in several rounds counts once, as in the paper, or as often as it meets, as in the released
        code.
    n_buckets, n_hashes, chunk_length, chunks_before, chunks_after, causal, same_bucket, rotations, seed, valid
        As in `sparseattn.patterns.lsh`.
    scale : float, optional
        Factor of the scores; None: 1 for "rms_unit", 1 / sqrt(head_dim) for "l2_unit", as published.
    backend : str, optional
        As in `attend`.

    Returns
    -------
    out : array, (batch, n_heads, n_tokens, v_head_dim)
        The attention of all tokens; 0 for those that are not valid.
    vjp : function
        ``vjp(dout)`` gives the named tuple (dqk, dv), dqk through both roles.

    Raises
    ------
    TypeError, ValueError
        The arrays do not belong together, or an option does not fit; nothing was computed.

    Notes
    -----
    The softmax of query i is over the keys that `patterns.lsh` gives it, weighted by 1 or by how often they meet: the
    sum over rounds that released code combines by their logarithms of sums equals the latter. A token attends itself
    only where nothing else is left, then exactly: ``out[i] = v[i]``. Released code reaches that by large constants,
    which in float32 cost three digits in such rows.

    No gradient flows through the choice, nor to the rotations. A call hashes again: for the same pairs give the same
    rotations or seed. On CuPy's arrays the hashes are waited for, as in `patterns.lsh`.

    References
    ----------
    .. [1] Kitaev et al., Reformer, arXiv:2001.04451, section 2 and appendix A.
    """
    if key_norm not in ("rms_unit", "l2_unit"):
        raise ValueError(f'key_norm is {key_norm!r}; expected "rms_unit" or "l2_unit"')
    if duplicates not in ("once", "count"):
        raise ValueError(f'duplicates is {duplicates!r}; expected "once" or "count"')
    n = n_tokens("qk", qk)
    scale = 1.0 if scale is None and key_norm == "rms_unit" else scale
    checks.check_call(qk, qk, v, Pattern((), (n, n)), scale)
    once = duplicates == "once"
    found = hash_rounds(qk, n_buckets=n_buckets, n_hashes=n_hashes, chunk_length=chunk_length,
                        chunks_before=chunks_before, chunks_after=chunks_after, causal=causal, same_bucket=same_bucket,
                        rotations=rotations, seed=seed, valid=valid, once=once)
    pattern = (Pattern.from_parts if once else repeating)(*found).to(device_of(qk))
    k, to_qk = unit_keys(qk, key_norm)
    out, back = attend_vjp(qk, k, v, pattern, scale=scale, backend=backend)

    @on_its_device
    def vjp(dout):
        dq, dk, dv = back(dout)[:3]
        through_keys = to_qk(dk)
        return ReformerGradients((dq.astype(through_keys.dtype, copy=False) + through_keys).astype(qk.dtype), dv)

    return out, vjp


def unit_keys(x, key_norm):
    """Keys of x in its dtype, and the function that takes their gradient to that of x, in the computing dtype."""
    xp, wide = namespace(x), x.astype(compute_dtype(x.dtype), copy=False)
    squares = xp.square(wide, dtype=np.float64).sum(-1, keepdims=True)
    if key_norm == "rms_unit":
        length, shortest = xp.sqrt(squares + MEAN_SQUARE * x.shape[-1]), -1
    else:
        length, shortest = xp.maximum(xp.sqrt(squares), SHORTEST), SHORTEST**2
    length, moves = length.astype(wide.dtype), squares > shortest  # else the length is a constant
    unit = wide / length

    def back(dk):
        dk = dk.astype(wide.dtype, copy=False)
        along = xp.where(moves, (unit * dk).sum(-1, keepdims=True), 0)
        # a key that nobody attends may hold anything
        return xp.where((dk != 0).any(-1, keepdims=True), (dk - unit * along) / length, 0)

    return unit.astype(x.dtype, copy=False), back
