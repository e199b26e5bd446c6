"""The asv suite: a module per question, the same parameters on every machine."""

from suite.allocator import keep_memory

keep_memory()
