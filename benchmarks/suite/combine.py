"""How long does set algebra take over a million tokens?"""

import operator

import numpy as np

import sparseattn as sa

OPERATIONS = {"|": operator.or_, "&": operator.and_, "-": operator.sub}


def _padding(n_tokens):
    valid = np.ones((1, n_tokens), bool)
    valid[:, -1000:] = False
    return sa.patterns.padding(valid)


OTHERS = {
    "causal": sa.patterns.causal,
    "padding": _padding,
    "global tokens": lambda n: sa.patterns.global_tokens(n, np.arange(64) * (n // 64)),
}


class Combine:
    """A window of 512 keys on each side with another pattern."""

    params = (list(OPERATIONS), list(OTHERS), [16384, 1048576])
    param_names = ("operation", "other", "n_tokens")
    timeout = 300

    def setup(self, operation, other, n_tokens):
        self.combine = OPERATIONS[operation]
        self.window = sa.patterns.sliding_window(n_tokens, left=512, right=512)
        self.other = OTHERS[other](n_tokens)

    def time_combine(self, *_):
        self.combine(self.window, self.other)
