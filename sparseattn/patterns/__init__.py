"""Pattern families: each a function that returns a Pattern. `positional` ones follow from sizes alone."""

from sparseattn.patterns.positional.bigbird import bigbird
from sparseattn.patterns.positional.block_local import block_local
from sparseattn.patterns.positional.dense import causal, dense
from sparseattn.patterns.positional.documents import documents
from sparseattn.patterns.positional.global_tokens import global_tokens
from sparseattn.patterns.positional.padding import padding
from sparseattn.patterns.positional.sliding_window import sliding_window
from sparseattn.patterns.positional.strided import strided

__all__ = [
    "bigbird",
    "block_local",
    "causal",
    "dense",
    "documents",
    "global_tokens",
    "padding",
    "sliding_window",
    "strided",
]
