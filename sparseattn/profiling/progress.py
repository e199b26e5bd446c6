"""How far long work is, on stderr: by rich where it is installed, else in plain text."""

from __future__ import annotations

import sys
from time import monotonic

PATIENCE = 2.0  # seconds before anything is shown
STEP = 0.2  # seconds between two lines of plain text


class Progress:
    """A bar that shows itself once the work takes seconds.

    Parameters
    ----------
    wanted : bool or None
        True: at once; None: after some seconds, on a terminal; False: never.
    total : int
        How often `advance` will be called.
    """

    def __init__(self, wanted, total: int):
        self.wanted, self.total, self.done, self.what = wanted, total, 0, "profile"
        self.began, self.shown, self.bar = monotonic(), 0.0, None

    def more(self, what: str, steps: int):
        """The work goes on with something else."""
        self.what, self.total = what, self.total + steps

    def advance(self):
        """One more step is done."""
        self.done += 1
        now = monotonic()
        visible = self.wanted or (self.wanted is None and sys.stderr.isatty() and now - self.began > PATIENCE)
        if visible and now - self.shown > STEP:
            self.shown = now
            self._show()

    def _show(self):
        print(f"\r{self.what}: {self.done} of {self.total} ", end="", file=sys.stderr, flush=True)
        self.bar = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar:
            print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
