"""Routing Transformer's pattern: tokens that one mean chooses attend each other."""

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import positive, tiles
from sparseattn.patterns.content.inputs import causal_offset, heads, keys_for, valid_tokens
from sparseattn.selection.members import cluster_members, cluster_parts
from sparseattn.xp import address, compute_dtype, device_of, library, on_its_device


@on_its_device
def clusters(q, k, means, *, window, causal=False, valid=None, block_size=None):
    """Each of several means takes the queries and the keys nearest to it, and these attend each other.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), or without batch, or without batch and heads
        Queries, of any length: it does not matter.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys; q itself where both are one projection.
    means : array, (n_heads, n_clusters, head_dim)
        One set for each head of q; without heads as well, where q has none.
    window : int
        Queries, and keys, that a mean takes; all where there are fewer.
    causal : bool
        Keys after the query are left out; the last query sits at the last key. Meant for q that is k: a cluster's
        queries and keys are otherwise different tokens, and many queries have no key before them.
    valid : array of bool, (batch, n_keys) or (n_keys,), optional
        True: a real token; of fewer queries than keys the last entries count. The others are not taken.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only. None: 32 queries by equal pieces of the window of at most 64 keys.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), one for each batch item and head of q. `Pattern.uncovered` tells the queries that no
        mean took, whose output is 0.

    Raises
    ------
    TypeError, ValueError
        The arrays do not belong together, or an option does not fit; nothing was computed.

    Notes
    -----
    Mean c takes the `window` queries with the largest ``q[i] . means[c] / |q[i]|``, ties to the lower index, and the
    keys alike. Query i attends key j when some mean took both, and with `causal` j <= i. So clusters are of equal size,
    and a token is in several or in none: one softmax over the union of a query's clusters. As published it is one
    softmax a cluster and their mean: `sparseattn.variants.routing`. Which tokens a mean takes depends on later tokens
    too, so causal calls are causal in their values alone.

    A part for each membership: in part m stand the queries that are in more than m clusters, in their m-th one, with
    the keys they have not met before. O(n * n_clusters * head_dim) for the scores and O(n_clusters * window**2 / 64)
    for masks, of a bit for each pair but those of first memberships. Scores are a library's products, and those near
    the border are added up again in one order, so that equal tokens tie. `density_in_tiles` is 0.78 for 128 clusters
    of 128 among 16,384 random tokens, less where many tokens are in many clusters, and half of it with `causal`. Where
    queries are not keys, the scores alone take as many multiplications as attention does.

    CuPy's arrays are chosen from on their GPU, and the structure is made there. This waits for it: sizes follow from
    what the arrays hold. There scores are a library's products as they come.

    References
    ----------
    .. [1] Roy et al., Efficient Content-Based Sparse Attention with Routing Transformers, arXiv:2003.05997, section
       4.1.
    """
    size, window = tiles(block_size), positive(window, "window")
    q, k = heads(q=q, k=k)
    offset = causal_offset(q, k) if causal else None
    means = means_of(means, q)
    valid = valid_tokens(valid, k)
    q_members, k_members = members_of(q, k, means, window, valid)
    shape = q.shape[2], k.shape[2]
    pattern = Pattern.from_parts(cluster_parts(q_members, k_members, shape, offset), shape, *q.shape[:2])
    return (pattern if size is None else pattern.reblock(size)).to(device_of(q))


def members_of(q, k, means, window, valid):
    """The queries and the keys that each mean takes, computed once where k is q."""
    for_keys = keys_for(q, k)
    q_valid = valid if valid is None or q.shape[2] == k.shape[2] else _last(valid, q.shape[2])
    q_members = cluster_members(q, np.arange(q.shape[1]), means, window, q_valid)
    same = q is k or (q.shape, q.strides, address(q)) == (k.shape, k.strides, address(k))
    return q_members, q_members if same else cluster_members(k, for_keys, means, window, valid)


def _last(valid, n_queries):
    if n_queries > valid.shape[1]:
        raise ValueError(f"q has {n_queries} tokens but valid only {valid.shape[1]}; leave valid out and take the "
                         "pattern's pairs with & padding(valid, query_valid)")
    return valid[:, valid.shape[1] - n_queries :]


def means_of(means, q):
    """Means (n_heads, n_clusters, head_dim) that fit q (batch, n_heads, n, head_dim)."""
    if library(means) not in ("numpy", library(q)) or compute_dtype(means.dtype) is None:
        raise TypeError(f"means is {type(means).__name__}"
                        f"{f' of {means.dtype}' if hasattr(means, 'dtype') else ''}; expected a NumPy array of floats, "
                        "or one of CuPy if q is, (n_heads, n_clusters, head_dim)")
    (_, n_heads, _, head_dim), shape = q.shape, means.shape
    if len(shape) == 2 and n_heads == 1:
        means = means[None]
    if means.ndim != 3 or means.shape[0] != n_heads or means.shape[2] != head_dim or not means.shape[1]:
        raise ValueError(f"means has shape {shape}; expected (n_heads, n_clusters, head_dim) = ({n_heads}, any, "
                         f"{head_dim}), with at least one cluster")
    return means
