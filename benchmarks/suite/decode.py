"""How fast is one query over a cache, by group and head_dim, and what does a growing cache add?"""

import numpy as np

import sparseattn as sa
from suite import machine
from suite.cases import HEADS, inputs
from suite.turns import medians


class Decode:
    params = ([1, 4, 8], [64, 128], [1024, 32768])
    param_names = ("query heads a key-value head", "head_dim", "n_keys")
    timeout = 300

    def setup(self, group, head_dim, n_keys):
        self.k, self.v = inputs(n_keys, count=2, head_dim=head_dim)
        self.q = np.random.default_rng(1).standard_normal((1, HEADS * group, 1, head_dim), dtype=np.float32)
        self.pattern = sa.patterns.dense(1, n_keys).prepare(backward=False)
        self.time_step()

    def time_step(self, *_):
        sa.attend(self.q, self.k, self.v, self.pattern)

    def time_step_with_new_pattern(self, group, head_dim, n_keys):
        sa.attend(self.q, self.k, self.v, sa.patterns.causal(1, n_keys))

    def track_bandwidth(self, *_):
        return (self.k.nbytes + self.v.nbytes) / medians({"": self.time_step}, 5, 0.0)[""] / 1e9

    track_bandwidth.unit = "GB/s"

    def track_share(self, *_):
        read, n_bytes = machine.read()
        seconds = medians({"step": self.time_step, "read": read}, 5, 0.05)
        return (self.k.nbytes + self.v.nbytes) / seconds["step"] / (n_bytes / seconds["read"])

    track_share.unit = "of the rate of reading memory"
