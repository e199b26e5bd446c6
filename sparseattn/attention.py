"""attend, its gradient, and merge: check the call, hand it to a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparseattn import checks, dispatch
from sparseattn.xp import compute_dtype, namespace

Array = Any


class Gradients(NamedTuple):
    """Gradients of a call, each with the shape and dtype of its input; None where there is no such input."""

    dq: Array
    dk: Array
    dv: Array
    dbias: Array | None = None
    dsinks: Array | None = None


def attend(q, k, v, pattern, *, scale=None, bias=None, softcap=None, sinks=None, dropout=0.0, seed=None,
           return_lse=False, out=None, backend=None):
    """Softmax attention over the pairs of a pattern: ``out[i] = sum_j softmax_j(scale * q[i] @ k[j]) v[j]``.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries; without batch, or without batch and heads, as well. Any strides.
    k, v : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys and values in q's dtype and number of axes. `n_heads` is a multiple of `n_kv_heads`: grouped heads. v may
        have another head_dim.
    pattern : Pattern
        Which key each query attends; its batch is 1 or that of q, its n_heads 1, n_kv_heads or n_heads.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    bias : Bias or array, optional
        Added to the scores of query heads: what a function in `sparseattn.bias` returns, or an array broadcastable to
        (batch, n_heads, n_queries, n_keys), less the axes that q lacks, in q's dtype or that of lse. -inf leaves a
        pair out; 16-bit numbers are widened in one copy of the array.
    softcap : float, optional
        Limit c > 0 of the scores before the bias: they become ``c * tanh(scale * q[i] . k[j] / c)``.
    sinks : array, (n_heads,), optional
        A logit for each query head, in q's dtype or that of lse, that takes part in every softmax of the head and has
        no value: the weights of a query add up to less than 1. -inf: none.
    dropout : float
        Share of the pairs to leave out after the softmax, 0 <= dropout < 1; the weights of the others are divided by
        ``1 - dropout``. It needs a seed.
    seed : int, optional
        Which pairs are dropped, modulo 2**64.
    return_lse : bool
        Also return the logarithm of each query's sum of exponentials.
    out : array, (batch, n_heads, n_queries, v_head_dim), optional
        Where to write the result: q's dtype, overlapping none of q, k, v.
    backend : str, optional
        Name of a backend, see `backends`; None: the first that can run the call.

    Returns
    -------
    array, or tuple of two arrays
        `out` in q's dtype, and with `return_lse` the natural logarithm `lse` (batch, n_heads, n_queries), float32
        (float64 for float64).

    Raises
    ------
    TypeError, ValueError
        A type, dtype, shape or value does not fit; nothing was computed.
    NotImplementedError
        No backend can run the call.

    Notes
    -----
    With all options, and b, h the batch item and query head::

        z = scale * q[b, h, i] . k[b, kv_head, j]          kv_head = h * n_kv_heads // n_heads
        s = softcap * tanh(z / softcap) + bias[b, h, i, j]
        lse = log(exp(sinks[h]) + sum_j exp(s))
        out[b, h, i] = sum_j kept[b, h, i, j] * exp(s - lse) * v[b, kv_head, j] / (1 - dropout)

    A pair is kept when ``mix(r + 0x9E3779B9 * j) >= dropout * 2**32``, where `mix` is the 32-bit finaliser of murmur3
    [3]_, all modulo 2**32, and r starts at 0 and takes ``r = mix(r + 0x9E3779B9 * word)`` for the words lower and upper
    half of the seed, b, h, i: the same pairs on every backend, in any order or block size. lse is of all pairs.

    16-bit inputs are computed in float32. A query without keys gets ``out = 0`` and ``lse = -inf``, or the sink. What
    is in a key or value that no query attends, or in the bias of a pair that the pattern lacks, NaN included, touches
    nothing. Equal calls give equal bits, whatever the number of threads.

    References
    ----------
    .. [1] Gemma Team, Gemma 2, arXiv:2408.00118, section 2 (softcap).
    .. [2] OpenAI, gpt-oss-120b and gpt-oss-20b Model Card, arXiv:2508.10925, section 2.2 (sinks).
    .. [3] Appleby, MurmurHash3, https://github.com/aappleby/smhasher.
    """
    call = checks.check_options(checks.check_call(q, k, v, pattern, scale), bias, softcap, sinks, dropout, seed)
    result, lse = _forward(call, out, backend)
    return (result, lse) if return_lse else result


def attend_backward(dout, q, k, v, out, lse, pattern, *, dlse=None, scale=None, bias=None, softcap=None, sinks=None,
                    dropout=0.0, seed=None, backend=None):
    """Gradients of `attend` for q, k, v and, where given, bias and sinks.

    Parameters
    ----------
    dout : array
        Gradient arriving at `out`, in its shape and dtype.
    q, k, v : array
        As given to `attend`.
    out, lse : array
        As `attend` returned them with ``return_lse=True``, or as a `merge` that this call is one part of gave them.
    pattern : Pattern
        As given to `attend`.
    dlse : array, optional
        Gradient arriving at `lse`, in its shape and dtype.
    scale, bias, softcap, sinks, dropout, seed, backend : optional
        As given to `attend`; with dropout the same seed.

    Returns
    -------
    Gradients
        Named tuple (dq, dk, dv, dbias, dsinks). `dbias` has the shape and dtype of the array, or of what the bias was
        made from (slopes, table); None without bias and for `bias.log_count`. `dsinks` has those of the sinks.

    Raises
    ------
    TypeError, ValueError
        A type, dtype, shape or value does not fit; nothing was computed.
    NotImplementedError
        No backend can run the call.

    Notes
    -----
    Where several queries, heads or batch items share an entry of the bias, its gradient is the sum over them.
    """
    call = checks.check_options(checks.check_call(q, k, v, pattern, scale), bias, softcap, sinks, dropout, seed)
    dout = checks.check_like("dout", dout, call.out_shape, call.q.dtype, call)
    out = checks.check_like("out", out, call.out_shape, call.q.dtype, call)
    lse = checks.check_like("lse", lse, call.lse_shape, call.lse_dtype, call)
    if dlse is not None:
        dlse = checks.check_like("dlse", dlse, call.lse_shape, call.lse_dtype, call)
    runs = dispatch.choose(call.library, call.q, call.k, call.v, call.pattern, backend)
    dq, dk, dv, dvalues, dsinks = runs.backward(dout, call.q, call.k, call.v, out, lse, call.pattern, scale=call.scale,
                                                dlse=dlse, options=call.options)
    lead = (0,) * (4 - call.ndim)
    dbias = None if call.bias is None else call.bias.pull(dvalues, call.options.bias)
    return Gradients(dq[lead], dk[lead], dv[lead], dbias, None if sinks is None else dsinks.astype(sinks.dtype))


def vjp(q, k, v, pattern, *, scale=None, bias=None, softcap=None, sinks=None, dropout=0.0, seed=None, return_lse=False,
        out=None, backend=None):
    """`attend`, and the function that takes a gradient of its result back to the inputs.

    Parameters
    ----------
    q, k, v : array
        As in `attend`. They are kept, not copied, like the arrays of bias and sinks: change none of them before the
        last use of the function.
    pattern : Pattern
        As in `attend`.
    scale, bias, softcap, sinks, dropout, seed, out, backend : optional
        As in `attend`.
    return_lse : bool
        As in `attend`: the first value is then ``(out, lse)``.

    Returns
    -------
    out : array, or tuple of two arrays
        What `attend` returns.
    vjp : function
        ``vjp(dout, dlse=None)`` gives `Gradients`; it may be called any number of times.
    """
    call = checks.check_options(checks.check_call(q, k, v, pattern, scale), bias, softcap, sinks, dropout, seed)
    result, lse = _forward(call, out, backend)

    def backward(dout, dlse=None):
        return attend_backward(dout, q, k, v, result, lse, pattern, dlse=dlse, scale=call.scale, bias=bias,
                               softcap=softcap, sinks=sinks, dropout=dropout, seed=seed, backend=backend)

    return ((result, lse) if return_lse else result), backward


def merge(parts):
    """Attention over a union of disjoint key sets, from attention over each of them; exact.

    Parameters
    ----------
    parts : sequence of (out, lse)
        As `attend` returns them with ``return_lse=True``, for the same queries and disjoint pairs: out (..., n_queries,
        head_dim), lse (..., n_queries). At least one.

    Returns
    -------
    out, lse : array
        In the shapes and dtypes of the parts. A query without keys in any part has out 0 and lse -inf.

    Notes
    -----
    Parts are added in the given order, in float32 (float64 for float64), with one rounding at the end. Sinks belong in
    one of the calls alone, or they count once a part.
    """
    parts = checks.check_parts(parts)
    out, lse = parts[0]
    xp, dtype = namespace(out), compute_dtype(out.dtype)
    top = lse
    for _, other in parts[1:]:
        top = xp.maximum(top, other)
    top = xp.where(top == -xp.inf, 0, top)
    total, acc = xp.zeros(lse.shape, dtype), xp.zeros(out.shape, dtype)
    for part, part_lse in parts:
        weight = xp.exp(part_lse - top)
        total += weight
        # a part without keys for a query says nothing about it, whatever its out holds
        acc += xp.where(weight[..., None] != 0, part.astype(dtype), 0) * weight[..., None]
    reached = total != 0
    acc /= xp.where(reached, total, 1)[..., None]
    return acc.astype(out.dtype), xp.where(reached, top + xp.log(xp.where(reached, total, 1)), -xp.inf)


def _forward(call, out, backend):
    """(out, lse) with the axes of the caller's q; `out` itself where one was given."""
    view = None if out is None else checks.check_out(out, call)
    runs = dispatch.choose(call.library, call.q, call.k, call.v, call.pattern, backend)
    result, lse = runs.forward(call.q, call.k, call.v, call.pattern, scale=call.scale, out=view, options=call.options)
    lead = (0,) * (4 - call.ndim)
    return (result[lead] if out is None else out), lse[lead]
