"""Pattern families: each a function that returns a Pattern. `positional` ones follow from sizes alone."""

from sparseattn.patterns.positional.attention_sinks import attention_sinks
from sparseattn.patterns.positional.axial import axial
from sparseattn.patterns.positional.bigbird import bigbird
from sparseattn.patterns.positional.block_local import block_local
from sparseattn.patterns.positional.deepspeed import deepspeed_layout
from sparseattn.patterns.positional.dense import causal, dense
from sparseattn.patterns.positional.documents import documents
from sparseattn.patterns.positional.etc import etc
from sparseattn.patterns.positional.fixed import fixed
from sparseattn.patterns.positional.global_tokens import global_tokens
from sparseattn.patterns.positional.longformer import longformer
from sparseattn.patterns.positional.neighborhood import neighborhood
from sparseattn.patterns.positional.padding import padding
from sparseattn.patterns.positional.prefix_lm import prefix_lm
from sparseattn.patterns.positional.random_blocks import random_blocks
from sparseattn.patterns.positional.sliding_window import sliding_window
from sparseattn.patterns.positional.strided import strided
from sparseattn.patterns.positional.swin import swin

__all__ = [
    "attention_sinks",
    "axial",
    "bigbird",
    "block_local",
    "causal",
    "deepspeed_layout",
    "dense",
    "documents",
    "etc",
    "fixed",
    "global_tokens",
    "longformer",
    "neighborhood",
    "padding",
    "prefix_lm",
    "random_blocks",
    "sliding_window",
    "strided",
    "swin",
]
