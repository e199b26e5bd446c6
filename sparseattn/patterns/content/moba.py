"""Mixture of block attention: the own chunk, and the past chunks whose mean key fits best."""

import numpy as np

from sparseattn.patterns.arguments import positive, tiles
from sparseattn.patterns.content.chosen import chosen_blocks
from sparseattn.patterns.content.inputs import causal_offset, heads, keys_for, wide
from sparseattn.selection.products import packed, products
from sparseattn.selection.topk import top_by_chunks
from sparseattn.xp import device_of, on_its_device


@on_its_device
def moba(q, k, *, chunk_size, top_k, block_size=None):
    """Each query attends its own chunk up to itself, and `top_k` - 1 whole past chunks that its gate prefers.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries; without batch, or without batch and heads, as well. The last query sits at the last key.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys as they are attended. Each query head chooses for itself, also where heads are grouped.
    chunk_size : int
        Tokens of a chunk; the last one may be short.
    top_k : int
        Chunks of a query, its own one included; where there are fewer, all of them.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), for the batch and query heads of q.

    Raises
    ------
    TypeError, ValueError
        An array or a number does not fit; nothing was computed.

    Notes
    -----
    Query i attends key j when j <= i and the chunk of j is that of i, or one of the `top_k` - 1 chunks before it with
    the largest ``q[i] . mean of the keys of the chunk``; of equal chunks the lower one. With `top_k` 1, that is the own
    chunk alone, where the released efficient code falls back to full causal attention. A part a choice, its queries
    sorted by the chunk they chose, so that tiles are dense: `density_in_tiles` is 0.9 for 16,384 tokens in chunks of
    512. O(n_queries * n_keys / chunk_size * head_dim) time, O(n_queries * top_k) memory. Choosing has no gradient.

    CuPy's arrays are chosen from on their GPU, and the structure is made there. This waits for it: sizes follow from
    what the arrays hold.

    References
    ----------
    .. [1] Lu et al., MoBA: Mixture of Block Attention for Long-Context LLMs, arXiv:2502.13189, section 2.
    """
    chunk, top_k, size = positive(chunk_size, "chunk_size"), positive(top_k, "top_k"), tiles(block_size)
    q, k = heads(q=q, k=k)
    head_of = keys_for(q, k)
    position = np.arange(q.shape[2]) + causal_offset(q, k)
    own, n_whole = position // chunk, k.shape[2] // chunk
    with np.errstate(over="ignore", invalid="ignore"):
        whole = wide(k)[:, :, : n_whole * chunk].reshape(*k.shape[:2], n_whole, chunk, k.shape[3])
        means = packed(whole.mean(axis=3))

    def gate(at, rows, n):
        return products(wide(q[at][rows]), means[at[0], head_of[at[1]]], n)

    chosen = top_by_chunks(gate, q, n_whole, top_k - 1, own)
    near = [(own * chunk, position + 1)]
    return chosen_blocks(chosen, chunk, position + 1, k.shape[2], near, size).to(device_of(q))
