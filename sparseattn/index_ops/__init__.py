"""Array-level work under the patterns: bits, blocks, ranges, pairs. Nothing here knows a family or a kernel."""

from sparseattn.index_ops.blocks import join, reblock, transpose_blocks

__all__ = ["join", "reblock", "transpose_blocks"]
