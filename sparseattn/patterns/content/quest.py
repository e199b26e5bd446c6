"""Quest: a decoding query attends the pages of the cache that bounds on their scores put first."""

import numpy as np

from sparseattn.patterns.arguments import positive, tiles
from sparseattn.patterns.content.chosen import chosen_blocks
from sparseattn.patterns.content.inputs import causal_offset, heads, keys_for, wide
from sparseattn.selection.products import packed, products
from sparseattn.selection.topk import top_by_chunks
from sparseattn.xp import device_of, namespace, on_its_device

LEAST = 3  # pages, whatever the budget


@on_its_device
def quest(q, k, *, page_size, token_budget, force_last=True, block_size=None):
    """Each query attends the pages of keys whose scores may be the largest, as many as a budget of tokens holds.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        The queries of the last positions, one when decoding; without batch, or without batch and heads, as well.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        The cached keys. Each query head chooses for itself, also where heads are grouped.
    page_size : int
        Tokens of a page; the last one may be short and counts by its true tokens.
    token_budget : int
        Tokens to attend: ``max(3, token_budget // page_size)`` pages, or all where there are fewer.
    force_last : bool
        The page of the query itself is always attended, counted in the budget. False: it competes like any other.
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
    Query i attends key j when j <= i and the page of j is among those with the largest upper bounds of ``q[i] . k[j]``,
    ``sum_d max(q[i, d] * least_d, q[i, d] * largest_d)`` over the page's keys up to i; of equal pages the lower one. A
    page with a NaN is chosen only by force. The released kernels force the last page, the evaluation of the paper does
    not. O(n_keys * head_dim + n_queries * n_pages * head_dim) time, the first for reading all keys once. Choosing has
    no gradient.

    CuPy's arrays are chosen from on their GPU, which is waited for, and the pattern is made there.

    References
    ----------
    .. [1] Tang et al., Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, arXiv:2406.10774,
       section 3.
    """
    page, budget = positive(page_size, "page_size"), positive(token_budget, "token_budget")
    size = tiles(block_size)
    if not isinstance(force_last, (bool, np.bool_)):
        raise TypeError(f"force_last is {force_last!r}; expected True or False")
    q, k = heads(q=q, k=k)
    head_of, n_keys = keys_for(q, k), k.shape[2]
    position = np.arange(q.shape[2]) + causal_offset(q, k)
    own, n_whole = position // page, n_keys // page
    whole = wide(k[:, :, : n_whole * page]).reshape(*k.shape[:2], n_whole, page, k.shape[3])
    low, high = map(packed, (whole.min(axis=3), whole.max(axis=3)) if whole.size else 2 * [whole[:, :, :, 0]])
    begin = int(own[0]) * page if own.size and not force_last else n_keys
    xp = namespace(q)
    so_far = [_running(wide(k[:, :, begin:]), page, extreme) for extreme in (xp.minimum, xp.maximum)]
    # a page that ends with its query is like all before it
    own_there, since = xp.asarray(np.where((position + 1) % page, own, -1))[:, None], xp.asarray(position - begin)

    def bounds(at, rows, n):
        head, x = (at[0], head_of[at[1]]), wide(q[at][rows])
        up, down = xp.maximum(x, 0), xp.minimum(x, 0)
        scores = xp.full((len(x), n), -np.inf, x.dtype)
        seen = min(n, n_whole)
        scores[:, :seen] = (products(up, high[head], seen) + products(down, low[head], seen))[:, :seen]
        if force_last:
            return scores
        least, largest = (bound[head][since[rows]] for bound in so_far)  # a query's own page ends with it
        of_own = _sum_in_order(up * largest) + _sum_in_order(down * least)
        return xp.where(xp.arange(n) == own_there[rows], of_own, scores)

    n_pages = max(LEAST, budget // page) - bool(force_last)
    chosen = top_by_chunks(bounds, q, -(-n_keys // page), n_pages, own + (not force_last))
    near = [(own * page, position + 1)] if force_last else []
    return chosen_blocks(chosen, page, position + 1, n_keys, near, size).to(device_of(q))


def _sum_in_order(x):
    """Sums over the last axis, NumPy's as `products` adds them, so that equal bounds are equal."""
    return x.cumsum(axis=1)[:, -1:]


def _running(k, page, extreme):
    """The extreme of each number over the keys of a page so far, like k (batch, n_kv_heads, n_keys, head_dim)."""
    xp, step = namespace(k), 1
    place = xp.arange(k.shape[2])[:, None] % page
    while step < min(page, k.shape[2]):  # the first keys are done; the others have met the `step` up to their own
        later = xp.where(place[step:] >= step, extreme(k[:, :, step:], k[:, :, :-step]), k[:, :, step:])
        k, step = xp.concatenate([k[:, :, :step], later], axis=2), 2 * step
    return k
