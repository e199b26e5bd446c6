"""Pattern: a set of (query, key) pairs as an index structure."""

from sparseattn.pattern.core import Pattern

__all__ = ["Pattern"]
