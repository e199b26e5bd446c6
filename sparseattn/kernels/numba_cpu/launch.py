"""From a call to kernels: outputs, scratch memory, one launch a part. What imports Numba stands behind this module."""

from __future__ import annotations

import numpy as np

from sparseattn.kernels.numba_cpu import cost, layout
from sparseattn.kernels.numba_cpu.simd import VECTOR_BITS
from sparseattn.kernels.numba_cpu.steps import GROUP, WORD
from sparseattn.kernels.numba_cpu.sums import round_numbers, row_dots, sum_rows_of
from sparseattn.kernels.numba_cpu.threads import n_threads, run
from sparseattn.kernels.numba_cpu.tile_backward import tile_backward
from sparseattn.kernels.numba_cpu.tile_forward import tile_forward

HAND_OVER = 100e-6  # predicted seconds below which a call does not pay for waking other threads
SPREAD = 2048  # bytes; rows that lie a multiple of it apart share few cache sets: copying them to scratch is faster


def computing(dtype):
    """The dtype in which numbers of `dtype` are computed."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def lanes_of(dtype):
    """Numbers of a computing dtype in a register."""
    return VECTOR_BITS // 8 // dtype.itemsize


def readable(x):
    """The array as kernels take it: rows of numbers with unit stride (else one copy), 16 bits as integers."""
    size = x.itemsize
    if (x.strides[3] != size and x.shape[3] > 1) or any(s % size for s in x.strides) or not x.flags.aligned:
        x = np.ascontiguousarray(x)
    if size == 2:
        x = x.view(np.uint16 if x.dtype == np.float16 else np.int16)
    return x


def _in_scratch(*arrays):
    """Whether rows must be copied to scratch: 16 bits are widened, and badly spread rows are read faster so."""
    return any(x.itemsize == 2 or (x.strides[2] % SPREAD == 0 and x.shape[2] > 1) for x in arrays)


def _padded(n, lanes):
    return -(-n // lanes) * lanes


def _width(block, n_slots, lanes):
    """Lanes of a tile: a row of blocks, or all slots if they are fewer."""
    return _padded(max(min(block, n_slots), 1), lanes)


def _threads(q, v, pattern, backward):
    """Threads of a call: one where its predicted time would not pay for waking others."""
    n = n_threads()
    if n == 1 or cost.seconds(q, v, pattern, backward, lanes_of(computing(q.dtype))) < HAND_OVER:
        return 1
    return n


def forward(q, k, v, pattern, scale, out):
    """out and lse of a checked call, part after part; later parts go on from what the earlier ones wrote."""
    name, dtype = q.dtype.name, computing(q.dtype)
    batch, n_heads, n_queries, _ = q.shape
    if out is None:
        out = np.empty((batch, n_heads, n_queries, v.shape[3]), q.dtype)
    lse = np.empty((batch, n_heads, n_queries), dtype)
    parts = [layout.single_rows(part) for part in pattern.tiles()]
    threads = _threads(q, v, pattern, False)
    q, k, v, to = readable(q), readable(k), readable(v), readable(out)
    if not parts or parts[0].heads is not None or parts[0].q_order is not None:  # the first part may not write every row
        to[...] = 0
        lse[...] = -np.inf
    narrow = to.itemsize == 2
    carry = np.zeros(to.shape if len(parts) > 1 else (0, 0, 0, 0), dtype) if narrow else to
    for i, part in enumerate(parts):
        resumes, keeps = i > 0, narrow and i + 1 < len(parts)
        _tiles_forward(name, q, k, v, part, pattern.n_heads, scale, to, carry, lse, resumes, keeps, threads)
    if not np.may_share_memory(to, out):
        out[...] = to.view(out.dtype)
    return out, lse


def _tiles_forward(name, q, k, v, part, pattern_heads, scale, out, carry, lse, resumes, keeps, threads):
    lanes, (block_q, block_k) = lanes_of(lse.dtype), part.block_size
    flat = layout.flat(part)
    places = layout.places(part, q.shape[0], q.shape[1], k.shape[1], pattern_heads)
    work = layout.work(part, places.at.shape[0] * places.heads.size)
    width = _width(block_q, part.n_q_slots, lanes)
    qk_pad, v_pad = _padded(q.shape[3], lanes), _padded(v.shape[3], lanes)
    wide, group = max(qk_pad, v_pad), max(GROUP, block_k)
    size = (qk_pad + 2 * v_pad + 4) * width + max(group * (width + wide) + width, width * wide)
    scratch = np.empty((threads, size), lse.dtype)
    tokens = np.empty((threads, width + block_q // WORD + 1 + 4 * group + 3), np.int32)
    copies = places.at.shape[0] * places.heads.size
    segments = np.empty(copies * work.n_segments * (v.shape[3] + 2) * width, lse.dtype)
    counters = np.zeros(1 + copies * work.n_segments, np.int64)
    gathers = part.k_order is not None or _in_scratch(k, v)
    entry = tile_forward(name)
    run(lambda i: entry(
        q, k, v, flat.indptr, flat.indices, flat.mask_ids, flat.masks, flat.spans, flat.row_order, flat.col_order,
        part.n_q_slots, part.n_k_slots, places.heads, places.at.reshape(-1), work.items, block_q, block_k, width, gathers,
        resumes, keeps, scale, out, carry, lse, segments, counters, scratch[i], tokens[i]), threads)


def backward(dout, q, k, v, out, lse, pattern, scale, dlse):
    """dq, dk, dv of a checked call, part after part into accumulators of the computing dtype."""
    name, dtype, stored = q.dtype.name, lse.dtype, q.dtype
    parts = [layout.transposed(layout.single_rows(part)) for part in pattern.tiles()]
    threads = _threads(q, v, pattern, True)
    dout, q, k, v, out = (readable(x) for x in (dout, q, k, v, out))
    delta = np.empty(lse.shape, dtype)
    _draw(row_dots(name), threads, out, dout, delta)
    if dlse is not None:
        delta -= dlse
    grads = [None, None, None]
    for part in parts:
        _part_backward(name, dout, q, k, v, lse, delta, part, pattern.n_heads, scale, grads, threads)
    grads = [np.zeros(x.shape, dtype) if grad is None else grad for grad, x in zip(grads, (q, k, v), strict=True)]
    return tuple(grad if stored.itemsize > 2 else _rounded(name, grad, stored, threads) for grad in grads)


def _rounded(name, grad, stored, threads):
    to = np.empty(grad.shape, stored)
    _draw(round_numbers(name), threads, grad.reshape(-1), readable(to).reshape(-1))
    return to


def _draw(entry, threads, *arguments):
    """Run an entry whose last argument is the counter it draws work items from."""
    counters = np.zeros(1, np.int64)
    run(lambda i: entry(*arguments, counters), threads)


def _part_backward(name, dout, q, k, v, lse, delta, part, pattern_heads, scale, grads, threads):
    """Add a transposed part's gradients to `grads` (dq, dk, dv; None: still nothing)."""
    lanes, (block_k, block_q) = lanes_of(lse.dtype), part.block_size
    (batch, n_heads, n_queries, qk_dim), (n_kv_heads, v_dim) = q.shape, (k.shape[1], v.shape[3])
    flat = layout.flat(part)
    places = layout.places(part, batch, n_heads, n_kv_heads, pattern_heads, by_rows_only=True)
    n_bundles, n_places = places.bundles.size - 1, places.heads.size
    owners = (places.heads[places.bundles[:-1]] * n_kv_heads // n_heads).astype(np.int64)
    chunks = layout.chunks(part, batch * n_bundles, bool((np.diff(owners) > 0).all()))
    width, group = _width(block_k, part.n_q_slots, lanes), max(GROUP, block_q)
    qk_pad, v_pad = _padded(qk_dim, lanes), _padded(v_dim, lanes)
    size = (3 * qk_pad + 2 * v_pad) * width + max(group * (2 * width + qk_pad + v_pad + 2), width * max(qk_pad, v_pad))
    scratch = np.empty((threads, size), lse.dtype)
    tokens = np.empty((threads, 2 * width + 2 * (block_k // WORD + 1) + 4 * group + 3), np.int32)
    buffer = np.empty(batch * n_places * chunks.dq.n_rows * qk_pad, lse.dtype)
    folds = chunks.dk is not None
    writes_all = part.heads is None and part.q_order is None
    if folds:
        dk, dv = (np.empty((batch, n_bundles, chunks.dk.n_rows, d), lse.dtype) for d in (qk_dim, v_dim))
        adds = False
    else:
        adds = grads[1] is not None or not writes_all
        dk, dv = (_accumulator(grads, i, x.shape, lse.dtype, writes_all) for i, x in ((1, k), (2, v)))
    counters, entry = np.zeros(1, np.int64), tile_backward(name)
    run(lambda i: entry(
        dout, q, k, v, flat.indptr, flat.indices, flat.mask_ids, flat.masks, flat.spans, flat.row_order, flat.col_order,
        part.n_q_slots, part.n_k_slots, places.heads, places.at.reshape(-1), places.bundles, chunks.columns, chunks.ptr,
        chunks.dq_rows, chunks.touched, block_q, block_k, width, part.k_order is not None or _in_scratch(q, dout), folds,
        adds, scale, lse, delta, buffer, dk, dv, counters, scratch[i], tokens[i]), threads)
    heads = places.heads.astype(np.int64)
    each = np.arange(n_places)
    _sum(name, buffer, qk_pad, chunks.dq, places.at[:, :, 2], part.n_k_slots, n_queries,
         np.stack([heads, each, each + 1], axis=1), grads, 0, q.shape, part.heads is None, threads)
    if folds:
        lists = places.at[:, places.bundles[:-1], 1]
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        targets = np.stack([owners[first], first, np.append(first[1:], n_bundles)], axis=1)
        for i, (x, d) in enumerate(((dk, qk_dim), (dv, v_dim)), 1):
            _sum(name, x.reshape(-1), d, chunks.dk, lists, part.n_q_slots, k.shape[2], targets, grads, i,
                 (k, v)[i - 1].shape, targets.shape[0] == n_kv_heads, threads)


def _accumulator(grads, i, shape, dtype, writes_all):
    """The gradient to add to; the first part starts it, with zeros unless it writes every row."""
    if grads[i] is None:
        grads[i] = np.empty(shape, dtype) if writes_all else np.zeros(shape, dtype)
    return grads[i]


def _sum(name, buffer, row_stride, sums, starts, n_slots, n_tokens, targets, grads, i, shape, writes_all, threads):
    """Add a buffer's rows to gradient i by token. `starts` (batch, n_sources): where a source's order begins in its list."""
    adds = grads[i] is not None or not writes_all
    to = _accumulator(grads, i, shape, buffer.dtype, writes_all)
    at = starts // max(n_slots, 1) * (n_tokens + 1)
    _draw(sum_rows_of(name), threads, buffer, row_stride, sums.n_rows, sums.ptr, sums.rows, at.reshape(-1),
          np.ascontiguousarray(targets).reshape(-1), to, adds)
