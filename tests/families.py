"""One table of patterns: name, how the package builds it, and what it must attend by the oracle's rule."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import oracle
from sparseattn import Pattern, patterns


@dataclass(frozen=True)
class Case:
    """`build()` gives the Pattern, `mask` the pairs: bool (1 | batch, 1 | heads, n_queries, n_keys)."""

    name: str
    build: Callable[[], Pattern]
    mask: np.ndarray


def _family(name, *args, **options):
    """A case whose family and oracle take the same arguments."""
    words = [f"bool {a.shape}" if isinstance(a, np.ndarray) else str(a) for a in args]
    words += [f"{key}={value}" if np.ndim(value) < 2 else key for key, value in options.items()]
    build = getattr(patterns, name)
    return Case(f"{name}({', '.join(words)})", lambda: build(*args, **options), getattr(oracle, name)(*args, **options))


def _composed(name, build, mask):
    return Case(name, build, np.reshape(mask, (1,) * (4 - mask.ndim) + mask.shape))


def _bigbird(n_tokens, block_size, n_heads, n_random, **options):
    n_blocks = -(-n_tokens // block_size)
    rand_blocks = np.random.default_rng(n_tokens).integers(0, n_blocks, (n_heads, n_blocks - 2, n_random))
    options |= {"block_size": block_size, "rand_blocks": rand_blocks}
    return Case(f"bigbird({n_tokens}, block_size={block_size}, {n_heads} heads, {n_random} random)",
                lambda: patterns.bigbird(n_tokens, n_heads=n_heads, **options), oracle.bigbird(n_tokens, **options))


def _documents_per_batch(*batches, **options):
    return Case(f"documents per batch {options}", lambda: patterns.documents(batches, **options),
                np.concatenate([oracle.documents(lengths, **options) for lengths in batches]))


def _etc(n_long, n_global, *, hard=False, **options):
    """The two patterns of etc."""
    masks = oracle.etc(n_long, n_global, l2g=hard in (True, "l2g"), g2l=hard in (True, "g2l"), **options)
    for which, mask in zip(("long", "globals"), masks):
        name = f"etc({n_long}, {n_global}, hard={hard}, {len(mask)} batch).{which}"
        yield Case(name, lambda w=which: getattr(patterns.etc(n_long, n_global, hard=hard, **options), w), mask)


def _random(shape, share, seed):
    return np.random.default_rng(seed).random(shape) < share


VALID = _random((2, 61), 0.7, 1)
VALID[1, 40:] = False
NONE_VALID = np.array([[True] * 30, [False] * 30])
GLOBALS = _random((2, 61), 0.08, 2)
SENTENCES = np.random.default_rng(8).integers(-1, 5, (2, 61))
CLASSES = np.random.default_rng(3).integers(0, 5, 90)

POSITIONAL = [
    _family("dense", 37), _family("dense", 5, 70), _family("dense", 70, 5), _family("dense", 1), _family("dense", 130),
    _family("dense", 0), _family("dense", 0, 5), _family("dense", 5, 0),
    _family("causal", 100), _family("causal", 1), _family("causal", 33, 70), _family("causal", 70, 33),
    _family("causal", 20, 50, offset=7), _family("causal", 20, 50, offset=[-5, 30]),
    _family("sliding_window", 150, left=10), _family("sliding_window", 64, left=7, right=3),
    _family("sliding_window", 65, left=0), _family("sliding_window", 40, left=0, right=9),
    _family("sliding_window", 50, left=None, right=2), _family("sliding_window", 50, left=3, right=None),
    _family("sliding_window", 50, left=200), _family("sliding_window", 30, 90, left=12),
    _family("sliding_window", 90, 30, left=12), _family("sliding_window", 100, left=5, dilation=3),
    _family("sliding_window", 70, 101, left=4, right=4, dilation=7),
    _family("sliding_window", 100, left=3, right=2, dilation=[1, 2, 5, 1]),
    _family("sliding_window", 20, 50, left=6, offset=[3, 29]),
    _family("block_local", 96, block=16), _family("block_local", 100, block=16, back=1, forward=1),
    _family("block_local", 75, block=20, causal=True),
    _family("block_local", 75, block=10, back=2, causal=True, exact=True),
    _family("block_local", 90, block=16, back=1, forward=1, wrap=True), _family("block_local", 50, block=16, back=0),
    _family("global_tokens", 80, [0, 3, 79]), _family("global_tokens", 40, []), _family("global_tokens", 61, GLOBALS),
    _family("padding", VALID), _family("padding", VALID, n_queries=20), _family("padding", NONE_VALID),
    _family("padding", VALID, query_valid=VALID[:, ::-1]),
    _family("documents", [30, 1, 0, 45]), _family("documents", [30, 1, 45], causal=True),
    _family("documents", [9, 5, 20], [30, 2, 31], causal=True), _family("documents", [40, 3, 31], window=6),
    _family("documents", [4, 1, 9], [20, 13, 9], window=7), _documents_per_batch([30, 20], [10, 15, 25], causal=True),
    _family("strided", 100, stride=16), _family("strided", 96, stride=12, factor="local"),
    _family("strided", 90, stride=7, factor="column"), _family("strided", 10, stride=16),
    _family("axial", (9, 7), 0), _family("axial", (9, 7), -1, causal_axes=1), _family("axial", (5, 70), 1),
    _family("axial", (9, 13), [0, 1], causal_axes=0), _family("axial", (3, 4, 5), [2, 0, 1], causal_axes=[1, 2]),
    _family("axial", (11,), 0), _family("axial", (70, 1, 1), 0),
    _family("swin", (8, 12), window=4), _family("swin", (8, 12), window=4, shift=2), _family("swin", (50,), window=7),
    _family("swin", (9, 14), window=(4, 5), shift=(2, 3)), _family("swin", (9, 10), window=(1, 10)),
    _family("swin", (10, 13), window=4, shift=2, pad="attend"), _family("swin", (50,), window=7, shift=3),
    _family("swin", (4, 15), window=(9, 7), shift=3), _family("swin", (3, 6, 5), window=2, shift=(1, 0, 1)),
    _family("swin", (18, 9), window=9), _family("swin", (24, 8), window=8, shift=(4, 0)),
    _family("neighborhood", (65,), kernel_size=7), _family("neighborhood", (64,), kernel_size=8, dilation=5),
    _family("neighborhood", (70,), kernel_size=9, stride=4, dilation=2, is_causal=True),
    _family("neighborhood", (11, 13), kernel_size=(5, 8)),
    _family("neighborhood", (12, 14), kernel_size=(4, 5), stride=(2, 3), dilation=(2, 1), is_causal=(True, False)),
    _family("neighborhood", (13, 9), kernel_size=4, stride=4),
    _family("neighborhood", (13, 11), kernel_size=3, dilation=(4, 3)),
    _family("neighborhood", (5, 7, 6), kernel_size=(3, 3, 5), is_causal=(True, False, False)),
    _family("neighborhood", (1, 40), kernel_size=(1, 3)), _family("neighborhood", (6, 7), kernel_size=(6, 7)),
    _bigbird(128, 16, 2, 2), _bigbird(107, 8, 1, 3), _bigbird(90, 16, 2, 1, n_window=5),
    _family("prefix_lm", 90, 33), _family("prefix_lm", 50, [0, 20, 70]), _family("prefix_lm", 90, 40, window=12),
    _family("attention_sinks", 100, n_sinks=4, recent=20), _family("attention_sinks", 30, 90, n_sinks=3, recent=8),
    _family("attention_sinks", 40, n_sinks=0, recent=5), _family("attention_sinks", 40, n_sinks=50, recent=0),
    _family("attention_sinks", 20, 60, n_sinks=2, recent=9, offset=[-3, 12, 55]),
    _family("fixed", 100, stride=16, n_summary=4), _family("fixed", 96, stride=12, n_summary=5, factor="local"),
    _family("fixed", 90, stride=14, n_summary=3, sub_block=2, factor="summary"),
    _family("fixed", 9, stride=16, n_summary=2), _family("fixed", 101, stride=20, n_summary=5, sub_block=[0, 3, 1, 0]),
    _family("longformer", 120, window=16), _family("longformer", 120, window=9, global_tokens=[0, 50]),
    _family("longformer", 100, window=8, dilation=[1, 3], global_tokens=[2, 3, 4], causal=True),
    _family("longformer", 61, window=6, dilation=2, global_tokens=GLOBALS),
    _family("random_blocks", 128, per_row=2, block_size=16, n_heads=2),
    _family("random_blocks", 70, 107, per_row=3, block_size=8, seed=5),
    _family("random_blocks", 40, per_row=9, block_size=16),
    *_etc(90, 7, radius=11), *_etc(61, 5, radius=8, hard=True, sentence=np.arange(61) // 13),
    *_etc(61, 5, radius=8, hard=True, sentence=SENTENCES),
    *_etc(40, 6, radius=3, hard="l2g", sentence=np.arange(40) // 9),
    *_etc(40, 6, radius=3, hard="g2l", sentence=np.arange(40)[::-1] // 9),
]

COMPOSED = [
    _composed("(window | globals) & causal",
              lambda: (patterns.sliding_window(80, left=6) | patterns.global_tokens(80, [0, 41])) & patterns.causal(80),
              (oracle.sliding_window(80, left=6) | oracle.global_tokens(80, [0, 41])) & oracle.causal(80)),
    _composed("(strided | globals) & padding",
              lambda: (patterns.strided(61, stride=8) | patterns.global_tokens(61, GLOBALS)) & patterns.padding(VALID),
              (oracle.strided(61, stride=8) | oracle.global_tokens(61, GLOBALS)) & oracle.padding(VALID)),
    _composed("causal - window", lambda: patterns.causal(70) - patterns.sliding_window(70, left=9),
              oracle.causal(70) & ~oracle.sliding_window(70, left=9)),
    _composed("dilated per head | window",
              lambda: (patterns.sliding_window(60, left=4, dilation=[1, 3])
                       | patterns.sliding_window(60, left=2, right=2)),
              oracle.sliding_window(60, left=4, dilation=[1, 3]) | oracle.sliding_window(60, left=2, right=2)),
    _composed("per head: window, strided, window, causal",
              lambda: Pattern.per_head([patterns.sliding_window(75, left=9), patterns.strided(75, stride=8),
                                        patterns.sliding_window(75, left=9), patterns.causal(75)]),
              np.concatenate([oracle.sliding_window(75, left=9), oracle.strided(75, stride=8),
                              oracle.sliding_window(75, left=9), oracle.causal(75)], axis=1)),
    _composed("per batch: strided, documents",
              lambda: Pattern.per_batch([patterns.strided(75, stride=8), patterns.documents([50, 25])]),
              np.concatenate([oracle.strided(75, stride=8), oracle.documents([50, 25])])),
    _composed("window.T", lambda: patterns.sliding_window(40, 70, left=9).T,
              oracle.sliding_window(40, 70, left=9).swapaxes(2, 3)),
    _composed("chunk of queries", lambda: patterns.strided(90, stride=8)[:, :, 40:75],
              oracle.strided(90, stride=8)[:, :, 40:75]),
    _composed("random pairs", lambda: Pattern.from_mask(_random((80, 90), 0.05, 4)), _random((80, 90), 0.05, 4)),
    _composed("random pairs per head and batch",
              lambda: Pattern.from_mask(_random((2, 2, 50, 60), 0.1, 5), block_size=16),
              _random((2, 2, 50, 60), 0.1, 5)),
    _composed("random blocks", lambda: Pattern.from_blocks(_random((2, 6, 7), 0.4, 6), block_size=16, shape=(90, 100)),
              _random((2, 6, 7), 0.4, 6)[:, np.arange(90) // 16][..., np.arange(100) // 16]),
    _composed("key blocks per query",
              lambda: Pattern.from_blocks(_random((60, 12), 0.3, 7), block_size=(1, 8), shape=(60, 90)),
              _random((60, 12), 0.3, 7)[:, np.arange(90) // 8]),
    _composed("buckets", lambda: Pattern.from_buckets(CLASSES, CLASSES), CLASSES[:, None] == CLASSES),
]

BLOCK_SIZES = [
    _composed(f"window in {size}", lambda size=size: patterns.sliding_window(150, left=20, right=3).reblock(size),
              oracle.sliding_window(150, left=20, right=3))
    for size in [(1, 1), (1, 16), 8, 16, (32, 16), (16, 64), 64, 128, (20, 24)]
] + [
    _composed(f"strided in {size}", lambda size=size: patterns.strided(150, stride=12).reblock(size),
              oracle.strided(150, stride=12))
    for size in [(1, 1), (1, 8), (16, 8), 64]
]

TABLE = POSITIONAL + COMPOSED + BLOCK_SIZES
