"""The gradients that many rows and tiles add to, of a bias and of sinks: what kernels add up in, what becomes of it."""

from __future__ import annotations

import math

from sparseattn.kernels.gpu.terms import BY_CLIPPED, BY_CODE, BY_SUM, BY_TABLE, BY_VALUE, OWN_VALUE
from sparseattn.xp import namespace


class Summed:
    """Those gradients of a call that are summed over rows and tiles: of its bias and of its sinks.

    They are whole numbers of 64 bits, of grains, so that sums are equal in any order. The kernel `grain` says how many
    grains there are to a unit.
    """

    def __init__(self, options, shaped):
        self.bias = None if shaped.bias is None else BiasGradient(options.bias, shaped.bias)
        self.sinks = None if options.sinks is None else SinkGradient(options.sinks)
        self.gradient = self.bias.bias.gradient if self.bias else 0
        # whether sums over rows are needed, which give delta without the rounding of `out`
        self.in_rows = self.sinks is not None or self.gradient in (OWN_VALUE, BY_VALUE)

    def constants(self):
        """What kernels are told of them."""
        return {"BIAS_GRAD": self.gradient, "ROW_SUMS": int(self.in_rows)}

    def begun(self, xp, rows):
        """The arrays that kernels add up in, by name; `rows`: the shape of lse."""
        arrays = {}
        if self.bias or self.sinks:
            arrays["grain"] = xp.empty(1, xp.float64)
        if self.bias:
            arrays["sums"] = self.bias.begun(xp)
        if self.in_rows:
            arrays["row_sums"] = xp.zeros(rows, xp.int64)
        arrays["sinks"] = self.sinks and xp.ascontiguousarray(self.sinks.sinks, xp.float32)
        return arrays


def of_walk(kind, gradient, kv, is_row):
    """What a walk does for the gradient of a bias: many pairs to a sum in the walk over queries; one pair, or a few, in
    that over keys, which is the second one and has delta without the rounding of `out`."""
    if not is_row and has_walk(kind, gradient):
        return 0
    return gradient if (gradient == BY_SUM) != bool(kv) else 0


def has_walk(kind, gradient):
    """Whether tiles have a walk of its own for a gradient: `tile_values`, for an array with values that pairs share."""
    return kind == BY_CODE and gradient == BY_VALUE


def grain_bits(n_rows):
    """Bits of the largest number of grains that a pair may have: no sum over the rows needs more than 60."""
    # a tile's sums have two parts of 32 bits, and kernels add up to four numbers before those are made
    return min(36, 60 - math.ceil(math.log2(max(n_rows, 1))))


class BiasGradient:
    """The gradient of a term's values."""

    def __init__(self, term, bias):
        self.term, self.bias = term, bias

    def begun(self, xp):
        """The sums, still 0."""
        return xp.zeros(self.bias.sums, xp.float32 if self.bias.gradient == OWN_VALUE else xp.int64)

    def finish(self, sums, grain):
        """The gradient in the shape and dtype of the values."""
        term, bias, xp = self.term, self.bias, namespace(sums)
        if bias.kind == BY_CLIPPED:
            by_label = xp.zeros(term.values.shape, xp.uint64)
            xp.add.at(by_label, (..., term.labels), sums.view(xp.uint64))
            sums = by_label.view(xp.int64)
        elif bias.kind == BY_TABLE and not term.spare:
            sums = sums[..., 1:-1]
        if bias.gradient != OWN_VALUE:
            sums = sums / grain
        return sums.reshape(term.values.shape).astype(term.values.dtype)


class SinkGradient:
    """The gradient of sinks.

    A sink has no value, so what reaches its score is -share * (sum(dout * out) - dlse): its row's gradients and that
    add up to dlse.
    """

    def __init__(self, sinks):
        self.sinks = sinks

    def finish(self, lse, delta):
        """The gradient, of the delta that the kernel `deltas` leaves. lse of -inf: nothing was attended, sink included.
        """
        xp = namespace(lse)
        shares = xp.exp(xp.where(lse == -xp.inf, lse, self.sinks[:, None] - lse))
        return -(shares * delta).sum(axis=(0, 2), dtype=xp.float64).astype(self.sinks.dtype)
