"""The gradients that many rows and tiles add to, of a bias and of sinks: what kernels add up in, what becomes of it."""

from __future__ import annotations

import math

from sparseattn.kernels.gpu.terms import BY_CLIPPED, BY_TABLE, OWN_VALUE
from sparseattn.xp import namespace


class Summed:
    """Those gradients of a call that are summed over rows and tiles: of its bias and of its sinks."""

    def __init__(self, options, shaped):
        self.whole = WholeSums(shaped.draws[1])
        self.bias = None if shaped.bias is None else BiasGradient(options.bias, shaped.bias, self.whole)
        self.sinks = None if options.sinks is None else SinkGradient(options.sinks, self.whole)

    def constants(self):
        """What kernels are told of them."""
        return {"BIAS_GRAD": self.bias.bias.gradient if self.bias else 0, "ROW_SUMS": int(self.sinks is not None)}

    def begin(self, arrays):
        """Add what the kernels add up in to the arrays of the call, which hold the squares of lengths by now."""
        for gradient in (self.whole, self.bias, self.sinks):
            if gradient:
                gradient.begin(arrays)


class WholeSums:
    """The size of the grains that gradients are summed in, as whole numbers of 64 bits: equal sums in any order."""

    def __init__(self, kept):
        self.kept = kept

    def begin(self, arrays):
        """Add the grain, grains to a unit, to a call's arrays, which hold the squares of the lengths of dout and v."""
        dlse, xp = arrays["dlse"], namespace(arrays["dout"])
        rows, most = math.prod(arrays["dout"].shape[:3]), xp.ones((), xp.float64)
        if rows and arrays["v"].size:
            # no weights of a row add up to more than 1, so neither dP nor delta, nor their sum over a row, exceeds this
            squares = [_largest(arrays[name][..., 1]) for name in ("dout squares", "v squares")]
            most = (2 * self.kept) * xp.sqrt(squares[0] * squares[1]) + 1e-25
            most = most if dlse is None else most + _largest(abs(dlse))
        # a tile's sums have two parts of 32 bits, and kernels add up to four numbers before those are made
        self.grain = xp.exp2(min(36, 60 - math.ceil(math.log2(max(rows, 1)))) - xp.ceil(xp.log2(most))).reshape(1)
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
        term, bias, xp = self.term, self.bias, namespace(sums)
        if bias.kind == BY_CLIPPED:
            by_label = xp.zeros(term.values.shape, xp.uint64)
            xp.add.at(by_label, (..., term.labels), sums.view(xp.uint64))
            sums = by_label.view(xp.int64)
        elif bias.kind == BY_TABLE and not term.spare:
            sums = sums[..., 1:-1]
        if bias.gradient != OWN_VALUE:
            sums = self.whole.total(sums)
        return sums.reshape(term.values.shape).astype(term.values.dtype)


class SinkGradient:
    """The gradient of sinks.

    A sink has no value, so what reaches its score is -share * (sum(dout * out) - dlse): its row's gradients and that
    add up to dlse.
    """

    def __init__(self, sinks, whole):
        self.sinks, self.whole = sinks, whole

    def begin(self, arrays):
        """Add the sums of rows, still 0, to the arrays of a call."""
        xp = namespace(arrays["lse"])
        arrays["row_sums"] = xp.zeros(arrays["lse"].shape, xp.int64)

    def finish(self, arrays):
        """The gradient. lse of -inf: nothing was attended, sink included.

        Of an `out` that is rounded, delta = sum(dout * out) - dlse is off by an e, and the row's sum of gradients by
        (share - 1) e. So (1 - share) delta + sum, which is delta + dlse, is off by nothing.
        """
        lse, delta, dlse, xp = arrays["lse"], arrays["stats"][..., 1], arrays["dlse"], namespace(arrays["lse"])
        shares = xp.exp(xp.where(lse == -xp.inf, -xp.inf, self.sinks[:, None] - xp.where(lse == -xp.inf, 0, lse)))
        reached = (1 - shares) * delta + self.whole.total(arrays["row_sums"]) - (0 if dlse is None else dlse)
        return -(shares * reached).sum(axis=(0, 2), dtype=xp.float64).astype(self.sinks.dtype)


def _largest(x):
    """The maximum in two steps: one would have a single thread block of a GPU read it all."""
    return x.max(axis=-1).max().astype("float64")
