"""FlexPrefill: a head's blocks by the products of means where these tell the truth, else by columns and diagonals."""

import numpy as np

from sparseattn.pattern import checking
from sparseattn.patterns.arguments import positive
from sparseattn.patterns.content import inputs
from sparseattn.patterns.content.blocks import aligned_offset, causal_blocks
from sparseattn.selection.coverage import among_best, count_to_cover, cover
from sparseattn.selection.pooling import block_means, block_sums
from sparseattn.selection.softmax import diagonal_sums, last_rows, softmax
from sparseattn.xp import device_of, namespace, on_its_device


@on_its_device
def flex_prefill(q, k, *, gamma, tau, block_size=128, scale=None, min_budget=1, max_budget=None):
    """Each head attends the blocks that hold `gamma` of its mass, as the means of blocks or its last queries tell.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries, also without batch, or without batch and heads. The last query sits at the last key.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys; with grouped heads the choice is each query head's own. The keys before the first query are whole blocks.
    gamma : float
        Share of the estimated mass to hold, 0 to 1; 0.9 to 0.95 in the paper.
    tau : float
        Jensen-Shannon distance below which the means of blocks are believed; 0.1 in the paper, 0: never.
    block_size : int
        Tokens of a block, of queries and of keys.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    min_budget, max_budget : int, optional
        Tokens that the chosen columns, and the chosen diagonals, are at least and at most; None: no limit.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), causal, one per batch item and query head.

    Raises
    ------
    ValueError
        If the keys before the first query are not whole blocks.

    Notes
    -----
    Query i attends key j <= i when their block is chosen. From the exact softmax of the last `block_size` queries come
    the mean mass a of every key and that of every distance, and from the product of their mean with the mean keys of
    blocks a second estimate b of the mass of blocks. Where ``sqrt(JS(a, b)) < tau``, a summed by block and JS the
    Jensen-Shannon divergence (natural logarithm), the blocks are those of most mass in the causal softmax of all means
    of query blocks with those of key blocks, over all rows together, while their sum is at most `gamma` times the
    number of rows. Elsewhere they are the columns and diagonals of blocks of most mass: of each ``count // block_size +
    1``, with count the keys, or distances, it takes to hold `gamma`. Distance d belongs to diagonal d // block_size.
    The first column and the main diagonal are among those chosen, in the first case too, with `min_budget` of each. The
    lower index goes first where two are equal. Nothing flows through the choice to q and k.

    O(block_size * n_keys * head_dim + n_queries * n_keys * head_dim / block_size ** 2) time, O(block_size * n_keys +
    blocks) memory a head.

    The published code runs up to two blocks of queries densely, counts keys in 128 whatever the block, and where its
    length is no multiple of 128 cuts distances from the far end; here is none of it.

    CuPy's arrays are chosen from on their GPU, and the structure is made there. This waits for it: sizes follow from
    what the arrays hold.

    References
    ----------
    .. [1] Lai et al., FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference,
       arXiv:2502.20766.

    Examples
    --------
    >>> import numpy as np
    >>> import sparseattn as sa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 512, 64), dtype=np.float32)
    >>> sa.patterns.flex_prefill(q, k, gamma=0.9, tau=0.1, block_size=64).shape
    (512, 512)
    """
    q, k = inputs.heads(q=q, k=k)
    kv_heads, shape = inputs.keys_for(q, k), (q.shape[2], k.shape[2])
    inputs.causal_offset(q, k)
    size = _one_size(block_size)
    rule = (inputs.real(gamma, "gamma", 0, 1), inputs.real(tau, "tau", 0, 1), inputs.scale_of(scale, q.shape[3]),
            _budget(min_budget, max_budget, size))
    offset = aligned_offset(*shape, size)
    # how many blocks of keys a row lies behind each of its columns; negative: the column comes later
    xp = namespace(q)
    behind = offset + xp.arange(-(-shape[0] // size))[:, None] - xp.arange(-(-shape[1] // size))
    layout = xp.zeros(q.shape[:2] + behind.shape, bool)
    for b, h in np.ndindex(q.shape[:2] if shape[0] else (0, 0)):
        layout[b, h] = _chosen(inputs.wide(q[b, h]), inputs.wide(k[b, kv_heads[h]]), behind, size, *rule)
    return causal_blocks(layout, (size, size), shape).to(device_of(q))


def _one_size(block_size):
    size, cols = checking.block_size(block_size)
    if size != cols:
        raise ValueError(f"block_size is {block_size!r}; expected one size for queries and keys")
    return size


def _budget(least, most, size):
    """(fewest, most) columns, and diagonals, of blocks."""
    least = positive(least, "min_budget")
    most = 1 << 31 if most is None else positive(most, "max_budget")
    if most < least:
        raise ValueError(f"max_budget is {most}, less than min_budget {least}; expected at least as many tokens")
    return -(-least // size), -(-most // size)


def _chosen(q, k, behind, size, gamma, tau, scale, budget):
    """Blocks (rows, cols) of one head; a GPU is not asked whether the means are believed."""
    xp, last, means = namespace(q), last_rows(q, k, size, scale), block_means(k, size)
    column, diagonal = last.mean(axis=0, dtype=np.float64), diagonal_sums(last) / last.shape[0]
    pooled = softmax(q[-size:].mean(axis=0) * q.dtype.type(scale) @ means.T)
    mass = block_sums(column, size, axis=0)
    believed = _distance(mass, pooled.astype(np.float64)) < tau
    n_columns, n_diagonals = (xp.clip(xp.where(believed, 1, count_to_cover(x, gamma) // size + 1), *budget)
                              for x in (column, diagonal))
    columns = among_best(mass, n_columns, first=1)
    diagonals = among_best(block_sums(diagonal, size, axis=0), n_diagonals, first=1)
    by_means = believed & _by_means(q, means, behind, size, gamma, scale)
    return (columns | diagonals[xp.maximum(behind, 0)] | by_means) & (behind >= 0)


def _by_means(q, means, behind, size, gamma, scale):
    """The blocks (rows, cols) of most mass over the whole map."""
    allowed = behind >= 0
    s = (block_means(q, size) * q.dtype.type(scale)) @ means.T
    mass = softmax(namespace(q).where(allowed, s, -np.inf))
    return cover(mass.ravel(), gamma, allowed.ravel(), crossing=False).reshape(mass.shape)


def _distance(a, b):
    """The square root of the Jensen-Shannon divergence of two distributions (n,)."""
    xp, middle = namespace(a), (a + b) / 2
    parts = [(x * xp.log(xp.where(x > 0, x, 1) / xp.where(x > 0, middle, 1))).sum() for x in (a, b)]
    return xp.sqrt(xp.maximum(sum(parts) / 2, 0))
