"""Key blocks chosen by the finished scores of a gate."""

import numpy as np

from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import positive
from sparseattn.patterns.content.chosen import listed_blocks
from sparseattn.patterns.content.inputs import heads, real, wide
from sparseattn.patterns.positional.dense import causal as causal_pattern
from sparseattn.selection.topk import top_of_rows
from sparseattn.xp import device_of, namespace, on_cpu, on_its_device


@on_its_device
def from_block_scores(scores, *, block_size, shape=None, k=None, threshold=None, causal=True, force_diagonal=True):
    """Each block of queries attends the key blocks with the `k` best scores, or with scores above a threshold.

    Parameters
    ----------
    scores : array, (batch, n_heads, q_blocks, k_blocks), float16, bfloat16, float32 or float64
        What a gate, trained or not, gives each block; without batch, or without batch and heads, as well.
    block_size : int or tuple of int
        (block_q, block_k) tokens of a block; part of the meaning. With block_q 1 every query chooses for itself.
    shape : tuple of int, optional
        (n_queries, n_keys) where the last blocks are short; None: whole blocks.
    k : int, optional
        Key blocks of a block of queries, forced ones included; where fewer are allowed, all of them.
    threshold : float, optional
        Blocks with a larger score are attended. Give this or `k`.
    causal : bool
        Only keys up to the query, the last query sitting at the last key; blocks without such keys are no candidates.
    force_diagonal : bool
        The key blocks in which queries of the block sit are always attended, even where `k` is less than these.

    Returns
    -------
    Pattern
        Of the batch and heads of the scores, in whole blocks but for those cut by `causal`.

    Raises
    ------
    TypeError, ValueError
        An array or a number does not fit; nothing was computed.

    Notes
    -----
    Query i attends key j when the block (i // block_q, j // block_k) is chosen and, with `causal`, j <= i. Of equal
    scores the lower block is chosen; NaN and -inf never are. Fewer forced blocks leave more of `k` to others. O(scores)
    time and memory. Nothing flows back to the scores: a gate is trained by a loss of its own.

    CuPy's arrays are chosen from on their GPU, which is waited for. With `k` and block_q 1 the pattern is made there
    as well; else on the CPU, then moved.

    References
    ----------
    .. [1] Gao et al., SeerAttention, arXiv:2410.13276, section 3.
    """
    scores = heads(scores=scores)[0]
    size = checking.block_size(block_size)
    shape = checking.blocks_shape(shape, scores.shape[2:], size)
    if (k is None) == (threshold is None):
        raise ValueError(f"k is {k} and threshold {threshold}; give one of them: how many blocks, or how good ones")
    k = None if k is None else positive(k, "k")
    threshold = None if k else real(threshold, "threshold", -np.inf, np.inf)
    if shape[0] > shape[1] and (causal or force_diagonal):
        raise ValueError(f"shape is {shape}, more queries than keys; the last query sits at the last key, so give at "
                         "least as many keys, or causal=False and force_diagonal=False")
    first, last = _key_blocks_of_rows(scores.shape[2], size, shape)
    scores, xp = wide(scores), namespace(scores)
    cols, first_there, last_there = xp.arange(scores.shape[3]), xp.asarray(first)[:, None], xp.asarray(last)[:, None]
    forced = (cols >= first_there) & (cols <= last_there) & force_diagonal
    if k is None:
        layout = on_cpu((scores > threshold) & ((cols <= last_there) | (not causal)) | forced)
    else:
        best = xp.where(forced, np.inf, xp.minimum(scores, np.finfo(scores.dtype).max))
        chosen = top_of_rows(best, min(k, scores.shape[3]), last + 1 if causal else None)
        if size[0] == 1:
            stops = np.arange(shape[0]) + shape[1] - shape[0] + 1 if causal else np.full(shape[0], shape[1])
            return listed_blocks(chosen, size[1], stops, shape[1]).to(device_of(scores))
        layout = _layout(on_cpu(chosen), on_cpu(forced))
    pattern = Pattern.from_blocks(layout, block_size=size, shape=shape)
    return (pattern & causal_pattern(*shape) if causal else pattern).to(device_of(scores))


def _key_blocks_of_rows(n_rows, size, shape):
    """First and last key block in which the queries of each row of blocks sit, int (n_rows,)."""
    row = np.arange(n_rows)
    offset = shape[1] - shape[0]
    return (row * size[0] + offset) // size[1], (np.minimum((row + 1) * size[0], shape[0]) - 1 + offset) // size[1]


def _layout(chosen, forced):
    """The blocks of chosen columns, int32 (batch, n_heads, q_blocks, k), -1 for none, and forced ones: bool (batch,
    n_heads, q_blocks, k_blocks)."""
    layout = np.zeros((*chosen.shape[:3], forced.shape[1] + 1), bool)
    np.put_along_axis(layout, chosen, True, axis=3)  # -1 is the column too many
    return layout[..., :-1] | forced
