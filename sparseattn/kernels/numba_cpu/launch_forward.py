"""From a call to the forward kernels: outputs, scratch memory, one launch a part."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from sparseattn.kernels.numba_cpu import layout
from sparseattn.kernels.numba_cpu.arrays import (computing, factors, in_registers, lanes_of, launch, name_of, padded,
                                                 readable, scratch_of, threads_of, tile_stride, tile_width, together)
from sparseattn.kernels.numba_cpu.row_forward import STEP, row_forward
from sparseattn.kernels.numba_cpu.steps import GROUP, WORD
from sparseattn.kernels.numba_cpu.terms import flat_bias, flat_options
from sparseattn.kernels.numba_cpu.tile_forward import tile_forward


def forward(q, k, v, pattern, scale, out, options):
    """out and lse of a checked call, part after part; later parts go on from what the earlier ones wrote."""
    name, dtype = name_of(q.dtype), computing(q.dtype)
    if out is None:
        out = np.empty(q.shape[:3] + v.shape[3:], q.dtype)
    lse = np.empty(q.shape[:3], dtype)
    parts = [layout.single_rows(part) for part in pattern.tiles()]
    threads = threads_of(q, v, pattern, False)
    bias = flat_bias(options.bias, *q.shape[:3], k.shape[2], lanes_of(dtype))
    in_lanes = flat_options(options, bias, dtype)
    q, k, v, to = readable(q), readable(k), readable(v), readable(out)
    sinks = options.sinks is not None
    if sinks or not parts or parts[0].heads is not None or parts[0].q_order is not None:  # it may not write every row
        to[...] = 0
        # a sink is a part that was attended before: one key of this score and no value
        lse[...] = options.sinks[:, None] if sinks else -np.inf
    narrow = to.itemsize == 2
    carry = _carry(to.shape, dtype, len(parts)) if narrow else to
    for i, part in enumerate(parts):
        resumes, keeps = i > 0 or sinks, narrow and i + 1 < len(parts)
        places = layout.places(part, q.shape[0], q.shape[1], k.shape[1], pattern.n_heads)
        run_part = _rows if part.block_size[0] == 1 else _tiles
        run_part(name, q, k, v, part, places, scale, in_lanes, to, carry, lse, resumes, keeps, threads)
    if to is not out and not np.may_share_memory(to, out):
        out[...] = to.view(out.dtype)
    return out, lse


def _carry(shape, dtype, n_parts):
    """out unrounded, from part to part; before the only part all rows are one of zeros."""
    if n_parts > 1:
        return np.zeros(shape, dtype)
    return as_strided(np.zeros(shape[3:], dtype), shape, (0, 0, 0, dtype.itemsize))


def _tiles(name, q, k, v, part, places, scale, in_lanes, out, carry, lse, resumes, keeps, threads):
    lanes, (block_q, block_k) = lanes_of(lse.dtype), part.block_size
    copies = q.shape[0] * places.heads.size
    flat, work = layout.flat(part), layout.work(part, copies)
    width, group = tile_width(block_q, part.n_q_slots, lanes), max(GROUP, block_k)
    qk_pad, v_pad = padded(q.shape[3], lanes), padded(v.shape[3], lanes)
    wide = max(qk_pad, v_pad)
    stride = tile_stride(width, lanes)
    size = (qk_pad + 2 * v_pad + 4) * stride + 2 * lanes**2 + max(group * (stride + wide) + width, width * wide)
    scratch = scratch_of(threads, size, lse.dtype)
    tokens = np.empty((threads, 2 * width + block_q // WORD + 1 + 4 * group + 3), np.int32)
    codes = np.empty((threads, width), np.int64)
    segments = np.empty(copies * work.n_segments * (v.shape[3] + 2) * stride, lse.dtype)
    counters = np.zeros(1 + copies * work.n_segments, np.int64)
    k, v = together(k), together(v)
    gathers = part.k_order is not None or k.itemsize == 2  # 16 bits are widened
    launch(tile_forward(name), (scratch, tokens, codes), q, k, v, flat.indptr, flat.indices, flat.mask_ids, flat.masks,
           flat.spans, flat.row_order, flat.col_order, part.n_q_slots, part.n_k_slots, places.heads, places.at,
           work.items, block_q, block_k, width, gathers, resumes, keeps, *factors(scale), in_lanes[0], out, carry, lse,
           segments, counters)


def _rows(name, q, k, v, part, places, scale, in_lanes, out, carry, lse, resumes, keeps, threads):
    lanes = lanes_of(lse.dtype)
    k, v = in_registers(k, lanes), in_registers(v, lanes)
    flat, work = layout.flat(part), layout.work(part, q.shape[0] * (places.bundles.size - 1))
    bundle = places.largest
    scratch = scratch_of(threads, bundle * (2 + k.shape[3] + v.shape[3] + STEP), lse.dtype)
    tokens, codes = np.empty((threads, 2 * STEP + 1), np.int32), np.empty((threads, STEP), np.int64)
    n_segments = q.shape[0] * places.heads.size * work.n_segments
    segments, counters = np.empty(n_segments * (v.shape[3] + 2), lse.dtype), np.zeros(1 + n_segments, np.int64)
    launch(row_forward(name), (scratch, tokens, codes), q, k, v, flat.indptr, flat.indices, flat.mask_ids, flat.masks,
           flat.row_order, flat.col_order, part.n_k_slots, places.heads, places.at, places.bundles, work.items,
           part.block_size[1], resumes, keeps, *factors(scale), in_lanes[1], out, carry, lse, segments, counters)
