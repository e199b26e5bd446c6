"""What is compared: contestants that do the same work, and the questions their times answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FORWARD, BACKWARD = 4, 10  # FLOP a pair and head_dim: two products, five products


class Missing(Exception):
    """A contestant cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    `make()` gives the job, a function without arguments, or raises Missing. What the job returns goes through `shown`
    and must equal that of the contestant `like` to `tolerance`; a contestant that does not is not timed.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    like: str | None = None
    flop: float | None = None  # useful ones: those of attended pairs
    n_bytes: float | None = None  # that any implementation must read
    calls: int = 1  # that one job makes
    peer: bool = False
    tolerance: float = 1e-3
    shown: Callable[[Any], Any] = np.asarray

    @property
    def machine(self) -> str:
        """Which rate of the machine limits this work."""
        return "matrix product" if self.flop else "read"

    def rate(self, seconds) -> float | None:
        """FLOP or bytes a second, given the median seconds of all; None where it was not timed or has no such work."""
        work = self.flop or self.n_bytes
        return work / seconds[self.name] if work and self.name in seconds else None

    def share(self, seconds) -> float | None:
        """Its rate over the machine's."""
        rate = self.rate(seconds)
        return None if rate is None else rate * seconds[self.machine]


@dataclass(frozen=True)
class Question:
    """A number made of median seconds, and its bars: the floor it must reach, the aim that would be good."""

    label: str
    needs: tuple[str, ...]
    value: Callable[[Mapping[str, float]], float]
    unit: str  # "%", "x" or "us"
    floor: float | None = None
    aim: float | None = None
    at_most: bool = False

    def misses(self, value) -> bool:
        """Whether a measured value fails the floor."""
        return self.floor is not None and (value > self.floor if self.at_most else value < self.floor)


@dataclass(frozen=True)
class Workload:
    title: str
    contestants: list[Contestant] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def share(contestant, floor=None, aim=None):
    """Rate of the contestant over the machine's own: of matrix products for FLOP, of reading for bytes."""
    return Question(f"{contestant.name}, of the {contestant.machine} rate", (contestant.name,), contestant.share, "%",
                    floor, aim)


def speedup(ours, peer, floor=None, aim=None):
    """How many times as fast `ours` is."""
    return Question(f"{ours} beside {peer}", (ours, peer), lambda s: s[peer] / s[ours], "x", floor, aim)


def rate_kept(name, plain, floor=None, aim=None):
    """Which share of the plain call's rate is left."""
    return Question(f"{name}, of the plain rate", (name, plain), lambda s: s[plain] / s[name], "x", floor, aim)


def times_as_long(name, base, called, floor=None, aim=None):
    """How many times as long `name` takes as `base`, here `called` so; the bar is the most it may."""
    return Question(f"{name}: time over that of {called}", (name, base), lambda s: s[name] / s[base], "x", floor, aim,
                    at_most=True)
