"""The asv suite: a module per question, the same parameters on every machine."""
