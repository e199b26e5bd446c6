"""The options of a call as kernels take them: a bias as flat memory and a code a token, dropout as a first word to mix.

The place of a pair's value is the sum of its tokens' codes: positions in memory for an array, offsets for a table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sparseattn.kernels.gpu.plan import MOST, MOST_PLACES, contiguous_steps
from sparseattn.options import Options
from sparseattn.structure import Array
from sparseattn.xp import namespace

NEAR = 1 << 30  # places below it are 32-bit numbers
ANYWHERE = 2 * NEAR - 1  # no limit of them
TOGETHER = 16  # places that take turns: enough to share what they read, few enough to keep their keys in the cache
WRAP = 0xFFFFFFFF  # draws are numbers modulo 2**32
BY_CODE, BY_LABEL, BY_TABLE, BY_CLIPPED = 1, 2, 3, 4  # kinds of bias; see the kernels
OWN_VALUE, BY_VALUE, BY_SUM = 1, 2, 3  # how gradients are summed: not, by value, by sum of codes


class FlatBias(NamedTuple):
    """A `Term` as flat memory; see the kernels."""

    kind: int
    values: Array | None  # float32; None like labels before a call has its own
    # int64 (batch, n_heads, 4): where a head's values begin, what its codes move by, where its labels and sums begin
    value_at: Array
    labels: Array | None  # int32
    q_codes: Array
    k_codes: Array
    low: int
    high: int
    q_step: int
    k_step: int
    gradient: int
    sums: tuple  # the shape of the sums of gradients
    lead: tuple | None = None  # (1 | batch, 1 | n_heads) of what has a number of its own for each pair

    @property
    def shared(self):
        """Whether all batch items have the same numbers, and all heads."""
        return tuple(size == 1 for size in self.lead)


class Shaping(NamedTuple):
    """What kernels are told of a call's options."""

    constants: dict
    softcap: float
    bias: FlatBias | None
    draws: tuple  # limit, kept, word of dropout

    @property
    def kind(self):
        """What calls with equal options have in common, whatever the seed of dropout."""
        b = self.bias
        own = () if b is None else (b.low, b.high, b.q_step, b.k_step, b.gradient, b.lead)
        return self.softcap, *self.draws[:2], *self.constants.values(), *own

    @property
    def arrays(self):
        """What the arguments name: the arrays of a call, and the word of its dropout."""
        named = {} if self.bias is None else {name: getattr(self.bias, name) for name in NAMED}
        return named | {"word": self.draws[2]}

    def arguments(self, kv):
        """The kernels' arguments; with keys as stationary rows the sides change places."""
        b = self.bias
        if b is None:
            return self.softcap, None, None, None, None, None, 0, 0, 0, 0, *self.draws[:2], "word"
        values, value_at, labels, *sides = NAMED
        steps = b.q_step, b.k_step
        if kv:
            sides, steps = sides[::-1], steps[::-1]
        return self.softcap, values, value_at, labels, *sides, b.low, b.high, *steps, *self.draws[:2], "word"

    def turns(self, n_places, batch):
        """(together, apart): how many places, batch item after batch item, take turns item by item because they read
        the same numbers, and how many lie from one of them to the next."""
        if self.bias is None or self.bias.lead is None or n_places > MOST_PLACES:
            return 1, 1
        by_batch, by_heads = self.bias.shared
        if by_heads:
            return min(n_places if by_batch else n_places // batch, TOGETHER), 1
        return (batch, n_places // batch) if by_batch else (1, 1)


NAMED = "values", "value_at", "labels", "q_codes", "k_codes"
NO_DRAWS = 0, 1.0, 0
PLAIN = Shaping({"SHAPED": 0, "SOFTCAP": 0, "BIAS": 0, "CODE64": 0, "DROPOUT": 0}, 0.0, None, NO_DRAWS)
SCALED = Shaping({**PLAIN.constants, "SHAPED": 1}, 0.0, None, NO_DRAWS)  # a scale <= 0 reverses what is largest


def shaping(options: Options, scale, pattern, batch, n_heads) -> Shaping:
    """The options of a call of these sizes."""
    if options.bias is None and not options.softcap and not options.dropout:
        return PLAIN if scale > 0 else SCALED
    bias = None if options.bias is None else flat_bias(options.bias, pattern, batch, n_heads)
    shaped = int(bias is not None or options.softcap > 0 or scale <= 0)
    wide = int(bias is not None and bias.q_codes.dtype.itemsize == 8)
    constants = {"SHAPED": shaped, "SOFTCAP": int(options.softcap > 0), "BIAS": 0 if bias is None else bias.kind,
                 "CODE64": wide, "DROPOUT": int(options.dropout > 0)}
    return Shaping(constants, float(options.softcap), bias, _draws(options))


def _draws(options):
    """(limit, kept, word) of dropout."""
    if not options.dropout:
        return NO_DRAWS
    word = _draw(_draw(0, options.seed & WRAP), options.seed >> 32)
    # an integer is below dropout * 2**32 where it is at most one less than the next integer
    return math.ceil(options.dropout * 2**32) - 1, 1 / (1 - options.dropout), word


def _draw(word, number):
    """murmur3's finaliser of word + 0x9E3779B9 * number."""
    h = (word + 0x9E3779B9 * number) & WRAP
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & WRAP
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & WRAP
    return h ^ (h >> 16)


def flat_bias(term, pattern, batch, n_heads) -> FlatBias:
    """A `Term` for a call of these sizes as flat memory. What does not depend on values is kept on the pattern."""
    xp = namespace(term.values)
    values = xp.ascontiguousarray(term.values)
    labels = None if term.labels is None else xp.ascontiguousarray(term.labels)
    shapes = values.shape, None if labels is None else labels.shape
    codes = _Same((term.q_codes, term.k_codes, term.shift))
    kept, key = pattern.memo.get("gpu bias", dict), (batch, n_heads, *shapes, term.spare, codes)
    flat = kept.get(key)
    if flat is None:
        if len(kept) >= MOST:
            kept.clear()
        flat = kept[key] = _layout(xp, term, *shapes, batch, n_heads, *pattern.shape)
    if flat.kind == BY_TABLE and not term.spare:
        values = _edged(xp, values)
    elif flat.kind == BY_CLIPPED:
        values, labels = values[..., labels], None
    return flat._replace(values=values, labels=labels)


class _Same:
    """Arrays as a key: equal to the same ones alone, which live as long as the key does and are never changed."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __hash__(self):
        return hash(tuple(map(id, self.arrays)))

    def __eq__(self, other):
        return all(a is b for a, b in zip(self.arrays, other.arrays))


def _edged(xp, values):
    """Tables with a zero on both sides."""
    edged = xp.zeros((*values.shape[:3], values.shape[3] + 2), values.dtype)
    edged[..., 1:-1] = values
    return edged


def _layout(xp, term, shape, labels, *sizes):
    """A `Term` of values and labels of these shapes as flat memory, without both."""
    if labels is None:
        return _array(xp, shape, *sizes) if term.q_codes is None else _table(xp, term, shape, *sizes)
    return _of_pairs(xp, shape, labels, *sizes) if term.q_codes is None else _of_codes(xp, term, shape, labels, *sizes)


def _array(xp, shape, batch, n_heads, n_queries, n_keys):
    """One value a pair, or a row or a column of them for all."""
    steps = _steps(shape)
    at = _value_at(xp, batch, n_heads, *steps[:2])
    own = shape == (batch, n_heads, n_queries, n_keys)
    codes = _codes(xp, n_queries, n_keys, *steps[2:])
    return FlatBias(BY_CODE, None, at, None, *codes, 0, 0, 0, 0, OWN_VALUE if own else BY_VALUE, shape, shape[:2])


def _table(xp, term, shape, batch, n_heads, *_):
    """A table by code, with a zero on both sides; as it is where codes lie within and its last place is spare."""
    if term.spare:
        at = _value_at(xp, batch, n_heads, *_steps(shape)[:2])
        at[:, :, 1] = term.shift[:, None]
        return FlatBias(BY_TABLE, None, at, None, *_as(xp.int32, term), -1, shape[3] - 1, 0, 0, BY_SUM, shape)
    edged = (*shape[:3], shape[3] + 2)
    at = _value_at(xp, batch, n_heads, *_steps(edged)[:2])
    at[:, :, 1] = term.shift[:, None] + 1
    return FlatBias(BY_TABLE, None, at, None, *_as(xp.int32, term), 0, edged[3] - 1, 0, 0, BY_SUM, edged)


def _of_codes(xp, term, shape, labels, batch, n_heads, *_):
    """A table by code, of what the labels of codes have; or a table a query, by the labels of codes."""
    (*lead, n_tables, n_labels), (n_codes,) = shape, labels
    by_code = (*lead, 1, n_codes)
    at = _value_at(xp, batch, n_heads, *_steps(by_code if n_tables == 1 else shape)[:2])
    at[:, :, 1] = term.shift[:, None]
    if n_tables == 1:
        return FlatBias(BY_CLIPPED, None, at, None, *_as(xp.int32, term), 0, n_codes - 1, 0, 0, BY_SUM, by_code)
    codes = _as(xp.int64 if n_tables * n_labels >= NEAR else xp.int32, term)
    return FlatBias(BY_LABEL, None, at, None, *codes, 0, n_codes - 1, n_labels, 0, BY_VALUE, shape)


def _of_pairs(xp, shape, labels, batch, n_heads, n_queries, n_keys):
    """A table, or one a query, by the labels of pairs."""
    n_tables, n_labels = shape[2:]
    steps = _steps(labels)
    at = _value_at(xp, batch, n_heads, *_steps(shape)[:2])
    at[:, :, 2] = _value_at(xp, batch, n_heads, *steps[:2])[:, :, 0]
    codes = _codes(xp, n_queries, n_keys, *steps[2:], wide=n_tables * n_labels >= NEAR)
    most = ANYWHERE if codes[0].dtype == xp.int32 else ANYWHERE**2
    return FlatBias(BY_LABEL, None, at, None, *codes, -most, most, 0 if n_tables == 1 else n_labels, 0, BY_VALUE, shape,
                    labels[:2])


def _value_at(xp, batch, n_heads, batch_step, head_step):
    """value_at with these steps between batch items and heads."""
    at = xp.zeros((batch, n_heads, 4), xp.int64)
    at[:, :, 0] = xp.arange(batch)[:, None] * batch_step + xp.arange(n_heads) * head_step
    at[:, :, 3] = at[:, :, 0]
    return at


def _steps(shape):
    """The numbers between neighbours along each axis of a contiguous array; 0 where all share what it has."""
    return [0 if size == 1 else step for size, step in zip(shape, (*contiguous_steps(shape), 1))]


def _codes(xp, n_queries, n_keys, q_step, k_step, wide=False):
    """Codes of tokens that lie such steps apart, in 32 bits where no sum of two needs more."""
    dtype = xp.int32 if not wide and n_queries * q_step + n_keys * k_step < NEAR else xp.int64
    return (xp.arange(n_queries, dtype=dtype) * dtype(q_step), xp.arange(n_keys, dtype=dtype) * dtype(k_step))


def _as(dtype, term):
    """A table's codes, which count tokens or places of a grid and so need no more than 32 bits by themselves."""
    return term.q_codes.astype(dtype), term.k_codes.astype(dtype)
