"""The options of a call as kernels take them: a bias as flat memory and a code a token, dropout as a first word to mix.

The place of a pair's value is the sum of its tokens' codes: positions in memory for an array, offsets for a table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sparseattn.options import Options
from sparseattn.structure import Array
from sparseattn.xp import namespace

NEAR = 1 << 30  # places below it are 32-bit numbers
ANYWHERE = 2 * NEAR - 1  # no limit of them
WRAP = 0xFFFFFFFF  # draws are numbers modulo 2**32
BY_CODE, BY_LABEL, BY_TABLE = 1, 2, 3  # kinds of bias
OWN_VALUE, BY_VALUE, BY_SUM = 1, 2, 3  # how gradients are summed: not, by value, by sum of codes


class FlatBias(NamedTuple):
    """A `Term` as flat memory; see the kernels."""

    kind: int
    values: Array  # float32
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


class Shaping(NamedTuple):
    """What kernels are told of a call's options."""

    constants: dict
    softcap: float
    bias: FlatBias | None
    draws: tuple  # limit, kept, word of dropout

    @property
    def kind(self):
        """What calls with equal options have in common; None where the next call's are others."""
        return (self.softcap, self.constants["SHAPED"]) if self.bias is None and self.draws == NO_DRAWS else None

    def arguments(self, kv):
        """The kernels' arguments; with keys as stationary rows the sides change places."""
        b = self.bias
        if b is None:
            return self.softcap, None, None, None, None, None, 0, 0, 0, 0, *self.draws
        sides = (b.k_codes, b.q_codes) if kv else (b.q_codes, b.k_codes)
        steps = (b.k_step, b.q_step) if kv else (b.q_step, b.k_step)
        return self.softcap, b.values, b.value_at, b.labels, *sides, b.low, b.high, *steps, *self.draws


NO_DRAWS = 0, 1.0, 0
PLAIN = Shaping({"SHAPED": 0, "SOFTCAP": 0, "BIAS": 0, "CODE64": 0, "DROPOUT": 0}, 0.0, None, NO_DRAWS)
SCALED = Shaping({**PLAIN.constants, "SHAPED": 1}, 0.0, None, NO_DRAWS)  # a scale <= 0 reverses what is largest


def shaping(options: Options, scale, batch, n_heads, n_queries, n_keys) -> Shaping:
    """The options of a call of these sizes."""
    if options.bias is None and not options.softcap and not options.dropout:
        return PLAIN if scale > 0 else SCALED
    bias = None if options.bias is None else flat_bias(options.bias, batch, n_heads, n_queries, n_keys)
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


def flat_bias(term, batch, n_heads, n_queries, n_keys) -> FlatBias:
    """A `Term` for a call of these sizes as flat memory."""
    sizes = batch, n_heads, n_queries, n_keys
    if term.labels is not None:
        return _labelled(term, *sizes)
    return _array(term.values, *sizes) if term.q_codes is None else _table(term, batch, n_heads)


def _array(values, batch, n_heads, n_queries, n_keys):
    """One value a pair, or a row or a column of them for all."""
    xp, values = namespace(values), namespace(values).ascontiguousarray(values)
    steps = [0 if size == 1 else step // values.itemsize for size, step in zip(values.shape, values.strides)]
    at = _value_at(xp, batch, n_heads, steps[0], steps[1])
    own = values.shape == (batch, n_heads, n_queries, n_keys)
    codes = _codes(xp, n_queries, n_keys, steps[2], steps[3])
    return FlatBias(BY_CODE, values, at, None, *codes, 0, 0, 0, 0, OWN_VALUE if own else BY_VALUE, values.shape)


def _table(term, batch, n_heads):
    """A table by code, with a zero on both sides."""
    xp, lead, size = namespace(term.values), term.values.shape[:2], term.values.shape[3]
    values = xp.zeros((*lead, size + 2), term.values.dtype)
    values[:, :, 1:-1] = term.values[:, :, 0]
    at = _value_at(xp, batch, n_heads, *_steps(lead, size + 2))
    at[:, :, 1] = term.shift[:, None] + 1
    return FlatBias(BY_TABLE, values, at, None, *_narrow(xp, term), 0, size + 1, 0, 0, BY_SUM, values.shape)


def _labelled(term, batch, n_heads, n_queries, n_keys):
    """A table, or one a query, by the labels of pairs or of codes."""
    xp, values, labels = namespace(term.values), namespace(term.values).ascontiguousarray(term.values), term.labels
    lead, n_tables, n_labels = values.shape[:2], values.shape[2], values.shape[3]
    at = _value_at(xp, batch, n_heads, *_steps(lead, n_tables * n_labels))
    wide, q_step, labels = n_tables * n_labels >= NEAR, 0 if n_tables == 1 else n_labels, xp.ascontiguousarray(labels)
    if labels.ndim == 1:
        at[:, :, 1] = term.shift[:, None]
        codes, by, sums = _narrow(xp, term), BY_VALUE, values.shape
        if wide:
            codes = tuple(code.astype(xp.int64) for code in codes)
        if n_tables == 1:
            by, sums = BY_SUM, (*lead, labels.size)
            at[:, :, 3] = _value_at(xp, batch, n_heads, *_steps(lead, labels.size))[:, :, 0]
        return FlatBias(BY_LABEL, values, at, labels, *codes, 0, labels.size - 1, q_step, 0, by, sums)
    steps = [0 if size == 1 else step // 4 for size, step in zip(labels.shape, labels.strides)]
    at[:, :, 2] = _value_at(xp, batch, n_heads, steps[0], steps[1])[:, :, 0]
    codes = _codes(xp, n_queries, n_keys, steps[2], steps[3], wide)
    most = ANYWHERE if codes[0].dtype == xp.int32 else ANYWHERE**2
    return FlatBias(BY_LABEL, values, at, labels, *codes, -most, most, q_step, 0, BY_VALUE, values.shape)


def _value_at(xp, batch, n_heads, batch_step, head_step):
    """value_at with these steps between batch items and heads."""
    at = xp.zeros((batch, n_heads, 4), xp.int64)
    at[:, :, 0] = xp.arange(batch)[:, None] * batch_step + xp.arange(n_heads) * head_step
    at[:, :, 3] = at[:, :, 0]
    return at


def _steps(lead, size):
    """Steps of a contiguous (1 | batch, 1 | n_heads, size) between batch items and heads."""
    return (lead[1] * size if lead[0] > 1 else 0), (size if lead[1] > 1 else 0)


def _codes(xp, n_queries, n_keys, q_step, k_step, wide=False):
    """Codes of tokens that lie such steps apart, in 32 bits where no sum of two needs more."""
    dtype = xp.int32 if not wide and n_queries * q_step + n_keys * k_step < NEAR else xp.int64
    return (xp.arange(n_queries, dtype=dtype) * dtype(q_step), xp.arange(n_keys, dtype=dtype) * dtype(k_step))


def _narrow(xp, term):
    """A table's codes, which count tokens or places of a grid and so need no more than 32 bits."""
    return term.q_codes.astype(xp.int32), term.k_codes.astype(xp.int32)


class WholeSums:
    """The size of the grains that gradients are summed in, as whole numbers of 64 bits: equal sums in any order."""

    def __init__(self, kept):
        self.kept = kept

    def begin(self, arrays):
        """Add the grain, grains to a unit, to the arrays of a call, which hold `stats` by now."""
        dout, v, stats, xp = arrays["dout"], arrays["v"], arrays["stats"], namespace(arrays["dout"])
        rows = max(math.prod(dout.shape[:3]), 1)
        # no weights of a row add up to more than 1, so no sum of a row's gradients exceeds this
        most = _largest_norm(xp, dout) * _largest_norm(xp, v) * self.kept + _largest(xp, stats[..., 1]) + 1e-25
        # a tile's sums have two parts of 32 bits
        self.grain = xp.exp2(min(38, 60 - math.ceil(math.log2(2 * rows))) - xp.ceil(xp.log2(most))).reshape(1)
        arrays["grain"] = self.grain

    def total(self, sums):
        """The sums as float64."""
        return sums / self.grain


class BiasGradient:
    """The gradient of a term's values while parts of a pattern are added."""

    def __init__(self, term, bias, whole):
        self.term, self.bias, self.whole = term, bias, whole

    def begin(self, arrays):
        """Add the sums, still 0, to the arrays of a call."""
        xp = namespace(arrays["dout"])
        arrays["sums"] = xp.zeros(self.bias.sums, xp.float32 if self.bias.gradient == OWN_VALUE else xp.int64)

    def finish(self, sums):
        """The gradient in the shape and dtype of the values."""
        bias, xp = self.bias, namespace(sums)
        if bias.kind == BY_LABEL and bias.gradient == BY_SUM:
            by_label = xp.zeros((*sums.shape[:2], self.term.values.shape[3]), xp.uint64)
            xp.add.at(by_label, (..., bias.labels), sums.view(xp.uint64))
            sums = by_label.view(xp.int64)
        if bias.gradient != OWN_VALUE:
            sums = self.whole.total(sums)
        if bias.kind == BY_TABLE:
            sums = sums[..., 1:-1]
        return sums.reshape(self.term.values.shape).astype(self.term.values.dtype)


class SinkGradient:
    """The gradient of sinks.

    A sink has no value, so what reaches its score is -share * (sum(dout * out) - dlse): a row's gradients add up to dlse.
    """

    def __init__(self, sinks, whole):
        self.sinks, self.whole = sinks, whole

    def begin(self, arrays):
        """Add the sums of rows, still 0, to the arrays of a call."""
        xp = namespace(arrays["lse"])
        arrays["row_sums"] = xp.zeros(arrays["lse"].shape, xp.int64)

    def finish(self, arrays):
        """The gradient. lse of -inf: nothing was attended, sink included.

        Of an `out` that is rounded, delta = sum(dout * out) - dlse is off by an e. Then a row's sum is off by -(1 - share) e,
        and (1 - share) delta + sum, which is delta + dlse otherwise, by nothing.
        """
        lse, delta, dlse, xp = arrays["lse"], arrays["stats"][..., 1], arrays["dlse"], namespace(arrays["lse"])
        shares = xp.exp(xp.where(lse == -xp.inf, -xp.inf, self.sinks[:, None] - xp.where(lse == -xp.inf, 0, lse)))
        reached = (1 - shares) * delta + self.whole.total(arrays["row_sums"]) - (0 if dlse is None else dlse)
        return -(shares * reached).sum(axis=(0, 2), dtype=xp.float64).astype(self.sinks.dtype)


def _largest(xp, x):
    return xp.where(xp.isfinite(x), abs(x), 0).max().astype(xp.float64) if x.size else xp.zeros((), xp.float64)


def _largest_norm(xp, x):
    """Largest length of a row; rows that hold something infinite are nobody's, or all is lost anyway."""
    x = x.astype(xp.float32)
    return xp.sqrt(_largest(xp, (x * x).sum(axis=-1)))
