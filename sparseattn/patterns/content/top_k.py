"""The best keys of each query, by the scores of attention or by those of an indexer."""

import numpy as np

from sparseattn.patterns.arguments import positive, tiles
from sparseattn.patterns.content.chosen import chosen_keys
from sparseattn.patterns.content.inputs import causal_offset, check_place, heads, keys_for, scale_of, wide
from sparseattn.selection.products import packed, products
from sparseattn.selection.topk import top_by_chunks
from sparseattn.xp import device_of, namespace, on_its_device


@on_its_device
def top_k(q, k, *, n_selected, causal=False, scale=None, block_size=None):
    """Each query attends the keys of its `n_selected` largest scores.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries; without batch, or without batch and heads, as well.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys. Each query head chooses for itself, also where heads are grouped.
    n_selected : int
        Keys of a query; where fewer are allowed, all of them.
    causal : bool
        Only keys up to the query; the last query sits at the last key.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    block_size : int or tuple of int, optional
        Tiles for the kernels; None: rows of single keys. Speed only.

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
    Query i attends key j when fewer than `n_selected` allowed keys have a larger score ``scale * q[i] . k[j]``, or an
    equal one and a lower number. A score that is NaN or -inf is never chosen. No pattern with as many keys a query
    captures more mass: a bound to measure others by, not a saving, since all scores are computed. O(n_queries * n_keys
    * head_dim) time, some rows at a time, and a pass over the scores; O(n_queries * n_selected) memory and a copy of
    the keys. Scores are in float32 (float64 for float64) and depend on the two vectors alone, to the bit: equal keys
    are equal. Choosing has no gradient.

    CuPy's arrays are chosen from on their GPU, which is waited for, and the pattern is made there. There scores are a
    library's products.

    References
    ----------
    .. [1] Zhao et al., Explicit Sparse Transformer, arXiv:1912.11637.
    """
    n_selected, size = positive(n_selected, "n_selected"), tiles(block_size)
    q, k = heads(q=q, k=k)
    head_of, scale = keys_for(q, k), scale_of(scale, q.shape[3])
    limits = np.arange(q.shape[2]) + causal_offset(q, k) + 1 if causal else None
    panels = packed(wide(k))

    def scores(at, rows, n):
        return products(wide(q[at][rows]) * scale, panels[at[0], head_of[at[1]]], n)

    chosen = top_by_chunks(scores, q, k.shape[2], n_selected, limits)
    return chosen_keys(chosen, (q.shape[2], k.shape[2]), size).to(device_of(q))


@on_its_device
def indexer_top_k(index_q, index_k, index_w, *, n_selected, causal=True, block_size=None):
    """Each query attends the `n_selected` keys that an indexer of small heads scores best, the same for all heads.

    Parameters
    ----------
    index_q : array, (batch, index_heads, n_queries, index_dim), float16, bfloat16, float32 or float64
        Queries of the indexer; without batch as well.
    index_k : array, (batch, n_keys, index_dim)
        One key a token, in index_q's dtype.
    index_w : array, (batch, index_heads, n_queries)
        Weight of each indexer head for each query, of any of these dtypes.
    n_selected : int
        Keys of a query; where fewer are allowed, all of them.
    causal : bool
        Only keys up to the query; the last query sits at the last key.
    block_size : int or tuple of int, optional
        Tiles for the kernels; None: rows of single keys. Speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), for the batch of index_q, shared by all heads.

    Raises
    ------
    TypeError, ValueError
        An array or a number does not fit; nothing was computed.

    Notes
    -----
    Query i attends key j when fewer than `n_selected` allowed keys have a larger score ``sum_h index_w[h, i] *
    max(index_q[h, i] . index_k[j], 0)``, or an equal one and a lower number: many scores are exactly 0. A positive
    factor inside changes nothing. A score that is NaN is never chosen. O(index_heads * n_queries * n_keys * index_dim)
    time, some rows at a time; O(n_queries * n_selected) memory. Choosing has no gradient: an indexer is trained by a
    loss of its own.

    CuPy's arrays are chosen from on their GPU, which is waited for, and the pattern is made there. There scores are a
    library's products.

    References
    ----------
    .. [1] DeepSeek-AI, DeepSeek-V3.2, arXiv:2512.02556, section 2.
    """
    n_selected, size = positive(n_selected, "n_selected"), tiles(block_size)
    q, k, w = _indexer(index_q, index_k, index_w)
    limits = np.arange(q.shape[2]) + causal_offset(q, k) + 1 if causal else None
    panels, w, xp = packed(wide(k)), wide(w), namespace(q)

    def scores(at, rows, n):
        return sum(w[at[0], head, rows] * xp.maximum(products(wide(q[at[0], head, rows]), panels[at[0], 0], n), 0)
                   for head in range(q.shape[1]))

    chosen = top_by_chunks(scores, q[:, :1], k.shape[2], n_selected, limits)
    return chosen_keys(chosen, (q.shape[2], k.shape[2]), size).to(device_of(q))


def _indexer(index_q, index_k, index_w):
    """The three arrays as (batch, index_heads, n_queries, ...), (batch, 1, n_keys, ...) and (batch, index_heads,
    n_queries, 1)."""
    for name, x in (("index_q", index_q), ("index_k", index_k), ("index_w", index_w)):
        check_place(name, x, "index_q", index_q)
    if index_q.ndim not in (3, 4) or index_k.ndim != index_q.ndim - 1:
        raise ValueError(f"index_q has shape {index_q.shape} and index_k {index_k.shape}; expected (batch, "
                         "index_heads, n_queries, index_dim) and (batch, n_keys, index_dim), or both without batch")
    q, k = heads(index_q=index_q, index_k=index_k[..., None, :, :])
    if index_w.shape != index_q.shape[:-1]:
        raise ValueError(f"index_w has shape {index_w.shape}; expected {index_q.shape[:-1]}, one weight for each "
                         "head and query of index_q")
    return q, k, heads(index_w=index_w[..., None])[0]
