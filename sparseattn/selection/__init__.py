"""Choosing by content, at the level of arrays: pooled blocks, best scores, sorted classes."""
