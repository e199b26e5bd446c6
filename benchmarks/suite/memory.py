"""How much memory does a call need? Each peak has an empty twin: the same process without the call."""

import sparseattn as sa
from suite.cases import PATTERNS, inputs


class PeakMemory:
    """Peaks are of the whole process: subtract that of `peakmem_empty`, which holds the same arrays."""

    params = (["window 256", "strided 128"], [16384, 131072])
    param_names = ("pattern", "n_tokens")
    timeout = 300

    def setup(self, name, n_tokens):
        self.q, self.k, self.v, self.dout = inputs(n_tokens, n_heads=2)
        sa.warm()

    def peakmem_empty(self, *_):
        pass

    def peakmem_forward(self, name, n_tokens):
        sa.attend(self.q, self.k, self.v, PATTERNS[name](n_tokens))

    def peakmem_forward_backward(self, name, n_tokens):
        sa.vjp(self.q, self.k, self.v, PATTERNS[name](n_tokens))[1](self.dout)


class PeakMemoryOfBuild:
    """A window with global tokens over a million tokens, cut by a causal mask; and without."""

    n_tokens = 1048576

    def peakmem_empty(self):
        pass

    def peakmem_build(self):
        n = self.n_tokens
        window = sa.patterns.sliding_window(n, left=511, right=511)
        (window | sa.patterns.global_tokens(n, range(64))) & sa.patterns.causal(n)
