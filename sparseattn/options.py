"""What a call asks of a backend beside q, k, v, pattern and scale: an additive term, softcap, sinks, dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any


@dataclass(frozen=True, eq=False)
class Term:
    """An additive score term bound to one call, in token coordinates: arrays of the call's library.

    `values` are dense, (1 | batch, 1 | n_heads, 1 | n_queries, 1 | n_keys), or a table whose last axis is looked up.
    With ``code = q_codes[i] + k_codes[j] + shift[b]`` of query i and key j, the place in the table's row of (b, h, i)
    is the code where there are no `labels` (0 is added where it lies outside the table), else ``labels[code]``, the
    code clipped to them; 4-D labels are places themselves and need no codes. b is the batch item, h the query head.
    """

    values: Array  # in the dtype that the call is computed in; 4-D
    labels: Array | None = None  # int32 (1 | batch, 1 | n_heads, 1 | n_queries, 1 | n_keys) or (n_labels,)
    q_codes: Array | None = None  # int64 (n_queries,)
    k_codes: Array | None = None  # int64 (n_keys,)
    shift: Array | None = None  # int64 (1 | batch,)
    spare: bool = False  # whether all codes lie within the table, and none at its last place

    @property
    def is_dense(self) -> bool:
        """Whether `values` hold a number a pair, not a table."""
        return self.labels is None and self.q_codes is None


class Options(NamedTuple):
    """The options of a checked call, as backends take them; the defaults mean none."""

    softcap: float = 0.0
    bias: Term | None = None
    sinks: Array | None = None  # (n_heads,) in the dtype that the call is computed in, contiguous
    dropout: float = 0.0
    seed: int = 0  # modulo 2**64


PLAIN = Options()
