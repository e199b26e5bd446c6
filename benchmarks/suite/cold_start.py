"""How long does a new process wait? Compiled code is on disk."""

import sparseattn as sa

INPUTS = """
import numpy as np, sparseattn as sa
q = np.random.default_rng(0).standard_normal((1, 8, 1024, 64), dtype=np.float32)
"""


class ColdStart:
    """Each sample is a process of its own."""

    number = 1
    repeat = (3, 10, 20.0)

    def setup(self):
        sa.warm()

    def timeraw_import(self):
        return "import sparseattn"

    def timeraw_first_attend(self):
        return "sa.attend(q, q, q, sa.patterns.sliding_window(1024, left=127))", INPUTS

    def timeraw_first_gradient(self):
        return "sa.vjp(q, q, q, sa.patterns.sliding_window(1024, left=127))[1](q)", INPUTS
