"""What a call costs: stored and kept pairs, FLOPs, bytes, and the time that a model fitted to measurements predicts."""

from __future__ import annotations

from sparseattn.index_ops.counting import count_pairs
from sparseattn.kernels.estimates import Estimate, PartEstimate
from sparseattn.kernels.numba_cpu import layout
from sparseattn.pool import n_threads

# Measured nanoseconds a stored pair in float32 on one thread, (constant, times head_dim), by bits of a vector register:
# 512 on a Zen 4 server, 256 on a Zen 3 one; 128 is twice the latter.
TILE_FORWARD = {512: (0.24, 0.0363), 256: (0.1, 0.05), 128: (0.2, 0.1)}
TILE_BACKWARD = {512: (0.06, 0.092), 256: (0.1, 0.125), 128: (0.2, 0.25)}
# The same for scattered pairs, which wait for memory: the width of registers does not matter.
ROW_FORWARD, ROW_BACKWARD = (20.0, 0.25), (20.0, 0.85)
# Blocks of one query: its keys lie side by side, and the hardware fetches them ahead.
BLOCK_ROW_FORWARD = (4.5, 0.12)


def copies(part, pattern, batch, n_heads):
    """How many (batch item, query head) of a call use each head of a part's own indptr, on average."""
    heads = n_heads if part.heads is None else len(part.heads) * n_heads // pattern.n_heads
    return batch * heads / (part.indptr.shape[0] * part.indptr.shape[1])


def pair_seconds(part, qk_dim, v_dim, itemsize, vector_bits, backward):
    """Predicted seconds of a stored pair of a part on one thread."""
    if part.block_size[0] == 1:
        forward = ROW_FORWARD if part.block_size[1] == 1 else BLOCK_ROW_FORWARD
        constant, slope = ROW_BACKWARD if backward else forward
    else:
        constant, slope = (TILE_BACKWARD if backward else TILE_FORWARD)[vector_bits]
    return 1e-9 * (constant + slope * (qk_dim + v_dim) / 2) * max(itemsize, 4) / 4


def seconds(q, v, pattern, vector_bits, backward):
    """Predicted seconds of a call on one thread."""
    total = 0.0
    for part in map(layout.single_rows, pattern.tiles()):
        pairs = _pairs(part) * copies(part, pattern, q.shape[0], q.shape[1])
        total += pairs * pair_seconds(part, q.shape[3], v.shape[3], q.itemsize, vector_bits, backward)
    return total


def _pairs(part):
    """Pairs that a kernel computes for a part: a tile of few queries is as narrow as they allow."""
    few = -(-part.n_q_slots // layout.WORD) * layout.WORD
    return part.n_blocks * min(part.block_size[0], few) * part.block_size[1]


def estimate(q, k, v, pattern, vector_bits, backward) -> Estimate:
    """The cost of a call; see `Estimate`."""
    tiles = [layout.single_rows(part) for part in pattern.tiles()]
    parts = tuple(_estimate(part, q, k, v, pattern, vector_bits, backward) for part in tiles)
    rows = q.shape[0] * q.shape[1] * q.shape[2]
    own = sum(x.size * x.itemsize for x in (q, k, v)) + rows * (v.shape[3] * q.itemsize + 4)
    total = sum(p.seconds for p in parts)
    threads = n_threads()
    return Estimate(parts, sum(p.flops for p in parts), own * (2 if backward else 1), threads, total / threads)


def _estimate(part, q, k, v, pattern, vector_bits, backward):
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
                        stored * pair_seconds(part, q.shape[3], v.shape[3], q.itemsize, vector_bits, backward))


def _order_words(part):
    words = [f"{name} {'by strides' if order.is_affine else 'by a list'}"
             for name, order in (("queries", part.q_order), ("keys", part.k_order)) if order is not None]
    return ", ".join(words) or "as they lie"
