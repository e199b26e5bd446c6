"""What a call costs: stored and kept pairs, FLOPs, bytes, and the time that a model fitted to measurements predicts."""

from __future__ import annotations

from typing import NamedTuple

from sparseattn.index_ops.counting import count_pairs
from sparseattn.kernels.estimates import Estimate, PartEstimate
from sparseattn.kernels.numba_cpu import layout
from sparseattn.pool import n_threads


class Rates(NamedTuple):
    """Nanoseconds on one thread in float32, each (constant, times head_dim).

    Fitted, with no negative rate, to forward and backward of 29 families at 512 to 4,096 tokens and head_dims of 32 to
    128 on a server of 2023 (AVX-512, two heads), each time divided by that of a dense call just before and after it.
    """

    pair: tuple[float, float]  # computed, whether attended or not
    query: tuple[float, float]  # a slot of a row of blocks: loaded, turned, written, in each part
    touched: tuple[float, float] = (0.0, 0.0)  # a query slot of a block: what the backward adds to dq
    gathered: tuple[float, float] = (0.0, 0.0)  # a key slot of a block that is read through an order


TILE_FORWARD = Rates((0.138, 0.0258), (18.8, 0.96), touched=(0.72, 0.009), gathered=(5.3, 0.307))
TILE_BACKWARD = Rates((0.34, 0.054), (0.0, 2.66), touched=(0.0, 0.375), gathered=(9.95, 0.26))
# Scattered pairs wait for memory. Blocks of one query have their keys side by side, but fewer of them in a run.
ROWS = Rates((8.5, 0.146), (96.0, 0.88)), Rates((6.7, 0.36), (125.0, 2.76))  # forward, backward
BLOCK_ROWS = Rates((9.3, 0.156), (96.0, 0.88)), Rates((5.0, 0.349), (125.0, 2.76))
CALL_FORWARD, CALL_BACKWARD = 44e-6, 179e-6  # seconds that any call takes
WIDTHS = {512: 1.0, 256: 1.9, 128: 3.7}  # how much longer a pair of a tile takes, by bits of a vector register


def copies(part, pattern, batch, n_heads):
    """How many (batch item, query head) of a call use each head of a part's own indptr, on average."""
    heads = n_heads if part.heads is None else len(part.heads) * n_heads // pattern.n_heads
    return batch * heads / (part.indptr.shape[0] * part.indptr.shape[1])


def part_seconds(part, times, qk_dim, v_dim, itemsize, vector_bits, backward, speed=(1.0, 1.0)):
    """Predicted seconds of a part on one thread, `times` copies of its own heads.

    speed : how much longer tiles and rows take here than the rates say.
    """
    dim, few, (block_q, block_k) = (qk_dim + v_dim) / 2, _few(part), part.block_size
    slots = (part.indptr.size - part.indptr.shape[0] * part.indptr.shape[1]) * few
    if block_q > 1:
        pair, query, touched, gathered = TILE_BACKWARD if backward else TILE_FORWARD
        total = part.n_blocks * few * (block_k * (pair[0] + pair[1] * dim) * WIDTHS[vector_bits]
                                       + touched[0] + touched[1] * dim)
        if part.k_order is not None:
            total += part.n_blocks * block_k * (gathered[0] + gathered[1] * dim)
    else:
        pair, query, *_ = (ROWS if block_k == 1 else BLOCK_ROWS)[backward]
        total = part.n_blocks * block_k * (pair[0] + pair[1] * dim)
    total += slots * (query[0] + query[1] * dim)
    return 1e-9 * total * times * speed[block_q == 1] * max(itemsize, 4) / 4


def seconds(q, v, pattern, vector_bits, backward):
    """Predicted seconds of a call's kernels on one thread, by the rates as they are."""
    total = 0.0
    for part in map(layout.single_rows, pattern.tiles()):
        times = copies(part, pattern, q.shape[0], q.shape[1])
        total += part_seconds(part, times, q.shape[3], v.shape[3], q.itemsize, vector_bits, backward)
    return total


def _few(part):
    """Query slots that a tile has: one of few queries is as narrow as they allow."""
    return min(part.block_size[0], -(-part.n_q_slots // layout.WORD) * layout.WORD)


def _pairs(part):
    """Pairs that a kernel computes for a part."""
    return part.n_blocks * _few(part) * part.block_size[1]


def estimate(q, k, v, pattern, vector_bits, backward, speed=(1.0, 1.0)) -> Estimate:
    """The cost of a call; see `Estimate`."""
    tiles = [layout.single_rows(part) for part in pattern.tiles()]
    parts = tuple(_estimate(part, q, k, v, pattern, vector_bits, backward, speed) for part in tiles)
    rows = q.shape[0] * q.shape[1] * q.shape[2]
    own = sum(x.size * x.itemsize for x in (q, k, v)) + rows * (v.shape[3] * q.itemsize + 4)
    threads = n_threads()
    total = sum(p.seconds for p in parts) / threads + (CALL_BACKWARD if backward else CALL_FORWARD) * speed[0]
    return Estimate(parts, sum(p.flops for p in parts), own * (2 if backward else 1), threads, total)


def _estimate(part, q, k, v, pattern, vector_bits, backward, speed):
    batch, n_heads = q.shape[:2]
    times = copies(part, pattern, batch, n_heads)
    stored = round(_pairs(part) * times)
    kept = count_pairs(part, pattern.batch, pattern.n_heads) * batch * n_heads // (pattern.batch * pattern.n_heads)
    dims = q.shape[3] + v.shape[3]
    # forward: two products; backward: three along the keys' head_dim and two along the values'
    flops = stored * (2 * (dims + 2 * q.shape[3] + v.shape[3]) if backward else 2 * dims)
    row = "row" if part.block_size[0] == 1 and not (backward and part.block_size[1] > 1) else "tile"
    read = part.n_blocks * times * part.block_size[1] * dims * k.itemsize
    return PartEstimate(f"{row}_{'backward' if backward else 'forward'}", tuple(part.block_size), _order_words(part),
                        round(part.n_blocks * times), stored, kept, flops, round(read),
                        part_seconds(part, times, q.shape[3], v.shape[3], q.itemsize, vector_bits, backward, speed))


def _order_words(part):
    words = [f"{name} {'by strides' if order.is_affine else 'by a list'}"
             for name, order in (("queries", part.q_order), ("keys", part.k_order)) if order is not None]
    return ", ".join(words) or "as they lie"
