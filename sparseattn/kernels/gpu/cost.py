"""What a call costs on a GPU: stored and kept pairs, FLOPs and bytes of each launch."""

from __future__ import annotations

from sparseattn.index_ops.counting import count_pairs
from sparseattn.kernels.estimates import Estimate, PartEstimate
from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.target import bucket_of


def estimate(target, q, k, v, pattern, backward) -> Estimate:
    """The cost of a call; see `Estimate`."""
    whole, bits, bucket = pattern.to("cpu"), 8 * q.itemsize, bucket_of(q.shape[3], v.shape[3])
    if backward:
        walks = [(kv, s) for kv in (0, 1) for s in layout.backward_structures(whole, target, bits, bucket, kv)]
    else:
        walks = [(0, s) for s in layout.forward_structures(whole, target, bits, bucket)]
    parts = tuple(_estimate(s, kv, q, k, v, whole, backward) for kv, s in walks)
    rows = q.shape[0] * q.shape[1] * q.shape[2]
    own = sum(x.size * x.itemsize for x in (q, k, v)) + rows * (v.shape[3] * q.itemsize + 4)
    return Estimate(parts, sum(p.flops for p in parts), own * (2 if backward else 1))


def _estimate(structure, kv, q, k, v, pattern, backward):
    part, (batch, n_heads) = structure.part, q.shape[:2]
    heads = n_heads if part.heads is None else len(part.heads) * n_heads // pattern.n_heads
    times = batch * heads / (part.indptr.shape[0] * part.indptr.shape[1])
    stored = round(part.n_blocks * times) * part.block_size[0] * part.block_size[1]
    kept = count_pairs(part, pattern.batch, pattern.n_heads) * batch * n_heads // (pattern.batch * pattern.n_heads)
    qk_dim, v_dim = q.shape[3], v.shape[3]
    # two products forward; three in the walk for dq, four in that for dk and dv, both of which need the scores anew
    products = (2 * qk_dim + 2 * v_dim if kv else 2 * qk_dim + v_dim) if backward else qk_dim + v_dim
    kernel = f"{'row' if structure.is_row else 'tile'}_{'backward' if backward else 'forward'}"
    return PartEstimate(kernel + (f", {'dk dv' if kv else 'dq'}" if backward else ""), tuple(part.block_size),
                        _order_words(part), round(part.n_blocks * times), stored, kept, 2 * stored * products,
                        round(part.n_blocks * times) * part.block_size[1] * (qk_dim + v_dim) * k.itemsize)


def _order_words(part):
    words = [f"{name} by a list" for name, order in (("rows", part.q_order), ("columns", part.k_order)) if order]
    return ", ".join(words) or "as they lie"
