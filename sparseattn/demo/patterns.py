"""The patterns that the demo offers each head, and those it compares with."""

from __future__ import annotations

import functools

import sparseattn as sa
from sparseattn.profiling.candidates import Candidate

NEAR = 64  # keys of the window that samples and pages come with
BLOCK = (64, 16)  # queries and keys of a random block


def candidates(n_tokens):
    """What a head may get: few, for a demo has no time for the fifty that `sa.profile` tries by itself. Windows below
    64 would save little: kernels compute tiles of 64 x 64."""
    near = {"size": NEAR}
    windows = [Candidate(f"window {size}", "window", {"size": size}) for size in (64, 128, 256, 512, 1024, 2048)]
    sinks = [Candidate(f"window {size} + first 4", "window", {"size": size, "first": 4}) for size in (64, 256)]
    samples = [Candidate("stride 8 + window 64", "strided", {"stride": 8} | near),
               Candidate("one key in 8 + window 64", "even", {"stride": 8} | near)]
    pages = [Candidate(f"{n} pages of 4 + window 64", "pages", {"page": 4, "n": n} | near) for n in (32, 128)]
    return [c for c in windows + sinks + samples + pages if _reach(**c.options) < n_tokens]


def _reach(size, page=0, n=0, **others):
    """Keys of a query at most."""
    return size + page * n


def window(n_tokens, size):
    """The last `size` keys, self included."""
    return sa.patterns.sliding_window(n_tokens, left=size - 1)


def window_of(n_tokens, share):
    """The window that holds at least this share of the causal pairs, and its size."""
    size = next(size for size in range(1, n_tokens + 1)
                if size * n_tokens - size * (size - 1) // 2 >= share * triangle(n_tokens))
    return window(n_tokens, size), size


def random_of(n_tokens, share, n_heads):
    """About this share of the causal pairs: a window of 64 keys, and blocks drawn at random, in each head others."""
    near, causal = window(n_tokens, min(NEAR, n_tokens)), sa.patterns.causal(n_tokens)
    own = near.nnz / causal.nnz
    per_row = round(max(share - own, 0) / max(1 - own, 1e-9) * n_tokens / BLOCK[1])
    drawn = sa.patterns.random_blocks(n_tokens, per_row=per_row, block_size=BLOCK, n_heads=n_heads)
    return near | (drawn & causal)


def triangle(n_tokens):
    """Pairs of causal attention."""
    return n_tokens * (n_tokens + 1) // 2


class Fixed:
    """One pattern in every layer, a function of the number of tokens, which is called once for each."""

    by_content = False

    def __init__(self, build):
        self.build = functools.cache(build)

    def __call__(self, layer, q, k):
        return self.build(q.shape[1])


class Recommended:
    """In every layer what was recommended for its heads; built once for a length where no head looks at q and k."""

    def __init__(self, recs):
        self.recs, self.built = recs, {}
        self.by_content = any(head.candidate.dynamic for rec in recs for head in rec.heads)

    def __call__(self, layer, q, k):
        if self.by_content:
            return self.recs[layer].build(q, k)
        place = layer, q.shape[1]
        if place not in self.built:
            self.built[place] = self.recs[layer].build(q, k)
        return self.built[place]

    @property
    def density(self):
        """Share of the pairs, the mean over layers."""
        return sum(rec.density for rec in self.recs) / len(self.recs)
