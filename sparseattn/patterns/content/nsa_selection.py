"""The selected branch of NSA: blocks by the probabilities of the compressed branch."""

import numpy as np

from sparseattn.pattern import checking
from sparseattn.patterns.arguments import positive, tiles
from sparseattn.patterns.content.chosen import chosen_blocks
from sparseattn.patterns.content.inputs import heads, wide
from sparseattn.selection.topk import top_by_chunks
from sparseattn.xp import device_of, namespace, on_its_device

FORCED = 3  # the first block, the own and the one before


@on_its_device
def nsa_selection(probabilities, *, n_kv_heads, n_tokens, compress_block, compress_stride, select_block, n_selected,
                  block_size=None):
    """Each query attends the blocks on which its probabilities over compressed blocks fall, the nearest and the first.

    Parameters
    ----------
    probabilities : array, (batch, n_heads, n_queries, n_compressed), float16, bfloat16, float32 or float64
        Attention weights of the compressed branch, 0 where a block is not visible; without batch, or without batch and
        heads, as well.
    n_kv_heads : int
        Key heads: the query heads of one choose together.
    n_tokens : int
        Keys; the last query sits at the last key.
    compress_block, compress_stride : int
        Compressed block c is of the tokens from ``c * compress_stride`` on, `compress_block` of them, a multiple of the
        stride.
    select_block : int
        Tokens of a selected block, a multiple of the stride; the last one may be short. Part of the meaning.
    n_selected : int
        Blocks of a query, at least 3: the first block, the own and the one before are always among them.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_tokens), for the batch and `n_kv_heads` heads.

    Raises
    ------
    TypeError, ValueError
        An array or a number does not fit; nothing was computed.

    Notes
    -----
    Query i attends key j when j <= i and the block of j is the first, that of i, the one before, or one of the
    ``n_selected - 3`` others before it with the largest score; of equal blocks the lower one. The score of a block is
    the sum over the query heads of the group, and over the compressed blocks that overlap it, of their probability
    times the overlap in strides. A block with a NaN in its score is chosen only by force. Forced blocks are ranges, and
    every other choice a part whose queries are sorted by the block they chose: `density_in_tiles` is about 0.75 for
    blocks of 64. O(probabilities) time, O(n_queries * n_selected) memory. Choosing has no gradient.

    CuPy's arrays are chosen from on their GPU, which is waited for, and the pattern is made there. Where 8 or more
    heads share a choice, rows of blocks are made of it, which need no sorting: the heads are the rows of a tile, and
    `block_size` says nothing.

    References
    ----------
    .. [1] Yuan et al., Native Sparse Attention, arXiv:2502.11089, section 3.3.2.
    """
    p = heads(probabilities=probabilities)[0]
    n_kv_heads, n_tokens = positive(n_kv_heads, "n_kv_heads"), checking.count(n_tokens, "n_tokens")
    blocks = Blocks(compress_block, compress_stride, select_block, n_selected)
    blocks.check_forced()
    if p.shape[1] % n_kv_heads:
        raise ValueError(f"probabilities has {p.shape[1]} heads; expected a multiple of n_kv_heads={n_kv_heads}")
    if p.shape[2] > n_tokens:
        raise ValueError(f"probabilities is for {p.shape[2]} queries but n_tokens is {n_tokens}; the last query sits "
                         "at the last key, so expected at least as many keys")
    blocks.check_count(p.shape[3], n_tokens, "probabilities")
    group = max(p.shape[1] // n_kv_heads, 1)

    def summed(at, rows):
        return wide(p[at[0], at[1] * group : (at[1] + 1) * group, rows]).sum(axis=0)

    return selected(summed, p[:, ::group], n_tokens, blocks, group, tiles(block_size))


class Blocks:
    """The checked sizes of NSA."""

    def __init__(self, compress_block, compress_stride, select_block, n_selected):
        self.length = positive(compress_block, "compress_block")
        self.stride = positive(compress_stride, "compress_stride")
        self.size = positive(select_block, "select_block")
        self.n_selected = positive(n_selected, "n_selected")
        for name, n in (("compress_block", self.length), ("select_block", self.size)):
            if n % self.stride:
                raise ValueError(f"{name} is {n}; expected a multiple of compress_stride={self.stride}")

    def check_forced(self):
        """Raise unless the forced blocks fit among the selected ones."""
        if self.n_selected < FORCED:
            raise ValueError(f"n_selected is {self.n_selected}; expected at least {FORCED}: the first block, the own "
                             "and the one before are always among them")

    def check_count(self, n_compressed, n_tokens, name):
        """Raise unless there are compressed blocks for all tokens: the complete ones, or also those at the end."""
        least, most = max((n_tokens - self.length) // self.stride + 1, 0), -(-n_tokens // self.stride)
        if not least <= n_compressed <= most:
            raise ValueError(f"{name} has {n_compressed} compressed blocks; {n_tokens} tokens have {least} complete "
                             f"ones of {self.length} tokens, {self.stride} apart")

    def scores(self, p, n_blocks):
        """(rows, n_blocks): probabilities (rows, n_compressed) summed over each selection block by their overlap."""
        parts = self.size // self.stride
        cover = namespace(p).zeros((len(p), n_blocks * parts), p.dtype)  # a stride of tokens a column
        for step in range(self.length // self.stride):
            n = min(p.shape[1], cover.shape[1] - step)
            if n > 0:
                cover[:, step : step + n] += p[:, :n]
        return cover.reshape(len(p), n_blocks, parts).sum(axis=2)


def selected(summed, q, n_keys, blocks, group, block_size=None):
    """The pattern of the choice by ``summed(at, rows)``, the probabilities (rows, n_compressed) of the `group` heads of
    a k/v head summed, for an index `at` of the first axes of q (batch, n_kv_heads, n_queries, any) and a slice of
    queries."""
    position = np.arange(q.shape[2]) + n_keys - q.shape[2]
    own = position // blocks.size
    n_blocks = -(-n_keys // blocks.size)

    def scores(at, rows, n):  # of the blocks 1 to n: others are forced
        return blocks.scores(summed(at, rows), n_blocks)[:, 1 : n + 1]

    others, width = max(n_blocks - FORCED, 0), n_blocks * blocks.size // blocks.stride
    chosen = top_by_chunks(scores, q, others, blocks.n_selected - FORCED, own - 2, width)
    chosen += chosen >= 0
    near = (own - 1) * blocks.size, position + 1
    first = np.zeros_like(own), np.where(own > 1, blocks.size, 0)
    return chosen_blocks(chosen, blocks.size, position + 1, n_keys, [near, first], block_size, group).to(device_of(q))
