"""SpargeAttn: blocks chosen by the product of their means, where these stand for their tokens."""

import numpy as np

from sparseattn.patterns.arguments import tiles
from sparseattn.patterns.content import inputs
from sparseattn.patterns.content.blocks import causal_blocks, own_blocks
from sparseattn.selection.coverage import cover
from sparseattn.selection.pooling import block_means, likeness
from sparseattn.selection.softmax import softmax
from sparseattn.xp import device_of, namespace, on_its_device

BLOCK_Q, BLOCK_K = 128, 64  # tokens of the rule's blocks


@on_its_device
def sparge(q, k, *, tau, theta, scale=None, block_size=None):
    """Each block of queries attends the key blocks that hold `tau` of the softmax over means, and all that have none.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries, also without batch, or without batch and heads. The last query sits at the last key.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys; with grouped heads the choice is each query head's own.
    tau : float
        Share of the estimated mass that the blocks of a row may hold, 0 to 1.
    theta : float
        Likeness from which the mean of a block stands for its tokens, -1 to 1.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), causal, one per batch item and query head.

    Notes
    -----
    Query i attends key j <= i when their block is chosen. Blocks are 128 queries and 64 keys; the likeness of a block
    is the mean cosine of all pairs of its tokens, each with itself included. A query block below `theta` takes every
    block; a key block below it is taken by every row. Among the others, softmax over ``scale * mean(q) . mean(k)`` of
    the blocks that begin no later than the row's last query; those with most mass are taken while their sum is at most
    `tau` (the one that crosses is not), at least one of them, the lower index first where two are equal. The blocks of
    the row's own tokens are always taken. Nothing flows through the choice to q and k.

    ``tau=1`` is plain causal attention. O((n_queries + n_keys) * head_dim + n_queries * n_keys * head_dim / 8192) time,
    O(blocks) memory.

    This is the first of two stages of the published code; the second skips tiles while it runs. There the diagonal is
    not taken for its own sake. Subtracting the mean key first (``smooth_k``) changes the scores of means though not
    attention: pass ``k - k.mean(axis=-2, keepdims=True)`` here for it.

    CuPy's arrays are chosen from on their GPU, and the structure is made there. This waits for it: sizes follow from
    what the arrays hold.

    References
    ----------
    .. [1] Zhang et al., SpargeAttention: Accurate and Training-free Sparse Attention Accelerating Any Model Inference,
       arXiv:2502.18137.

    Examples
    --------
    >>> import numpy as np
    >>> import sparseattn as sa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 512, 64), dtype=np.float32)
    >>> sa.patterns.sparge(q, k, tau=0.9, theta=-1).n_heads
    4
    """
    q, k = inputs.heads(q=q, k=k)
    kv_heads, shape = inputs.keys_for(q, k), (q.shape[2], k.shape[2])
    inputs.causal_offset(q, k)
    tau, theta, scale = (inputs.real(tau, "tau", 0, 1), inputs.real(theta, "theta", -1, 1),
                         inputs.scale_of(scale, q.shape[3]))
    size = tiles(block_size)
    own, before = own_blocks((BLOCK_Q, BLOCK_K), shape)
    xp = namespace(q)
    before, layout = xp.asarray(before), xp.zeros(q.shape[:2] + own.shape, bool)
    for b, h in np.ndindex(q.shape[:2] if own.size else (0, 0)):
        layout[b, h] = _chosen(inputs.wide(q[b, h]), inputs.wide(k[b, kv_heads[h]]), tau, theta, scale, before)
    pattern = causal_blocks(xp.asarray(own) | layout, (BLOCK_Q, BLOCK_K), shape)
    return (pattern if size is None else pattern.reblock(size)).to(device_of(q))


def _chosen(q, k, tau, theta, scale, before):
    """Blocks (rows, cols) of one head, without its own."""
    stands_q, stands_k = likeness(q, BLOCK_Q) >= theta, likeness(k, BLOCK_K) >= theta
    allowed = before & stands_k
    s = (block_means(q, BLOCK_Q) * q.dtype.type(scale)) @ block_means(k, BLOCK_K).T
    mass = softmax(namespace(q).where(allowed, s, -np.inf))
    return cover(mass, tau, allowed, crossing=False, at_least=1) | (before & ~(stands_q[:, None] & stands_k))
