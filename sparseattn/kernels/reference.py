"""Dense softmax attention in the caller's arrays, a head at a time: slow, plain, run only when asked for by name."""

from __future__ import annotations

from typing import NamedTuple

from sparseattn.xp import compute_dtype, namespace

NAME = "reference"


def why_not(q, k, v, pattern) -> str | None:
    """None: it takes any call on any machine."""
    return None


class Estimate(NamedTuple):
    """The cost of a dense call: it has no parts, and no model of time."""

    parts: tuple
    flops: int
    bytes: int
    n_threads: int | None
    seconds: float | None


def estimate(q, k, v, pattern, *, backward=False):
    """FLOPs of all pairs, and bytes of inputs and results."""
    pairs, v_dim = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2], v.shape[3]
    out_bytes = q.shape[0] * q.shape[1] * q.shape[2] * (v_dim * q.itemsize + compute_dtype(q.dtype).itemsize)
    moved = (q.nbytes + k.nbytes + v.nbytes + out_bytes) * (2 if backward else 1)
    flops = 2 * pairs * (3 * q.shape[3] + 2 * v_dim if backward else q.shape[3] + v_dim)
    return Estimate((), flops, moved, None, None)


def prepare(pattern, backward=True):
    """Nothing to make ahead."""


def forward(q, k, v, pattern, *, scale, out=None):
    """(out, lse) of q (batch, n_heads, n_queries, qk_dim) over k, v; memory O(n_queries * n_keys)."""
    xp, dtype = namespace(q), compute_dtype(q.dtype)
    if out is None:
        out = xp.empty(q.shape[:3] + v.shape[3:], q.dtype)
    out[...] = 0
    lse = xp.full(q.shape[:3], -xp.inf, dtype)
    for at, kv_at, mask in _heads(q, k, pattern):
        rows, keys = mask.any(1), mask.any(0)
        s = xp.where(mask, _live(q[at], rows, dtype) @ _live(k[kv_at], keys, dtype).T * dtype.type(scale), -xp.inf)
        top = xp.where(rows, s.max(1), 0)
        p = xp.exp(s - top[:, None])
        total = xp.where(rows, p.sum(1), 1)
        out[at] = (p @ _live(v[kv_at], keys, dtype) / total[:, None]).astype(out.dtype)
        lse[at] = xp.where(rows, xp.log(total) + top, -xp.inf)
    return out, lse


def backward(dout, q, k, v, out, lse, pattern, *, scale, dlse=None):
    """(dq, dk, dv) in the shapes and dtypes of q, k, v, from the forward's out and lse."""
    xp, dtype = namespace(q), compute_dtype(q.dtype)
    dq, dk, dv = xp.zeros(q.shape, dtype), xp.zeros(k.shape, dtype), xp.zeros(v.shape, dtype)
    for at, kv_at, mask in _heads(q, k, pattern):
        rows, keys = mask.any(1), mask.any(0)
        q_head, k_head, v_head = _live(q[at], rows, dtype), _live(k[kv_at], keys, dtype), _live(v[kv_at], keys, dtype)
        dout_head = _live(dout[at], rows, dtype)
        # what reaches every score of a row beside dout . v
        shift = -(dout_head * _live(out[at], rows, dtype)).sum(1)
        if dlse is not None:
            shift = shift + xp.where(rows, dlse[at], 0)
        s = q_head @ k_head.T * dtype.type(scale)
        # no probability is above 1: the limit saves an overflow where huge scores round otherwise than in the forward
        p = xp.exp(xp.where(mask, xp.minimum(s - xp.where(rows, lse[at], 0)[:, None], 0), -xp.inf))
        ds = xp.where(mask, p * (dout_head @ v_head.T + shift[:, None]), 0) * dtype.type(scale)
        dq[at] = ds @ k_head
        dk[kv_at] += ds.T @ q_head
        dv[kv_at] += p.T @ dout_head
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _heads(q, k, pattern):
    """((b, head), (b, kv_head), mask (n_queries, n_keys)) of every head of q, in order; none if there are no pairs."""
    (batch, n_heads), n_kv_heads = q.shape[:2], k.shape[1]
    if 0 in pattern.shape:
        return
    dense = namespace(q).asarray(pattern.to("cpu").to_dense())
    for b in range(batch):
        for head in range(n_heads):
            mask = dense[b * dense.shape[0] // batch, head * dense.shape[1] // n_heads]
            yield (b, head), (b, head * n_kv_heads // n_heads), mask


def _live(x, used, dtype):
    """x (n, head_dim) in `dtype`, zero where not `used` (n,): what nobody attends is never computed with."""
    return namespace(x).where(used[:, None], x.astype(dtype), 0)
