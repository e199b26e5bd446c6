"""Families that follow from q and k: each a function of arrays, on their device, that returns a Pattern."""
