"""Attention that is not one softmax over one set of pairs, built from `attend`: each gives its result and its vjp."""

from sparseattn.variants.axial_sum import axial_sum
from sparseattn.variants.etc import etc
from sparseattn.variants.longformer import longformer
from sparseattn.variants.nsa import nsa
from sparseattn.variants.reformer import reformer
from sparseattn.variants.routing import routing, update_means

__all__ = ["axial_sum", "etc", "longformer", "nsa", "reformer", "routing", "update_means"]
