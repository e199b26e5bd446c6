"""XAttention: blocks chosen by sums along their antidiagonals."""

import numpy as np

from sparseattn.pattern import checking
from sparseattn.patterns.arguments import positive
from sparseattn.patterns.content import inputs
from sparseattn.patterns.content.blocks import aligned_offset, causal_blocks, own_blocks
from sparseattn.selection.coverage import cover
from sparseattn.selection.pooling import antidiagonal_scores
from sparseattn.xp import device_of, namespace, on_its_device


@on_its_device
def xattention(q, k, *, block_size=128, stride, threshold, scale=None):
    """Each block of queries attends the key blocks that hold `threshold` of its mass, estimated along antidiagonals.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries, also without batch, or without batch and heads. The last query sits at the last key.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys; with grouped heads the choice is each query head's own. The keys before the first query are whole blocks.
    block_size : int
        Tokens of a block, of queries and of keys; a multiple of `stride`.
    stride : int
        Tokens of a group; one product of groups stands for stride ** 2 pairs. 8 or 16 in the paper.
    threshold : float or sequence of float
        Share of the estimated mass that the blocks of a row hold, 0 to 1; one for all heads or one per query head.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), causal, one per batch item and query head.

    Raises
    ------
    ValueError
        If `block_size` is no multiple of `stride`, or the keys before the first query are not whole blocks.

    Notes
    -----
    Query i attends key j <= i when their block is chosen. With groups of S tokens the score of query group a and key
    group b <= a is ``sum of q[aS + S - 1 - u] . k[bS + u] for u < S, times scale / S``; the softmax over b, summed over
    the groups of a block, is the block's mass. The own block and block 0 are taken; others follow by falling mass as
    long as those taken hold less than `threshold` of the row's, the lower index first where two are equal. A short last
    group adds what it has. Nothing flows through the choice to q and k.

    O(n_queries * n_keys * head_dim / stride) time, a 1 / stride of dense scores; O(n_keys * head_dim + blocks) memory a
    head. All pairs of a tile are attended but on the diagonal.

    The published code takes a block too many in its first chunk of queries, where it also loses block 0, and can score
    earlier chunks 0 where its padding is short; neither is done here.

    CuPy's arrays are chosen from on their GPU, and the structure is made there. This waits for it: sizes follow from
    what the arrays hold.

    References
    ----------
    .. [1] Xu et al., XAttention: Block Sparse Attention with Antidiagonal Scoring, arXiv:2503.16428, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> import sparseattn as sa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 4, 1024, 64), dtype=np.float32)
    >>> sa.patterns.xattention(q, k, stride=16, threshold=0.9).shape
    (1024, 1024)
    """
    q, k = inputs.heads(q=q, k=k)
    kv_heads, shape = inputs.keys_for(q, k), (q.shape[2], k.shape[2])
    inputs.causal_offset(q, k)
    size, stride, scale = _sizes(block_size, stride) + (inputs.scale_of(scale, q.shape[3]),)
    threshold = _per_head(threshold, q.shape[1])
    aligned_offset(*shape, size)
    own, before = own_blocks((size, size), shape)
    xp, first = namespace(q), own | (before & (np.arange(own.shape[1]) == 0))
    first, before, layout = xp.asarray(first), xp.asarray(before), xp.zeros(q.shape[:2] + own.shape, bool)
    for b, h in np.ndindex(q.shape[:2] if own.size else (0, 0)):
        mass = antidiagonal_scores(inputs.wide(q[b, h]), inputs.wide(k[b, kv_heads[h]]), size, stride, scale)
        layout[b, h] = cover(mass, threshold[h], before, first=first)
    return causal_blocks(layout, (size, size), shape).to(device_of(q))


def _sizes(block_size, stride):
    (block, cols), stride = checking.block_size(block_size), positive(stride, "stride")
    if block != cols or block % stride:
        raise ValueError(f"block_size is {block_size!r} and stride {stride}; expected one size for queries and keys, a "
                         "multiple of stride")
    return block, stride


def _per_head(threshold, n_heads):
    """One share a head, from one for all or one each."""
    if np.ndim(threshold) == 0:
        return [inputs.real(threshold, "threshold", 0, 1)] * n_heads
    if np.shape(threshold) != (n_heads,):
        raise ValueError(f"threshold has shape {np.shape(threshold)}; expected one number, or {n_heads}, one for each "
                         "head of q")
    return [inputs.real(float(x), "threshold", 0, 1) for x in threshold]
