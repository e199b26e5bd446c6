"""Decoding: one query, a long cache. Every key and value is read once, so the limit is the memory's rate."""

import numpy as np

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Workload, share, speedup
from comparison.peers import torch_sdpa
from suite import cases
from suite.cases import HEADS

BARS = {1: (0.50, 0.80), 4: (0.35, 0.60), 8: (0.30, 0.50)}  # query heads a key-value head: floor, aim


def decode(settings, head_dim):
    n = settings.n_cache
    k, v = cases.inputs(n, count=2, head_dim=head_dim)
    pattern = sa.patterns.dense(1, n)
    contestants, questions = [], []
    for group, bars in BARS.items():
        q = np.random.default_rng(group).standard_normal((1, HEADS * group, 1, head_dim), dtype=np.float32)
        name, peer = f"group of {group}", f"SDPA, group of {group}"
        one = Contestant(name, lambda q=q: ours.forward(q, k, v, pattern), n_bytes=k.nbytes + v.nbytes)
        contestants += [one, Contestant(peer, lambda q=q: torch_sdpa.forward(q, k, v), name,
                                        n_bytes=k.nbytes + v.nbytes, peer=True)]
        questions += [share(one, *bars), speedup(name, peer)]
    return Workload(f"decode, {n:,} keys, {HEADS} k/v heads, head_dim {head_dim}", contestants, questions)
