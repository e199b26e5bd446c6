"""Pairs that count several times: a pattern in whose parts a pair stands as often as it counts."""

from __future__ import annotations

import threading
import weakref

from sparseattn.index_ops.axes import widened
from sparseattn.pattern import Pattern


def repeating(parts, shape, batch, n_heads) -> Pattern:
    """BlockCSRs in which a pair stands as often as it counts, as a pattern: for backends alone, it breaks
    `Pattern.check`."""
    made = Pattern(tuple(parts), shape, batch, n_heads)
    # tiles() and other backends would join the parts of one order, and with them the copies of a pair
    made.memo.get("tiles", lambda: made.parts)
    made.memo.get("repeats", lambda: True)
    return made


class Counts:
    """What `sparseattn.bias.log_count` returns: how often the pairs of a call's pattern count.

    Attributes
    ----------
    name : str
        The function that made it.
    """

    def __init__(self, name, patterns):
        self.name, self.patterns = name, patterns
        # dropped with the pattern: content patterns are new in every call
        self._made = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def __reduce__(self):
        return Counts, (self.name, self.patterns)

    def __repr__(self):
        return f"<bias {self.name} of {len(self.patterns)} patterns {self.patterns[0].shape}>"

    def of(self, pattern: Pattern, batch: int, n_heads: tuple[int, ...]) -> Pattern:
        """`pattern` with its pairs in as many parts as they count: for backends alone, it breaks `Pattern.check`.

        batch: that of the call; n_heads: what its patterns may have.
        """
        self._check(pattern, batch, n_heads)
        with self._lock:
            made = self._made.get(pattern)
            if made is None:
                made = self._made[pattern] = self._make(pattern)
            return made

    def _make(self, pattern):
        met = [p.to("cpu") & pattern.to("cpu") for p in self.patterns]
        n_heads = max(p.n_heads for p in met)
        parts = [widened(part, p.n_heads, n_heads) for p in met for part in p.tiles()]
        return repeating(parts, pattern.shape, max(p.batch for p in met), n_heads).to(pattern.device)

    def _check(self, pattern, batch, n_heads):
        for p in self.patterns:
            if p.shape != pattern.shape:
                raise ValueError(f"bias log_count counts pairs of {p.shape[0]} queries and {p.shape[1]} keys but the "
                                 f"pattern is for {pattern.shape[0]} and {pattern.shape[1]}; give a count for each")
            if p.batch not in (1, batch) or p.n_heads not in n_heads:
                raise ValueError(f"bias log_count has counts of batch {p.batch} and {p.n_heads} heads but q has batch "
                                 f"{batch} and {max(n_heads)} heads; give counts for 1 or all of them")
            if p.parts and pattern.parts and p.device != pattern.device:
                raise ValueError(f"bias log_count has counts on {p.device} but the pattern is on {pattern.device}; "
                                 f"move them once: counts.to({pattern.device!r})")
