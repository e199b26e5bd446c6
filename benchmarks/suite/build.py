"""How long does making a pattern take, and making ready what the kernels read of it?"""

import numpy as np

import sparseattn as sa

FAMILIES = {
    "causal": sa.patterns.causal,
    "window": lambda n: sa.patterns.sliding_window(n, left=511),
    "dilated": lambda n: sa.patterns.sliding_window(n, left=63, dilation=8),
    "strided": lambda n: sa.patterns.strided(n, stride=128),
    "bigbird": sa.patterns.bigbird,
    "buckets": lambda n: sa.Pattern.from_buckets(*[np.random.default_rng(0).integers(0, n // 64, n)] * 2),
}


class Build:
    params = (list(FAMILIES), [16384, 1048576])
    param_names = ("family", "n_tokens")
    timeout = 300

    def setup(self, family, n_tokens):
        self.make = FAMILIES[family]
        self.make(1024).prepare()

    def time_build(self, _, n_tokens):
        self.make(n_tokens)


class Prepare:
    """The build and the derived data: structure of the tiles, its transpose, the work order."""

    params = (list(FAMILIES), [16384])
    param_names = ("family", "n_tokens")
    timeout = 300

    def setup(self, family, n_tokens):
        self.make = FAMILIES[family]
        self.make(1024).prepare()

    def time_build_and_prepare(self, _, n_tokens):
        self.make(n_tokens).prepare()
