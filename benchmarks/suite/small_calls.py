"""What does a call cost before there is work?"""

import sparseattn as sa
from suite.cases import inputs


class SmallCalls:
    params = (1, 64)
    param_names = ("n_tokens",)

    def setup(self, n_tokens):
        self.q, self.k, self.v, self.dout = inputs(n_tokens, n_heads=1)
        self.pattern = sa.patterns.dense(n_tokens).prepare()
        self.out, self.lse = sa.attend(self.q, self.k, self.v, self.pattern, return_lse=True)
        self.time_attend_backward()

    def time_attend(self, *_):
        sa.attend(self.q, self.k, self.v, self.pattern)

    def time_attend_backward(self, *_):
        sa.attend_backward(self.dout, self.q, self.k, self.v, self.out, self.lse, self.pattern)
