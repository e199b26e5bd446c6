"""Pattern families: each a function that returns a Pattern. `positional` ones follow from sizes alone, `content` ones
from q and k."""

from sparseattn.patterns.content.block_scores import from_block_scores
from sparseattn.patterns.content.block_top_k import block_top_k
from sparseattn.patterns.content.clusters import clusters
from sparseattn.patterns.content.flex_prefill import flex_prefill
from sparseattn.patterns.content.lsh import lsh
from sparseattn.patterns.content.moba import moba
from sparseattn.patterns.content.nsa_selection import nsa_selection
from sparseattn.patterns.content.quest import quest
from sparseattn.patterns.content.sparge import sparge
from sparseattn.patterns.content.top_k import indexer_top_k, top_k
from sparseattn.patterns.content.vertical_slash import vertical_slash
from sparseattn.patterns.content.xattention import xattention
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
    "block_top_k",
    "causal",
    "clusters",
    "deepspeed_layout",
    "dense",
    "documents",
    "etc",
    "fixed",
    "flex_prefill",
    "from_block_scores",
    "global_tokens",
    "indexer_top_k",
    "longformer",
    "lsh",
    "moba",
    "neighborhood",
    "nsa_selection",
    "padding",
    "prefix_lm",
    "quest",
    "random_blocks",
    "sliding_window",
    "sparge",
    "strided",
    "swin",
    "top_k",
    "vertical_slash",
    "xattention",
]
