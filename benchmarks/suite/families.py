"""Every family of patterns at sizes that a model might have: name, and how it is built for so many tokens."""

import numpy as np

from sparseattn import Pattern, patterns


def grid(n_tokens):
    """(rows, columns) of a power of two of tokens: 512 x 256 for 131,072."""
    rows = 1 << (n_tokens.bit_length() // 2)
    return rows, n_tokens // rows


def lengths(n_tokens, mean=2048):
    """Lengths of packed documents, random and seeded."""
    cuts = np.random.default_rng(0).choice(n_tokens - 1, max(n_tokens // mean - 1, 1), replace=False) + 1
    return np.diff(np.concatenate([[0], np.sort(cuts), [n_tokens]]))


def spread(n_tokens, count=64):
    """Positions of global tokens."""
    return np.arange(count) * (n_tokens // count)


def valid(n_tokens):
    """A batch of one whose last tokens are padding."""
    return np.arange(n_tokens)[None] < n_tokens - n_tokens // 50


FAMILIES = {
    "dense": patterns.dense,
    "causal": patterns.causal,
    "padding": lambda n: patterns.padding(valid(n)),
    "prefix_lm": lambda n: patterns.prefix_lm(n, n // 16),
    "prefix_lm, window 512": lambda n: patterns.prefix_lm(n, 1024, window=512),
    "documents": lambda n: patterns.documents(lengths(n)),
    "documents, causal": lambda n: patterns.documents(lengths(n), causal=True),
    "sliding_window 512": lambda n: patterns.sliding_window(n, left=511),
    "sliding_window 256 + 256": lambda n: patterns.sliding_window(n, left=256, right=256),
    "sliding_window 128, dilation 8": lambda n: patterns.sliding_window(n, left=127, dilation=8),
    "sliding_window, dilation per head":
        lambda n: patterns.sliding_window(n, left=127, dilation=[1, 1, 2, 2, 4, 4, 8, 8]),
    "attention_sinks": lambda n: patterns.attention_sinks(n, n_sinks=4, recent=511),
    "block_local": lambda n: patterns.block_local(n, block=256, back=1, forward=1),
    "global_tokens": lambda n: patterns.global_tokens(n, spread(n)),
    "longformer": lambda n: patterns.longformer(n, window=512, global_tokens=spread(n)),
    "strided": lambda n: patterns.strided(n, stride=256),
    "strided, column": lambda n: patterns.strided(n, stride=256, factor="column"),
    "fixed": lambda n: patterns.fixed(n, stride=256, n_summary=4),
    "bigbird": patterns.bigbird,
    "bigbird, 8 heads": lambda n: patterns.bigbird(n, n_heads=8),
    "bigbird, official plan": lambda n: patterns.bigbird(n, plan="official"),
    "random_blocks": lambda n: patterns.random_blocks(n, per_row=6),
    "deepspeed fixed": lambda n: patterns.deepspeed_layout("fixed", n, block_size=64),
    "etc, long": lambda n: patterns.etc(n, n // 64, radius=84).long,
    "axial, rows": lambda n: patterns.axial(grid(n), 1),
    "axial, columns": lambda n: patterns.axial(grid(n), 0),
    "axial, both": lambda n: patterns.axial(grid(n), (0, 1)),
    "swin 16": lambda n: patterns.swin(grid(n), window=16),
    "swin 8, shifted": lambda n: patterns.swin(grid(n), window=8, shift=4),
    "neighborhood 13": lambda n: patterns.neighborhood(grid(n), kernel_size=13),
    "neighborhood 7, dilation 2": lambda n: patterns.neighborhood(grid(n), kernel_size=7, dilation=2),
    "neighborhood 13, stride 4": lambda n: patterns.neighborhood(grid(n), kernel_size=13, stride=4),
    "block_diagonal": lambda n: Pattern.block_diagonal([patterns.bigbird(m) for m in map(int, lengths(n))]),
    "buckets": lambda n: Pattern.from_buckets(*[np.random.default_rng(0).integers(0, n // 64, n)] * 2),
}
