"""How fast is attend, by pattern, length and dtype?"""

import sparseattn as sa
from suite import machine
from suite.cases import PATTERNS, flop, inputs
from suite.turns import medians


class Forward:
    params = (list(PATTERNS), [1024, 16384], ["float32", "float16"])
    param_names = ("pattern", "n_tokens", "dtype")
    timeout = 300

    def setup(self, name, n_tokens, dtype):
        self.q, self.k, self.v = inputs(n_tokens, dtype, count=3)
        self.pattern = PATTERNS[name](n_tokens).prepare(backward=False)
        self.time_attend()

    def time_attend(self, *_):
        sa.attend(self.q, self.k, self.v, self.pattern)

    def track_rate(self, *_):
        return flop(self.pattern, 4) / medians({"": self.time_attend}, 5, 0.0)[""] / 1e9

    track_rate.unit = "GFLOP/s of useful pairs"

    def track_share(self, *_):
        product, work = machine.matrix_product()
        seconds = medians({"attend": self.time_attend, "product": product}, 5, 0.25)
        return flop(self.pattern, 4) / seconds["attend"] / (work / seconds["product"])

    track_share.unit = "of the matrix-product rate"
