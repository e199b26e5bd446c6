"""Tokens in blocks: means, likeness within a block, scores of blocks along antidiagonals. A short last block counts its
own tokens alone."""

from sparseattn.selection.softmax import hide_later, softmax
from sparseattn.xp import namespace

ROWS = 256  # groups of queries scored together: fewer make slow products, more meet keys that come later


def block_sums(x, block, axis):
    """Sums of every `block` entries along an axis, counted from the front; the last perhaps of fewer."""
    xp, n, front, behind = namespace(x), x.shape[axis], x.shape[:axis], x.shape[axis + 1 :]
    if n % block:
        x = xp.concatenate([x, xp.zeros((*front, -n % block, *behind), x.dtype)], axis=axis)
    return x.reshape(*front, -(-n // block), block, *behind).sum(axis=axis + 1)


def block_means(x, block, weights=None):
    """Means (n_blocks, d) of every `block` tokens of x (n, d), each token times its weight (n,) if there are any."""
    n, whole, xp = x.shape[0], x.shape[0] // block * block, namespace(x)
    weights = xp.ones(n, x.dtype) if weights is None else weights
    sums = xp.empty((-(-n // block), x.shape[1]), x.dtype)
    sums[: n // block] = (weights[:whole].reshape(-1, 1, block) @ x[:whole].reshape(-1, block, x.shape[1]))[:, 0]
    sums[n // block :] = weights[whole:] @ x[whole:]
    counts = xp.full(len(sums), block, x.dtype)
    counts[n // block :] = n - whole
    return sums / counts[:, None]


def likeness(x, block):
    """Mean cosine (n_blocks,) of all pairs of tokens of a block of x (n, d), each with itself included."""
    xp = namespace(x)
    length = xp.sqrt(xp.square(x).sum(axis=1))
    return xp.square(block_means(x, block, 1 / xp.where(length > 0, length, 1))).sum(axis=-1)


def grouped(x, stride, backwards=False):
    """Every `stride` tokens of x (n, d) side by side, (n_groups, stride * d), the last group filled up with zeros."""
    (n, d), xp = x.shape, namespace(x)
    n_groups = -(-n // stride)
    if n % stride:
        x = xp.concatenate([x, xp.zeros((n_groups * stride - n, d), x.dtype)])
    x = x.reshape(n_groups, stride, d)
    return (x[:, ::-1] if backwards else x).reshape(n_groups, stride * d)


def antidiagonal_scores(q, k, block, stride, scale):
    """XAttention's scores (q_blocks, k_blocks) of one head: causal softmax over groups of `stride` tokens, summed by
    block.

    Queries begin a whole number of groups after the keys, and the last of them sits at the last key. O(n_queries *
    n_keys * d / stride) time, O(n_keys * (d + ROWS / stride)) memory.
    """
    offset, per_block = (k.shape[0] - q.shape[0]) // stride, block // stride
    q, k = grouped(q * q.dtype.type(scale / stride), stride, backwards=True), grouped(k, stride)
    scores = namespace(q).zeros((-(-q.shape[0] // per_block), -(-k.shape[0] // per_block)), q.dtype)
    step = max(ROWS // per_block, 1)
    for row in range(0, scores.shape[0], step):
        begin, end = row * per_block, min((row + step) * per_block, q.shape[0])
        s = q[begin:end] @ k[: offset + end].T
        hide_later(s)
        p = block_sums(block_sums(softmax(s), per_block, axis=0), per_block, axis=1)
        scores[row : row + p.shape[0], : p.shape[1]] = p
    return scores
