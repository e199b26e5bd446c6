"""What the demo measures: the model on a text through one pattern, and one pattern over a long sequence."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from time import perf_counter

import numpy as np

import sparseattn as sa
from sparseattn.demo.model import bits_per_byte
from sparseattn.demo.patterns import triangle


@dataclass(frozen=True)
class Reading:
    """One text read through one pattern: share of the causal pairs, seconds over all layers, bits per byte."""

    pairs: float
    attention: float
    choosing: float
    bits: float


class CountedAttention:
    """The model's attention through `choose(layer, q, k)`, which gives a Pattern; adds up pairs and seconds."""

    def __init__(self, choose):
        self.choose = choose
        self.pairs = []
        self.attention = self.choosing = 0.0

    def __call__(self, layer, q, k, v):
        begin = perf_counter()
        pattern = self.choose(layer, q, k)
        pattern.prepare("numba_cpu", backward=False)
        ready = perf_counter()
        out = sa.attend(q, k, v, pattern)
        self.attention += perf_counter() - ready
        self.choosing += ready - begin
        self.pairs.append(pattern.nnz / pattern.n_heads / triangle(len(q[0])))
        return out


def read(model, text, choose):
    """The Reading of a text."""
    attend = CountedAttention(choose)
    bits = bits_per_byte(model(text.tokens, attend), text.tokens, text.start)
    return Reading(float(np.mean(attend.pairs)), attend.attention, attend.choosing, bits)


@dataclass(frozen=True)
class LongRun:
    """One pattern over a long sequence: seconds and peak bytes, and what all causal pairs would have needed."""

    name: str
    n_tokens: int
    pairs: float
    forward: float
    backward: float
    peak: int
    dense_flops: float
    dense_seconds: float
    dense_bytes: int


def long_inputs(n_tokens, n_heads=8, head_dim=64):
    """q, k, v, dout: normal float32 (n_heads, n_tokens, head_dim)."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((n_heads, n_tokens, head_dim), dtype=np.float32) for _ in range(4))


def run_long(name, pattern, q, k, v, dout):
    """Forward and backward once. Dense seconds are at this run's rate; dense bytes are those of stored scores."""
    n_heads, n_tokens, head_dim = q.shape
    pattern.prepare("numba_cpu", backward=True)
    tracemalloc.start()
    begin = perf_counter()
    out, lse = sa.attend(q, k, v, pattern, return_lse=True)
    middle = perf_counter()
    sa.attend_backward(dout, q, k, v, out, lse, pattern)
    end = perf_counter()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pairs = pattern.nnz / pattern.n_heads / triangle(n_tokens)
    return LongRun(
        name=name,
        n_tokens=n_tokens,
        pairs=pairs,
        forward=middle - begin,
        backward=end - middle,
        peak=peak + 4 * q.nbytes,
        dense_flops=(4 + 10) * head_dim * triangle(n_tokens) * float(n_heads),
        dense_seconds=(end - begin) / pairs,
        dense_bytes=n_heads * n_tokens * n_tokens * q.itemsize,
    )
