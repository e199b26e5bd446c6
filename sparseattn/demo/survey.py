"""The model profiled layer by layer, its heads named, a pattern recommended for each."""

from __future__ import annotations

import numpy as np

import sparseattn as sa
from sparseattn.profiling.heads import SINK

SPREAD = 5.0  # nats of entropy, as much as 148 equal weights have
KINDS = ("copy", "start", "previous", "local", "spread", "mixed")


def profile_model(model, text, candidates, rows, done):
    """The profile of every layer while the model reads a text; `done()` after each."""
    causal, profiles = sa.patterns.causal(len(text.tokens)), []

    def attend(layer, q, k, v):
        names = [f"{layer}.{head}" for head in range(len(q))]
        profiles.append(sa.profile(q, k, v, causal=True, rows=rows, candidates=candidates, targets=text.targets,
                                   block_sizes=(64,), names=names, progress=False))
        done()
        return sa.attend(q, k, v, causal)

    model(text.tokens, attend)
    return profiles


def recommend(profiles, names, **asked):
    """For each layer the choice from the profiles of some texts, of which the worst counts."""
    layers = zip(*(profiles[name] for name in names))
    return [sa.recommend(sa.Profile.combine(parts, how="worst"), **asked) for parts in layers]


def kinds(plain, copy, copied):
    """What each head of a layer does, from its profiles on a plain text and on the copy, whose Text comes last."""
    begins = copied.tokens == 0
    return [_kind(plain.kind(head), copy.kind(head), copy.column_mean[0, head, begins].sum(), plain.entropy[0, head])
            for head in range(plain.n_heads)]


def _kind(plain, copy, at_begin, entropy):
    """One of KINDS, the first that fits."""
    fits = ({"induction", "retrieval"} & set(copy), at_begin > SINK, "previous token" in plain, "local" in plain,
            entropy > SPREAD, True)
    return KINDS[int(np.argmax([bool(x) for x in fits]))]
