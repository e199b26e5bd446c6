"""Patterns and arrays that several questions are asked about; the same on every machine."""

import numpy as np

import sparseattn as sa

HEADS, HEAD_DIM = 8, 64


def block_layout(n_blocks, each):
    """Bool (n_blocks, n_blocks): as many blocks in every row as `each`, chosen at random."""
    return np.random.default_rng(1).random((n_blocks, n_blocks)).argsort(axis=1).argsort(axis=1) < each


def random_blocks(n_tokens):
    """Six blocks of 64 keys for every block of queries."""
    return sa.Pattern.from_blocks(block_layout(n_tokens // 64, 6), block_size=64)


def columns(n_tokens):
    """Axial attention along the columns of a square grid."""
    return sa.patterns.axial(_square(n_tokens), 0)


def swin(n_tokens):
    """Windows of 16 x 16 on a square grid."""
    return sa.patterns.swin(_square(n_tokens), window=16)


def neighborhood(n_tokens):
    """The nearest 13 x 13 tokens of a square grid."""
    return sa.patterns.neighborhood(_square(n_tokens), kernel_size=13)


PATTERNS = {
    "causal": sa.patterns.causal,
    "window 256": lambda n: sa.patterns.sliding_window(n, left=255),
    "random blocks": random_blocks,
    "strided 128": lambda n: sa.patterns.strided(n, stride=128),
    "dilated by 8": lambda n: sa.patterns.sliding_window(n, left=255, dilation=8),
    "axial columns": columns,
    "Swin 16": swin,
    "neighborhood 13": neighborhood,
}


def inputs(n_tokens, dtype="float32", count=4, n_heads=HEADS, head_dim=HEAD_DIM):
    """As many arrays (1, n_heads, n_tokens, head_dim) as `count`, random and seeded."""
    require_backend()
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, n_heads, n_tokens, head_dim), dtype=np.float32).astype(dtype)
            for _ in range(count)]


def require_backend():
    """NotImplementedError, by which asv leaves a case out, where no backend runs on NumPy arrays here."""
    if not any(b.usable and not b.only_by_name for b in sa.backends()):
        raise NotImplementedError("; ".join(map(repr, sa.backends())))


def flop(pattern, a_pair, n_heads=HEADS, head_dim=HEAD_DIM):
    """Useful FLOP of a call; 4 a pair and head_dim forward, 10 backward."""
    return pattern.nnz * n_heads * head_dim * a_pair


def _square(n_tokens):
    side = round(n_tokens**0.5)
    return side, side
