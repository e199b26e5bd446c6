"""Sparse Transformer's fixed pattern: the own stride, and summary tokens of the strides before it."""

import numpy as np

from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import at_least_0, positive, ranges_pattern
from sparseattn.structure import Order


def fixed(n_tokens, *, stride, n_summary, sub_block=0, factor=None, block_size=None):
    """Each query attends its own stride up to itself, and `n_summary` tokens of every stride before it.

    Parameters
    ----------
    n_tokens : int
        Tokens; the last stride may be short.
    stride : int
        Tokens of a stride.
    n_summary : int
        Summary tokens c of each stride.
    sub_block : int or sequence of int
        Which c tokens of a stride are its summary, one number for all or one per head: 0 the last c, 1 the c before
        them, and so on.
    factor : {"local", "summary"}, optional
        One of the two alone, for models that give them to different heads or layers; None: both.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), causal, shared by all heads, or one head per sub-block.

    Raises
    ------
    ValueError
        If a sub-block does not lie inside the stride.

    Notes
    -----
    Query i attends key j <= i when ``j // stride == i // stride`` (local) or
    ``stride - (sub_block + 1) * n_summary <= j % stride < stride - sub_block * n_summary`` (summary). As in the
    released code with ``vertsize * blocksize`` summary tokens, whose head h takes the sub-block ``h % num_verts``;
    there both factors are in one softmax, as with None here. Information from everywhere arrives within two layers
    through sub-block 0 alone; other sub-blocks need heads that complete each other. Summary tokens are stored side by
    side, where they are ranges: O(n_tokens) to build. `density_in_tiles` is 0.99 for 131,072 tokens, stride 128 and 32
    summary tokens, 0.8 for 2,048 tokens.

    References
    ----------
    .. [1] Child et al., Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, section 4.3.
    """
    n, stride = checking.count(n_tokens, "n_tokens"), positive(stride, "stride")
    n_summary = positive(n_summary, "n_summary")
    if factor not in (None, "local", "summary"):
        raise ValueError(f'factor is {factor!r}; expected "local", "summary" or None for both')
    numbers = _sub_blocks(sub_block, stride, n_summary)
    heads = {u: _one(n, stride, n_summary, u, factor, block_size) for u in set(numbers)}
    return Pattern.per_head([heads[u] for u in numbers]) if np.ndim(sub_block) == 1 else heads[numbers[0]]


def _sub_blocks(sub_block, stride, n_summary):
    """The sub-block of each head, or of all."""
    numbers = [at_least_0(u, "sub_block") for u in (sub_block if np.ndim(sub_block) == 1 else [sub_block])]
    if n_summary > stride:
        raise ValueError(f"n_summary is {n_summary} but a stride has {stride} tokens; expected at most {stride}")
    if not numbers:
        raise ValueError("sub_block is empty; give one number, or one per head")
    if (max(numbers) + 1) * n_summary > stride:
        raise ValueError(f"sub_block is {max(numbers)} with {n_summary} tokens each; a stride of {stride} holds "
                         f"sub-blocks 0 to {stride // n_summary - 1}")
    return numbers


def _one(n, stride, n_summary, sub_block, factor, block_size):
    i = np.arange(n).reshape(1, 1, -1)
    before, within = i // stride, i % stride
    local = ranges_pattern(before * stride, i + 1, (n, n), block_size)
    if factor == "local":
        return local
    first = stride - (sub_block + 1) * n_summary
    order = Order.affine((n,), ((0, -(-n // stride), stride), (0, n_summary, 1)), (first,))
    seen = before * n_summary
    if factor == "summary":  # without the local factor, also those of the own stride
        seen = seen + np.clip(within - first + 1, 0, n_summary)
    summary = ranges_pattern(0, seen, (n, n), block_size, None, order)
    return summary if factor == "summary" else Pattern.from_parts(local.parts + summary.parts, (n, n))
