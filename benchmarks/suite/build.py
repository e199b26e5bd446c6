"""How long does making a pattern take, and making ready what the kernels read of it?"""

from suite.families import FAMILIES

QUADRATIC = ("deepspeed",)  # a layout of all blocks: not for a million tokens


class Build:
    params = (list(FAMILIES), [16384, 1048576])
    param_names = ("family", "n_tokens")
    timeout = 300

    def setup(self, family, n_tokens):
        if n_tokens > 1 << 17 and family.startswith(QUADRATIC):
            raise NotImplementedError(f"{family} takes time and memory of n_tokens squared")
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
