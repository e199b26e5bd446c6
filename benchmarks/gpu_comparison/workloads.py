"""What is timed: a pattern of ours, the same pairs as FlexAttention wants them, and the bars of both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparseattn import Pattern, patterns
from suite.families import grid, lengths

BLOCK = 128
DENSE, TILED, SCATTERED = (0.7, 0.5), (0.88, 0.55), (5.0, 3.4)  # forward, backward: times as fast as FlexAttention


@dataclass(frozen=True)
class Workload:
    """`mod(table)` gives FlexAttention's mask_mod(b, h, i, j); `table` moves a NumPy array to where it runs."""

    name: str
    pattern: Callable[[], Pattern]
    mod: Callable | None  # None: all pairs
    bars: tuple[float, float] | None = None
    causal: bool | None = None  # as SDPA has it; None: it has no such mask
    block_sizes: tuple = (128,)  # that FlexAttention is to try


def positional(n):
    """Workloads over n tokens in a sequence or a grid."""
    bigbird, random = block_layouts(n // BLOCK)
    return [
        Workload("dense", lambda: patterns.dense(n), None, DENSE, causal=False),
        Workload("causal", lambda: patterns.causal(n), lambda _: lambda b, h, i, j: i >= j, DENSE, causal=True),
        Workload("window 1024, causal", lambda: patterns.sliding_window(n, left=1023),
                 lambda _: lambda b, h, i, j: (i >= j) & (i - j < 1024), TILED),
        Workload("window 256 + 256, 16 global",
                 lambda: patterns.sliding_window(n, left=256, right=256) | patterns.global_tokens(n, range(16)),
                 lambda _: lambda b, h, i, j: (abs(i - j) <= 256) | (i < 16) | (j < 16), TILED),
        Workload("bigbird 128", lambda: Pattern.from_blocks(bigbird, block_size=BLOCK), of_layout(bigbird), TILED),
        Workload("random blocks 128", lambda: Pattern.from_blocks(random, block_size=BLOCK), of_layout(random), TILED),
        Workload("documents of 1536, causal", lambda: patterns.documents(cut(n, 1536), causal=True),
                 lambda _: lambda b, h, i, j: (i >= j) & (i // 1536 == j // 1536), TILED),
        *scattered(n),
    ]


def scattered(n):
    """Workloads whose pairs lie apart; ours read tokens in an order that brings them together."""
    rows, columns = grid(n)
    return [
        Workload("strided 128, causal", lambda: patterns.strided(n, stride=128),
                 lambda _: lambda b, h, i, j: (i >= j) & ((i - j < 128) | ((i - j) % 128 == 0)), SCATTERED),
        Workload("window 256, dilated by 8", lambda: patterns.sliding_window(n, left=255, dilation=8),
                 lambda _: lambda b, h, i, j: (i >= j) & (i - j < 2048) & ((i - j) % 8 == 0), SCATTERED),
        Workload("axial, columns", lambda: patterns.axial((rows, columns), 0),
                 lambda _: lambda b, h, i, j: i % columns == j % columns, SCATTERED),
        Workload("Swin 16", lambda: patterns.swin((rows, columns), window=16),
                 lambda _: lambda b, h, i, j: (i // columns // 16 == j // columns // 16)
                 & (i % columns // 16 == j % columns // 16), SCATTERED),
        Workload("neighborhood 13", lambda: patterns.neighborhood((rows, columns), kernel_size=13),
                 lambda _: lambda b, h, i, j: nearest(i // columns, j // columns, 13, rows)
                 & nearest(i % columns, j % columns, 13, columns), SCATTERED),
    ]


def nearest(i, j, size, n):
    """Whether j is among the `size` nearest to i of n in a row."""
    first = (i - size // 2).clip(0, n - size)
    return (j >= first) & (j < first + size)


def cut(n, size):
    return [size] * (n // size) + [n % size] * bool(n % size)


def block_layouts(n_blocks):
    """Bool (n_blocks, n_blocks) of bigbird (3 random, neighbours, 2 global) and of a tenth at random."""
    rng, at = np.random.default_rng(0), np.arange(n_blocks)
    bigbird = abs(at[:, None] - at) <= 1
    bigbird[at[:, None], rng.random((n_blocks, n_blocks)).argsort(axis=1)[:, :3]] = True
    bigbird[:2], bigbird[:, :2] = True, True
    return bigbird, (rng.random((n_blocks, n_blocks)) < 0.1) | np.eye(n_blocks, dtype=bool)


def of_layout(layout, size=BLOCK):
    def mod(table):
        chosen = table(layout)
        return lambda b, h, i, j: chosen[i // size, j // size]
    return mod


def in_blocks(n, q, k):
    """Workloads with blocks of 64 and others that FlexAttention's tiles do not fit; q and k (1, n_heads, n, d) NumPy's
    float32, k of as many or of fewer heads."""
    share, sizes = q.shape[1] // k.shape[1], (64, 128)
    whole = patterns.bigbird(n, block_size=64)
    layout = whole[:, :, ::64, ::64].to_dense()[0, 0]
    documents = np.repeat(np.arange(len(lengths(n, 512))), lengths(n, 512))
    scores = np.random.default_rng(1).random((1, k.shape[1], n, n // 64), np.float32)
    selection = patterns.from_block_scores(scores, block_size=(1, 64), k=16)
    moba = patterns.moba(q, np.repeat(k, share, axis=1), chunk_size=512, top_k=3)
    return [
        Workload("bigbird 64", lambda: whole, of_layout(layout, 64), None, None, sizes),
        Workload("NSA selection, 16 of 64", lambda: selection, of_choice(selection, 64, share), None, None, sizes),
        Workload("MoBA, 3 of 512", lambda: moba, of_choice(moba, 512, 1), None, None, sizes),
        hashed(n, q, sizes),
        Workload("documents of odd lengths, causal", lambda: patterns.documents(lengths(n, 512), causal=True),
                 of_labels(documents), None, None, sizes),
    ]


def of_choice(pattern, size, share):
    """The mask_mod of queries that choose whole blocks, causal; the pattern's batch is 1."""
    chosen = pattern[:, :, :, ::size].to_dense()[0]

    def mod(table):
        there = table(chosen)
        return lambda b, h, i, j: there[h // share, i, j // size] & (i >= j)

    return mod


def of_labels(labels):
    def mod(table):
        there = table(labels)
        return lambda b, h, i, j: (there[i] == there[j]) & (i >= j)
    return mod


def hashed(n, q, sizes, chunk=64):
    """One round of hashes: chunks of the sorted tokens attend themselves and the chunk before."""
    n_chunks = n // chunk
    # keys of their own: a token may then attend itself
    pattern = patterns.lsh(q, q.copy(), n_buckets=[2, n_chunks], n_hashes=1, chunk_length=chunk, causal=True)
    chunk_of = np.empty((q.shape[1], n), np.int64)
    for head, order in enumerate(pattern.parts[0].q_order.listing()[0]):
        chunk_of[head, order[order >= 0]] = np.flatnonzero(order >= 0) // chunk

    def mod(table):
        there = table(chunk_of)
        return lambda b, h, i, j: ((there[h, i] - there[h, j]) % n_chunks < 2) & (i >= j)

    return Workload("LSH, chunks of 64", lambda: pattern, mod, None, None, sizes)
