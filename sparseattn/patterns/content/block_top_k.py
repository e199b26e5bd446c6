"""Key blocks with the best keys by an indexer, chosen by each query."""

import numpy as np

from sparseattn.patterns.arguments import at_least_0, positive
from sparseattn.patterns.content.chosen import chosen_blocks
from sparseattn.patterns.content.inputs import causal_offset, heads, keys_for, scale_of, wide
from sparseattn.selection.products import packed, products
from sparseattn.selection.topk import top_by_chunks
from sparseattn.xp import device_of, namespace, on_its_device


@on_its_device
def block_top_k(index_q, index_k, *, block_size, n_blocks, local_blocks=1, scale=1.0, causal=True):
    """Each query attends the key blocks around it and those with the best key by an indexer, `n_blocks` in all.

    Parameters
    ----------
    index_q : array, (batch, n_kv_heads, n_queries, index_dim), float16, bfloat16, float32 or float64
        Queries of the indexer, a head for each k/v head; without batch, or without batch and heads, as well.
    index_k : array, (batch, 1 or n_kv_heads, n_keys, index_dim)
        Its keys.
    block_size : int
        Tokens of a block; the last one may be short. Part of the meaning.
    n_blocks : int
        Blocks of a query, the local ones included; where there are fewer, all of them.
    local_blocks : int
        The own block and those before it that are always attended.
    scale : float
        Factor of the scores; its sign matters, no more.
    causal : bool
        Only keys up to the query; the last query sits at the last key.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), for the batch and heads of index_q.

    Raises
    ------
    TypeError, ValueError
        An array or a number does not fit; nothing was computed.

    Notes
    -----
    Query i attends key j when j <= i (with `causal`) and the block of j is one of the `local_blocks` up to that of i,
    or of the ``n_blocks - local_blocks`` others with the largest ``max of scale * index_q[i] . index_k[j]`` over their
    allowed keys; of equal blocks the lower one. A block with a NaN among its scores is never chosen. The local blocks
    are ranges, and each choice is a part whose queries are sorted by the block they chose: `density_in_tiles` is about
    0.75 for blocks of 64. O(n_heads * n_queries * n_keys * index_dim) time, some rows at a time; O(n_queries *
    n_blocks) memory. Choosing has no gradient.

    CuPy's arrays are chosen from on their GPU, which is waited for, and the pattern is made there.

    References
    ----------
    .. [1] MiniMaxAI, MiniMax-M3, as released in transformers 5.23, models/minimax_m3_vl.
    """
    block, n_blocks = positive(block_size, "block_size"), positive(n_blocks, "n_blocks")
    local = at_least_0(local_blocks, "local_blocks")
    if local > n_blocks:
        raise ValueError(f"local_blocks is {local} and n_blocks {n_blocks}; the local blocks count among n_blocks")
    q, k = heads(index_q=index_q, index_k=index_k)
    if k.shape[1] not in (1, q.shape[1]):
        raise ValueError(f"index_k has {k.shape[1]} heads; expected 1 or the {q.shape[1]} of index_q")
    head_of, scale = keys_for(q, k), scale_of(scale, q.shape[3])
    n_keys = k.shape[2]
    position = np.arange(q.shape[2]) + causal_offset(q, k)
    own, last = position // block, position + 1 if causal else np.full(q.shape[2], n_keys)
    panels, xp = packed(wide(k)), namespace(q)
    own_there, last_there = xp.asarray(own)[:, None], xp.asarray(last)[:, None]

    def best_keys(at, rows, n):
        n_seen = min(n * block, n_keys)
        scores = products(wide(q[at][rows]) * scale, panels[at[0], head_of[at[1]]], n_seen)[:, :n_seen]
        if causal and not local:
            scores[xp.arange(scores.shape[1]) >= last_there[rows]] = -np.inf
        best = _block_max(scores, block)
        if not causal:
            distance = own_there[rows] - xp.arange(n)
            best[(distance >= 0) & (distance < local)] = -np.inf
        return best

    chosen = top_by_chunks(best_keys, q, -(-n_keys // block), n_blocks - local, own - local + 1 if causal else None,
                           n_keys)
    near = [((own - local + 1) * block, np.minimum((own + 1) * block, last))] if local else []
    return chosen_blocks(chosen, block, last, n_keys, near).to(device_of(q))


def _block_max(scores, block):
    """The largest of each block of columns, the last of which may be short; NaN where there is one."""
    n_rows, n_cols = scores.shape
    whole = n_cols // block * block
    best = [scores[:, :whole].reshape(n_rows, -1, block).max(axis=2)] if whole else []
    if whole < n_cols:
        best.append(scores[:, whole:].max(axis=1, keepdims=True))
    return namespace(scores).concatenate(best, axis=1)
