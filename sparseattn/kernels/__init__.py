"""Backends: each a module with NAME, why_not, forward and backward. They know structures, never families."""
