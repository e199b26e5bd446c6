"""The options of a call as kernels take them: a bias as flat memory and a code a token, dropout as a first word to mix.

The place of a pair's value is the sum of its tokens' codes: positions in memory for an array, offsets for a table.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = Any

ANYWHERE = 1 << 62  # no limit of places
WRAP = 0xFFFFFFFF  # draws are numbers modulo 2**32


class FlatOptions(NamedTuple):
    """What a kernel reads of options, for tiles with queries in their lanes and keys in their rows, or the reverse."""

    softcap: float  # 0: none
    values: Array  # of a bias, flat; empty: no bias
    value_at: Array  # int64 (batch, n_heads, 3): where a head's values begin, its codes move by, its labels begin
    labels: Array  # int32, flat; empty: a code is the place of a value
    row_codes: Array  # int64, one a token
    lane_codes: Array
    reach: Array  # int64 (4,): lowest and highest place, steps in the values from token to token of rows and of lanes
    limit: int  # a pair whose draw is at most this is dropped; -1: no dropout
    kept: float  # factor of the others
    word: int  # draws begin with it


@dataclass(frozen=True, eq=False)
class Slices:
    """How gradients of a bias are laid out while kernels add to them.

    size 0: as the values are, each pair has a place of its own. Else every owner has a slice of `size` numbers a head,
    of which `margin` at both ends only save the kernels a check.
    """

    size: int
    margin: int
    shared: bool  # heads or batch items add to the same places


@dataclass(frozen=True, eq=False)
class FlatBias:
    """A `Term` as flat memory, see FlatOptions."""

    values: Array
    at: Array
    labels: Array
    q_codes: Array
    k_codes: Array
    low: int
    high: int
    q_step: int
    k_step: int
    slices: Slices


@functools.cache
def _no_bias(dtype):
    none, long = np.empty(0, np.int64), np.empty((0, 0, 3), np.int64)
    return FlatBias(np.empty(0, dtype), long, np.empty(0, np.int32), none, none, 0, 0, 0, 0, Slices(0, 0, False))


@functools.cache
def _plain(dtype):
    """Both orientations of a call without options."""
    return 2 * (_flat(_no_bias(dtype), 0.0, (-1, 1.0, 0), True),)


def flat_options(options, bias, dtype):
    """(queries in lanes, keys in lanes) of a call's options and its bias, from `flat_bias`."""
    if bias is None and not options.softcap and not options.dropout:
        return _plain(dtype)
    bias, draws = _no_bias(dtype) if bias is None else bias, _draws(options)
    return tuple(_flat(bias, options.softcap, draws, in_lanes) for in_lanes in (True, False))


def _flat(bias, softcap, draws, queries_in_lanes):
    sides = (bias.k_codes, bias.q_codes, bias.k_step, bias.q_step)
    rows, lanes, row_step, lane_step = sides if queries_in_lanes else (sides[1], sides[0], sides[3], sides[2])
    reach = np.array([bias.low, bias.high, row_step, lane_step], np.int64)
    return FlatOptions(float(softcap), bias.values, bias.at, bias.labels, rows, lanes, reach, *draws)


def _draws(options):
    """(limit, kept, word) of dropout."""
    if not options.dropout:
        return -1, 1.0, 0
    word = draw(draw(0, options.seed & WRAP), options.seed >> 32)
    # an integer is below dropout * 2**32 where it is at most one less than the next integer
    return math.ceil(options.dropout * 2**32) - 1, 1 / (1 - options.dropout), word


def draw(word, number):
    """The next word of a draw: murmur3's finaliser of word + 0x9E3779B9 * number. Kernels compile this function too."""
    h = (word + 0x9E3779B9 * number) & WRAP
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & WRAP
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & WRAP
    return h ^ (h >> 16)


def flat_bias(term, batch, n_heads, n_queries, n_keys, lanes):
    """A `Term` for a call of these sizes as flat memory; None where there is none."""
    if term is None:
        return None
    sizes = batch, n_heads, n_queries, n_keys
    if term.labels is not None:
        return _labelled(term, *sizes)
    return _array(term.values, *sizes) if term.q_codes is None else _table(term, *sizes, lanes)


def _array(values, batch, n_heads, n_queries, n_keys):
    """One value a pair, or a row or a column of them for all."""
    full = values.shape[2:] == (n_queries, n_keys)
    values = _together(values) if full else np.ascontiguousarray(values)
    steps = [0 if size == 1 else step // values.itemsize for size, step in zip(values.shape, values.strides)]
    at = _lead(batch, n_heads, steps[0], steps[1])
    shared = values.shape[0] < batch or values.shape[1] < n_heads
    slices = Slices(0, 0, shared) if full else Slices(values.shape[2] * values.shape[3], 0, False)
    codes = np.arange(n_queries) * steps[2], np.arange(n_keys) * steps[3]
    return FlatBias(_memory(values), at, np.empty(0, np.int32), *codes, -ANYWHERE, ANYWHERE, 0, 0, slices)


def _table(term, batch, n_heads, n_queries, n_keys, lanes):
    """A table by code; zeros on both sides, so that a register of them can be read anywhere."""
    lead, size = term.values.shape[:2], term.values.shape[3]
    whole = size + 2 * lanes
    values = np.zeros((*lead, whole), term.values.dtype)
    values[:, :, lanes:lanes + size] = term.values[:, :, 0]
    at = _lead(batch, n_heads, *_steps(lead, whole))
    at[:, :, 0] += lanes
    at[:, :, 1] = term.shift[:, None]
    return FlatBias(values.reshape(-1), at, np.empty(0, np.int32), term.q_codes, term.k_codes, -lanes, size, 0, 0,
                Slices(whole, lanes, False))


def _labelled(term, batch, n_heads, n_queries, n_keys):
    """A table, or one a query, by the labels of pairs or of codes."""
    values, labels = np.ascontiguousarray(term.values), term.labels
    lead, n_tables, n_labels = values.shape[:2], values.shape[2], values.shape[3]
    at = _lead(batch, n_heads, *_steps(lead, n_tables * n_labels))
    slices = Slices(n_tables * n_labels, 0, False)
    q_step = 0 if n_tables == 1 else n_labels
    if labels.ndim == 1:
        at[:, :, 1] = term.shift[:, None]
        return FlatBias(values.reshape(-1), at, np.ascontiguousarray(labels), term.q_codes, term.k_codes, 0,
                    labels.size - 1, q_step, 0, slices)
    labels = _together(labels)
    steps = [0 if size == 1 else step // 4 for size, step in zip(labels.shape, labels.strides)]
    at[:, :, 2] = _lead(batch, n_heads, steps[0], steps[1])[:, :, 0]
    codes = np.arange(n_queries) * steps[2], np.arange(n_keys) * steps[3]
    return FlatBias(values.reshape(-1), at, _memory(labels), *codes, -ANYWHERE, ANYWHERE, q_step, 0, slices)


def _lead(batch, n_heads, batch_step, head_step):
    """value_at with these steps between batch items and heads."""
    at = np.zeros((batch, n_heads, 3), np.int64)
    at[:, :, 0] = np.arange(batch)[:, None] * batch_step + np.arange(n_heads) * head_step
    return at


def _steps(lead, size):
    """Steps of a contiguous (1 | batch, 1 | n_heads, size) between batch items and heads."""
    return (lead[1] * size if lead[0] > 1 else 0), (size if lead[1] > 1 else 0)


def _together(x):
    """The array where its memory is one stretch that it does not repeat, else a copy."""
    fits = all(n == 1 or (step > 0 and step % x.itemsize == 0) for n, step in zip(x.shape, x.strides))
    return x if fits and x.flags.aligned and x.size else np.ascontiguousarray(x)


def _memory(x):
    """All memory from the first to the last number of an array, flat."""
    n = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.strides)) // x.itemsize if x.size else 0
    return np.lib.stride_tricks.as_strided(x, (n,), (x.itemsize,), writeable=False)


class BiasGradient:
    """The gradient of a term's values while parts of a pattern are added; sums are float64, in a fixed order."""

    def __init__(self, term, bias):
        self.term, self.slices = term, bias.slices
        if self.slices.size:
            self.total = np.zeros((*term.values.shape[:2], self.slices.size - 2 * self.slices.margin))
        else:
            self.memory = np.zeros(bias.values.size, bias.values.dtype)
            self.layout = _together(term.values)

    def buffer(self, batch, n_places, n_chunks):
        """Where the kernels add the gradients of a part."""
        if not self.slices.size:
            return self.memory
        return np.zeros(batch * n_places * n_chunks * self.slices.size, self.term.values.dtype)

    def add(self, buffer, heads, batch):
        """Add what the owners of a part have."""
        if not self.slices.size:
            return
        size, margin = self.slices.size, self.slices.margin
        each = buffer.reshape(batch, heads.size, -1, size)[..., margin:size - margin].sum(axis=2, dtype=np.float64)
        if self.total.shape[0] < batch:
            each = each.sum(axis=0, keepdims=True)
        if self.total.shape[1] == 1:
            self.total += each.sum(axis=1, keepdims=True)
        else:
            self.total[:, heads] += each

    def finish(self):
        """The gradient in the shape and dtype of the values."""
        if self.slices.size:
            return self.total.reshape(self.term.values.shape).astype(self.term.values.dtype)
        return np.lib.stride_tricks.as_strided(self.memory, self.layout.shape, self.layout.strides)
