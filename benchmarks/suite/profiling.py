"""Is a profile still cheap beside dense attention of the same queries?"""

import numpy as np

import sparseattn as sa

from suite.turns import medians


HEADS = {2048: 1, 16384: 1, 32768: 8}  # by tokens


class Profile:
    """Seconds of a profile without candidates over those of dense attention of the queries it looks at, one thread."""

    params = (list(HEADS), [64, 128], [False, True])
    param_names = ("n_tokens", "head_dim", "causal")

    def setup(self, n_tokens, head_dim, causal):
        """Inputs, and the dense rows as a pattern."""
        shape = (2, 1, HEADS[n_tokens], n_tokens, head_dim)
        self.q, self.k = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        rows = self.profile(causal).row_positions
        stops = rows + 1 if causal else np.full(rows.size, n_tokens)
        self.rows = np.ascontiguousarray(self.q[:, :, rows])
        self.pattern = sa.Pattern.from_ranges(np.zeros(rows.size, int), stops, n_tokens)

    def profile(self, causal):
        """One profile."""
        with sa.threads(1):
            return sa.profile(self.q, self.k, causal=causal, candidates=[])

    def dense(self):
        """Dense attention of its rows."""
        with sa.threads(1):
            return sa.attend(self.rows, self.k, self.k, self.pattern)

    def track_ratio(self, n_tokens, head_dim, causal):
        """Of medians, taken in turns."""
        seconds = medians({"profile": lambda: self.profile(causal), "dense": self.dense}, repeats=5, pause=0.05)
        return seconds["profile"] / seconds["dense"]

    track_ratio.unit = "times dense"
