"""Dense softmax attention in the caller's arrays, a head at a time: slow, plain, run only when asked for by name."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sparseattn.index_ops.algebra import as_blocks
from sparseattn.index_ops.pairs import without_repeats
from sparseattn.kernels.estimates import Estimate
from sparseattn.options import PLAIN
from sparseattn.xp import compute_dtype, namespace

NAME = "reference"
WORD = 0xFFFFFFFF  # the low 32 bits


def why_not(q, k, v, pattern) -> str | None:
    """None: it takes any call on any machine."""
    return None


def estimate(q, k, v, pattern, *, backward=False):
    """FLOPs of all pairs, and bytes of inputs and results."""
    pairs, v_dim = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2], v.shape[3]
    out_bytes = q.shape[0] * q.shape[1] * q.shape[2] * (v_dim * q.itemsize + compute_dtype(q.dtype).itemsize)
    moved = (q.nbytes + k.nbytes + v.nbytes + out_bytes) * (2 if backward else 1)
    flops = 2 * pairs * (3 * q.shape[3] + 2 * v_dim if backward else q.shape[3] + v_dim)
    return Estimate((), flops, moved)


def prepare(pattern, backward=True):
    """Nothing to make ahead."""


def forward(q, k, v, pattern, *, scale, out=None, options=PLAIN):
    """(out, lse) of q (batch, n_heads, n_queries, qk_dim) over k, v; memory O(n_queries * n_keys)."""
    xp, dtype = namespace(q), compute_dtype(q.dtype)
    if out is None:
        out = xp.empty(q.shape[:3] + v.shape[3:], q.dtype)
    out[...] = 0
    lse = xp.full(q.shape[:3], -xp.inf, dtype)
    if options.sinks is not None:
        lse[...] = options.sinks[:, None]
    if pattern.shape[1] == 0:
        return out, lse
    for head in _heads(q, k, v, pattern, scale, options):
        sink = lse[head.at]  # -inf without sinks
        top = xp.maximum(head.s.max(1), sink)
        top = xp.where(top == -xp.inf, 0, top)
        p = head.counts * xp.exp(head.s - top[:, None])
        total = p.sum(1) + xp.exp(sink - top)
        weighted = total > 0  # false for a row without keys, and for one whose scores are all -inf
        total = xp.where(weighted, total, 1)
        out[head.at] = (_dropped(p, head.at, options) @ head.v / total[:, None]).astype(out.dtype)
        lse[head.at] = xp.where(weighted, xp.log(total) + top, -xp.inf)
    return out, lse


def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None, options=PLAIN):
    """(dq, dk, dv, dvalues, dsinks) from the forward's out and lse: the first three like q, k, v, the others like the
    values of the bias and the sinks, None without them."""
    xp, dtype = namespace(q), compute_dtype(q.dtype)
    dq, dk, dv = xp.zeros(q.shape, dtype), xp.zeros(k.shape, dtype), xp.zeros(v.shape, dtype)
    dvalues = None if options.bias is None else xp.zeros(options.bias.values.shape, dtype)
    dsinks = None if options.sinks is None else xp.zeros(options.sinks.shape, dtype)
    for head in _heads(q, k, v, pattern, scale, options):
        at, kv_at, mask = head.at, head.kv_at, head.counts > 0
        summed = lse[at] != -xp.inf  # else no key and no sink has any weight
        lse_head = xp.where(summed, lse[at], 0)
        dout_head = _live(dout[at], mask.any(1) & summed, dtype)
        # what reaches every score of a row beside dout . v
        delta = (dout_head * _live(out[at], mask.any(1), dtype)).sum(1)
        if dlse is not None:
            delta = delta - xp.where(summed, dlse[at], 0)
        # no probability is above 1: the limit saves an overflow where huge scores round otherwise than in the forward
        p = head.counts * xp.exp(xp.minimum(head.s - lse_head[:, None], 0))
        ds = xp.where(mask, p * (_dropped(dout_head @ head.v.T, at, options) - delta[:, None]), 0)
        if options.bias is not None:
            _add_to_values(dvalues, options.bias, at, ds)
        if options.sinks is not None:
            dsinks[at[1]] -= xp.where(summed, xp.exp(options.sinks[at[1]] - lse_head) * delta, 0).sum()
        if options.softcap:
            t = xp.where(mask, head.z / dtype.type(options.softcap), 0)
            ds = ds * ((1 - t) * (1 + t))
        ds = ds * dtype.type(scale)
        dq[at] = ds @ head.k
        dk[kv_at] += ds.T @ head.q
        dv[kv_at] += _dropped(p, at, options).T @ dout_head
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dvalues, dsinks


class _Head(NamedTuple):
    """One head of q: `at` (b, head), `kv_at` (b, kv_head); the rest over (n_queries, n_keys) or a token each."""

    at: tuple
    kv_at: tuple
    counts: Any  # how often each pair is attended
    q: Any
    k: Any
    v: Any
    z: Any  # scores before the bias
    s: Any  # and with it, -inf where not attended


def _heads(q, k, v, pattern, scale, options):
    """A `_Head` for every head of q, in order."""
    (batch, n_heads), n_kv_heads, dtype = q.shape[:2], k.shape[1], compute_dtype(q.dtype)
    xp, counts = namespace(q), _counts(pattern, q, dtype)
    for at in itertools.product(range(batch), range(n_heads)):
        kv_at = at[0], at[1] * n_kv_heads // n_heads
        count = counts[at[0] * counts.shape[0] // batch, at[1] * counts.shape[1] // n_heads]
        rows, keys = (count > 0).any(1), (count > 0).any(0)
        q_head, k_head, v_head = (_live(*x, dtype) for x in ((q[at], rows), (k[kv_at], keys), (v[kv_at], keys)))
        z = q_head @ k_head.T * dtype.type(scale)
        if options.softcap:
            z = xp.tanh(z / dtype.type(options.softcap)) * dtype.type(options.softcap)
        s = z if options.bias is None else z + _bias_of(options.bias, at)
        yield _Head(at, kv_at, count, q_head, k_head, v_head, z, xp.where(count > 0, s, -xp.inf))


def _counts(pattern, q, dtype):
    """How often the parts hold each pair, (1 | batch, 1 | n_heads, n_queries, n_keys)."""
    pattern = pattern.to("cpu")
    counts = np.zeros((pattern.batch, pattern.n_heads) + pattern.shape, dtype)
    for part in pattern.parts:
        for piece in without_repeats(as_blocks(part)):
            counts += replace(pattern, parts=(piece,)).to_dense()
    return namespace(q).asarray(counts)


def _live(x, used, dtype):
    """x (n, head_dim) in `dtype`, zero where not `used` (n,): what nobody attends is never computed with."""
    return namespace(x).where(used[:, None], x.astype(dtype), 0)


def _at(values, at):
    """The entry of values (1 | batch, 1 | n_heads, ...) for (b, head)."""
    return tuple(index if size > 1 else 0 for index, size in zip(at, values.shape))


def _bias_of(term, at):
    """What a term adds to the scores of one head, broadcastable to (n_queries, n_keys)."""
    values = term.values[_at(term.values, at)]
    if term.is_dense:
        return values
    rows, place, inside = _places(term, at)
    return namespace(values).where(inside, values[rows, place], 0)


def _add_to_values(dvalues, term, at, ds):
    """Add the gradient ds (n_queries, n_keys) of one head's scores to that of the term's values."""
    target = dvalues[_at(dvalues, at)]
    if term.is_dense:
        shared = tuple(axis for axis, size in enumerate(target.shape) if size == 1)
        target += ds.sum(shared, keepdims=True)
        return
    xp = namespace(ds)
    rows, place, inside = (xp.broadcast_to(x, ds.shape).ravel() for x in _places(term, at))
    number = rows * target.shape[1] + place
    target += xp.bincount(number, xp.where(inside, ds.ravel(), 0), target.size).reshape(target.shape)


def _places(term, at):
    """(row, place, whether it is one) in a head's table for every pair, each broadcastable to (n_queries, n_keys)."""
    xp, (n_rows, size) = namespace(term.values), term.values.shape[2:]
    rows = xp.arange(n_rows)[:, None]
    if term.q_codes is None:
        return rows, term.labels[_at(term.labels, at)], xp.ones((1, 1), bool)
    shift = term.shift[at[0] if term.shift.size > 1 else 0]
    code = term.q_codes[:, None] + term.k_codes + shift
    if term.labels is not None:
        return rows, term.labels[xp.clip(code, 0, term.labels.size - 1)], xp.ones((1, 1), bool)
    return rows, xp.clip(code, 0, size - 1), (code >= 0) & (code < size)


def _dropped(x, at, options):
    """x (n_queries, n_keys) of one head with the dropped pairs 0 and the others divided by the share kept."""
    if not options.dropout:
        return x
    xp = namespace(x)
    n_queries, n_keys = x.shape
    r = xp.zeros(1, xp.uint64)
    for word in (options.seed & WORD, options.seed >> 32, *at):
        r = _mixed(r, xp.full(1, word, xp.uint64))
    r = _mixed(r, xp.arange(n_queries, dtype=xp.uint64))
    # the limit dropout * 2**32 is exact in a float, and mixed numbers are whole
    kept = _mixed(r[:, None], xp.arange(n_keys, dtype=xp.uint64)) >= math.ceil(options.dropout * 2.0**32)
    return xp.where(kept, x / x.dtype.type(1 - options.dropout), 0)


def _mixed(r, word):
    """The next number after r for a word, both below 2**32 in uint64: murmur3's finaliser of r + word * golden."""
    r = (r + word * 0x9E3779B9) & WORD
    r = ((r ^ (r >> 16)) * 0x85EBCA6B) & WORD
    r = ((r ^ (r >> 13)) * 0xC2B2AE35) & WORD
    return r ^ (r >> 16)
