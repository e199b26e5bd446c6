"""How far long work is, on stderr: a bar of rich where that is installed, else plain text."""

from __future__ import annotations

import sys
from time import monotonic

PATIENCE = 2.0  # seconds before anything is shown
PAUSE = 0.2  # seconds between two lines of plain text


class Progress:
    """A bar that shows itself once the work takes seconds, and leaves nothing behind.

    Parameters
    ----------
    wanted : bool or None
        True: at once; None: after some seconds, if stderr is a terminal; False: never.
    total : int
        How often `advance` will be called.
    """

    def __init__(self, wanted, total: int):
        self.wanted, self.total, self.done, self.what = wanted, total, 0, "rows"
        self.began, self.bar = monotonic(), None

    def more(self, what: str, steps: int):
        """The work goes on with something else."""
        self.what, self.total = what, self.total + steps

    def advance(self):
        """One more step is done."""
        self.done += 1
        if self.bar is None and self._is_due():
            self.bar = _bar()
        if self.bar is not None:
            self.bar.show(f"profile: {self.what}", self.done, self.total)

    def _is_due(self):
        if self.wanted is None:
            return sys.stderr.isatty() and monotonic() - self.began > PATIENCE
        return self.wanted

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()


def _bar():
    try:
        from rich.progress import Progress as Rich
    except ImportError:
        return Plain()
    return Bar(Rich)


class Bar:
    """A bar of rich."""

    def __init__(self, rich):
        from rich.console import Console

        self.progress = rich(console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task("")
        self.progress.start()

    def show(self, what, done, total):
        """How far it is."""
        self.progress.update(self.task, description=what, completed=done, total=total)

    def close(self):
        """Take it away."""
        self.progress.stop()


class Plain:
    """One line, written over again."""

    def __init__(self):
        self.shown, self.width = 0.0, 0

    def show(self, what, done, total):
        """How far it is, a few times a second."""
        now = monotonic()
        if now - self.shown > PAUSE:
            text = f"{what} {done} of {total}"
            print("\r" + text.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.shown, self.width = now, len(text)

    def close(self):
        """Take it away."""
        print("\r" + " " * self.width + "\r", end="", file=sys.stderr, flush=True)
