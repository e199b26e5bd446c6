"""From a call to the backward kernels: accumulators, scratch memory, one walk and the sums after it a part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparseattn.kernels.numba_cpu import layout
from sparseattn.kernels.numba_cpu.arrays import (draw, factors, in_registers, lanes_of, launch, name_of, padded,
                                                 readable, scratch_of, threads_of, tile_stride, tile_width, together)
from sparseattn.kernels.numba_cpu.row_backward import row_backward
from sparseattn.kernels.numba_cpu.row_forward import STEP
from sparseattn.kernels.numba_cpu.steps import GROUP, WORD
from sparseattn.kernels.numba_cpu.sums import round_numbers, row_dots, sum_rows_of
from sparseattn.kernels.numba_cpu.terms import BiasGradient, FlatOptions, flat_bias, flat_options
from sparseattn.kernels.numba_cpu.tile_backward import tile_backward


def backward(dout, q, k, v, out, lse, pattern, scale, dlse, options):
    """dq, dk, dv, dvalues, dsinks of a checked call, part after part into accumulators of the computing dtype."""
    stored, threads = q.dtype, threads_of(q, v, pattern, True)
    parts = [layout.transposed(layout.single_rows(part)) for part in pattern.tiles()]
    dout, q, k, v = (readable(x) for x in (dout, q, k, v))
    delta = np.empty(lse.shape, lse.dtype)
    _dots(name_of(stored), readable(out), dout, delta, threads)
    if dlse is not None:
        delta -= dlse
    bias = flat_bias(options.bias, *q.shape[:3], k.shape[2], lanes_of(lse.dtype))
    shaped = _Shaped(*flat_options(options, bias, lse.dtype), bias and BiasGradient(options.bias, bias))
    sums = _Gradients(name_of(stored), [x.shape for x in (q, k, v)], lse.dtype, threads)
    for part in parts:
        places = layout.places(part, q.shape[0], q.shape[1], k.shape[1], pattern.n_heads, by_rows_only=True)
        _walk(sums, dout, q, k, v, lse, delta, part, places, scale, shaped)
    dvalues = None if bias is None else shaped.gradient.finish()
    return *sums.finish(stored), dvalues, _dsinks(options.sinks, lse, delta)


class _Shaped(NamedTuple):
    """The options of a call for tiles with queries or keys in their lanes, and the gradient of its bias."""

    queries: FlatOptions
    keys: FlatOptions
    gradient: BiasGradient | None


def _dsinks(sinks, lse, delta):
    """A sink has no value: what reaches its score is -delta. lse of -inf: nothing was attended, sink included."""
    if sinks is None:
        return None
    shares = np.exp(np.where(lse == -np.inf, -np.inf, sinks[:, None] - np.where(lse == -np.inf, 0, lse)))
    return -(shares * delta).sum(axis=(0, 2), dtype=np.float64).astype(sinks.dtype)


def _dots(name, out, dout, delta, threads):
    """delta = row sums of out * dout."""
    lanes = lanes_of(delta.dtype)
    scratch = scratch_of(threads, 3 * lanes * padded(max(out.shape[3], 1), lanes), delta.dtype)
    tokens = np.empty((threads, lanes), np.int32)
    launch(row_dots(name), (scratch, tokens), out, dout, delta, np.zeros(1, np.int64))


class _Gradients:
    """dq, dk, dv while parts are added: each array is made by the first part that touches it."""

    def __init__(self, name, shapes, dtype, threads):
        self.name, self.shapes, self.dtype, self.threads = name, shapes, dtype, threads
        self.arrays = [None, None, None]

    def open(self, i, writes_all):
        """Gradient i and whether to add to it; it starts as zeros unless its first part writes every row."""
        adds = self.arrays[i] is not None or not writes_all
        if self.arrays[i] is None:
            self.arrays[i] = (np.empty if writes_all else np.zeros)(self.shapes[i], self.dtype)
        return self.arrays[i], adds

    def add(self, i, buffer, row_stride, lists, starts, n_slots, targets, writes_all):
        """Add a buffer's rows by token. `starts` (batch, n_sources): where each source's order begins in its list."""
        to, adds = self.open(i, writes_all)
        at = np.ascontiguousarray(starts // max(n_slots, 1) * (to.shape[2] + 1))
        draw(sum_rows_of(self.name), self.threads, buffer, row_stride, lists.n_rows, lists.ptr, lists.rows, at,
             np.ascontiguousarray(targets, np.int64), to, adds)

    def finish(self, stored):
        """The three arrays, rounded to the storage dtype."""
        arrays = [self.open(i, False)[0] for i in range(3)]
        if stored == self.dtype:
            return tuple(arrays)
        rounded = tuple(np.empty(x.shape, stored) for x in arrays)
        for x, to in zip(arrays, rounded, strict=True):
            draw(round_numbers(self.name), self.threads, x.reshape(-1), readable(to).reshape(-1))
        return rounded


def _walk(sums, dout, q, k, v, lse, delta, part, places, scale, shaped):
    """Add the gradients of a transposed part."""
    lanes, (block_k, block_q) = lanes_of(lse.dtype), part.block_size
    (batch, n_heads, _, qk_dim), (n_kv_heads, v_dim) = q.shape, (k.shape[1], v.shape[3])
    n_bundles, n_places = places.bundles.size - 1, places.heads.size
    owners = places.heads[places.bundles[:-1]].astype(np.int64) * n_kv_heads // n_heads
    copies, ranks = _ownership(shaped.gradient, part, batch * n_bundles, q.size + k.size, batch * n_places)
    chunks = layout.chunks(part, copies, bool((np.diff(owners) > 0).all()))
    qk_pad = padded(qk_dim, lanes)
    dq = np.empty(batch * n_places * chunks.dq.n_rows * qk_pad, lse.dtype)
    folds = chunks.dk is not None
    if folds:
        dk, dv = (np.empty((batch, n_bundles, chunks.dk.n_rows, d), lse.dtype) for d in (qk_dim, v_dim))
        adds = False
    else:
        writes_all = part.heads is None and part.q_order is None and n_bundles == n_kv_heads
        (dk, adds), (dv, _) = sums.open(1, writes_all), sums.open(2, writes_all)
    run_part = _rows if block_k == block_q == 1 else _tiles
    dvalues = np.empty(0, lse.dtype)
    slices = (0, 0, ranks)
    if shaped.gradient is not None:
        dvalues = shaped.gradient.buffer(batch, n_places, chunks.ptr.size - 1)
        slices = shaped.gradient.slices.size, shaped.gradient.slices.margin, ranks
    run_part(sums, dout, q, k, v, part, places, chunks, folds, adds, scale, shaped, slices, lse, delta, dq, dk, dv,
             dvalues)
    if shaped.gradient is not None:
        shaped.gradient.add(dvalues, places.heads, batch)
    heads, each = places.heads, np.arange(n_places)
    sums.add(0, dq, qk_pad, chunks.dq, places.at[:, :, 2], part.n_k_slots, np.stack([heads, each, each + 1], axis=1),
             part.heads is None)
    if folds:
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        targets = np.stack([owners[first], first, np.append(first[1:], n_bundles)], axis=1)
        for i, buffer in ((1, dk), (2, dv)):
            sums.add(i, buffer.reshape(-1), buffer.shape[3], chunks.dk, places.at[:, places.bundles[:-1], 1],
                     part.n_q_slots, targets, first.size == n_kv_heads)


def _ownership(gradient, part, copies, numbers, n_heads):
    """(copies, ranks): among how many copies of the part owners are shared out, and how many of them one owner walks.

    Where heads add to the same values, one owner walks all of them. Where owners have slices of their own, there are
    only so many owners that these take a few times the memory of q and k, `numbers`.
    """
    if gradient is None:
        return copies, 1
    slices = gradient.slices
    if slices.shared:
        same_keys = part.q_order is None or part.q_order.lead == (1, 1)
        return (1 if same_keys else layout.CHUNKS), max(copies, 1)
    most = max(4 * numbers // max(n_heads * slices.size, 1), 1)
    return (max(copies, layout.CHUNKS // most) if slices.size else copies), 1


def _tiles(sums, dout, q, k, v, part, places, chunks, folds, adds, scale, shaped, slices, lse, delta, dq, dk, dv,
           dvalues):
    lanes, (block_k, block_q), flat = lanes_of(lse.dtype), part.block_size, layout.flat(part)
    width, group = tile_width(block_k, part.n_q_slots, lanes), max(GROUP, block_q)
    qk_pad, v_pad = padded(q.shape[3], lanes), padded(v.shape[3], lanes)
    stride = tile_stride(width, lanes)
    step = group * ((3 if shaped.keys.softcap else 2) * stride + qk_pad + v_pad + 2)
    size = (3 * qk_pad + 2 * v_pad) * stride + 2 * lanes**2 + max(step, width * max(qk_pad, v_pad))
    scratch = scratch_of(sums.threads, size, lse.dtype)
    tokens = np.empty((sums.threads, 3 * width + 2 * (block_k // WORD + 1) + 4 * group + 3), np.int32)
    codes = np.empty((sums.threads, width), np.int64)
    q, dout = together(q), together(dout)
    gathers = part.k_order is not None or q.itemsize == 2  # 16 bits are widened
    launch(tile_backward(sums.name), (scratch, tokens, codes), dout, q, k, v, flat.indptr, flat.indices, flat.mask_ids,
           flat.masks, flat.spans, flat.row_order, flat.col_order, part.n_q_slots, part.n_k_slots, places.heads,
           places.at, places.bundles, chunks.columns, chunks.ptr, chunks.dq_rows, chunks.touched, block_q, block_k,
           width, gathers, folds, adds, *factors(scale), shaped.keys, *slices, lse, delta, dq, dk, dv, dvalues,
           np.zeros(1, np.int64))


def _rows(sums, dout, q, k, v, part, places, chunks, folds, adds, scale, shaped, slices, lse, delta, dq, dk, dv,
          dvalues):
    lanes, flat = lanes_of(lse.dtype), layout.flat(part)
    dout, q = in_registers(dout, lanes), in_registers(q, lanes)
    scratch = scratch_of(sums.threads, 2 * (q.shape[3] + dout.shape[3]) + 5 * STEP, lse.dtype)
    tokens, codes = np.empty((sums.threads, 3 * STEP + 2), np.int32), np.empty((sums.threads, STEP), np.int64)
    launch(row_backward(sums.name), (scratch, tokens, codes), dout, q, k, v, flat.indptr, flat.indices, flat.row_order,
           flat.col_order, part.n_k_slots, places.heads, places.at, places.bundles, chunks.columns, chunks.ptr,
           chunks.dq_rows, chunks.touched, folds, adds, *factors(scale), shaped.queries, *slices, lse, delta, dq, dk,
           dv, dvalues, np.zeros(1, np.int64))
