"""How fast is the gradient, by pattern, length and dtype?"""

import sparseattn as sa
from suite import machine
from suite.cases import PATTERNS, flop, inputs
from suite.turns import medians


class Backward:
    params = (list(PATTERNS), [1024, 16384], ["float32", "float16"])
    param_names = ("pattern", "n_tokens", "dtype")
    timeout = 300

    def setup(self, name, n_tokens, dtype):
        self.q, self.k, self.v, self.dout = inputs(n_tokens, dtype)
        self.pattern = PATTERNS[name](n_tokens).prepare()
        self.out, self.lse = sa.attend(self.q, self.k, self.v, self.pattern, return_lse=True)
        self.time_attend_backward()

    def time_attend_backward(self, *_):
        sa.attend_backward(self.dout, self.q, self.k, self.v, self.out, self.lse, self.pattern)

    def track_rate(self, *_):
        return flop(self.pattern, 10) / medians({"": self.time_attend_backward}, 5, 0.0)[""] / 1e9

    track_rate.unit = "GFLOP/s of useful pairs"

    def track_share(self, *_):
        product, work = machine.matrix_product()
        seconds = medians({"backward": self.time_attend_backward, "product": product}, 5, 0.25)
        return flop(self.pattern, 10) / seconds["backward"] / (work / seconds["product"])

    track_share.unit = "of the matrix-product rate"
