"""What a model calls for its attention: through a pattern for each layer, or dense with a profile of each layer."""

from time import process_time

import numpy as np

import sparseattn as sa


class Through:
    """Attends through `choose(layer, q, k)`, a Pattern; adds up pairs and the processor's seconds of all threads.

    `causal`: whether pairs are a share of the causal triangle, or else of all.
    """

    def __init__(self, choose, causal):
        self.choose, self.causal = choose, causal
        self.shares, self.attending, self.choosing = [], 0.0, 0.0

    def __call__(self, layer, q, k, v):
        begin = process_time()
        pattern = self.choose(layer, q, k)
        pattern.prepare("numba_cpu", backward=False)
        ready = process_time()
        out = sa.attend(q, k, v, pattern)
        self.choosing, self.attending = self.choosing + ready - begin, self.attending + process_time() - ready
        n_tokens = q.shape[1]
        whole = n_tokens * (n_tokens + 1) // 2 if self.causal else n_tokens**2
        self.shares.append(pattern.nnz / pattern.n_heads / whole)
        return out

    @property
    def seconds(self):
        return self.choosing + self.attending

    @property
    def pairs(self):
        """Share of the pairs, the mean over layers."""
        return float(np.mean(self.shares))


class Profiling:
    """Attends through `choose` and profiles the layers asked for; `found` has a Profile for each of them.

    Every query head gets its own key head, so that each may be given its own pattern also where they share one.
    """

    def __init__(self, choose, layers, *, candidates=None, **options):
        self.choose, self.layers, self.candidates, self.options = choose, layers, candidates or {}, options
        self.found = {}

    def __call__(self, layer, q, k, v):
        if layer in self.layers:
            given = self.candidates.get(layer)
            self.found[layer] = sa.profile(q, *for_each_head(q, k, v), candidates=given, **self.options)
        return sa.attend(q, k, v, self.choose(layer, q, k))


def for_each_head(q, *shared):
    """Keys or values (n_kv_heads, n_tokens, head_dim) with a head for each head of q."""
    return [np.repeat(x, len(q) // len(x), axis=0) for x in shared]


def as_many(n_tokens, share):
    """{"window": a Pattern, "random": a Pattern} of about that share of all pairs: what a choice has to beat."""
    reach = np.arange(n_tokens)
    pairs = (2 * reach + 1) * n_tokens - reach * (reach + 1)
    side = int(np.abs(pairs - share * n_tokens**2).argmin())
    drawn = np.random.default_rng(0).random((n_tokens, n_tokens)) < share
    return {"window": sa.patterns.sliding_window(n_tokens, left=side, right=side),
            "random": sa.Pattern.from_mask(drawn, drawn.shape)}


def always(pattern):
    """The pattern for every layer, q and k."""
    return lambda layer, q, k: pattern
