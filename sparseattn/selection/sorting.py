"""Tokens sorted by class. Of either library."""

import numpy as np

from sparseattn.xp import library, namespace


def by_class(classes, n_classes):
    """The tokens of each line sorted by class, those of one class in order: int32 like `classes` (..., n).

    classes: int32 from 0 to n_classes - 1. A counting sort: O(n + n_classes) a line; of CuPy the library's.
    """
    if library(classes) == "cupy":
        return namespace(classes).argsort(classes, axis=-1, kind="stable").astype(np.int32)
    from sparseattn.selection.compiled import sort_by_class

    tokens = np.empty(classes.shape, np.int32)
    n = classes.shape[-1]
    if n_classes > 4 * n:  # counting would cost more than comparing
        tokens[...] = np.argsort(classes, axis=-1, kind="stable")
    elif n:
        sort_by_class(np.ascontiguousarray(classes).reshape(-1, n), n_classes, tokens.reshape(-1, n))
    return tokens


def places(tokens):
    """The slot of each token in each line of a listing (..., n) of all of them, int32 of the same shape."""
    if library(tokens) == "cupy":
        return namespace(tokens).argsort(tokens, axis=-1).astype(np.int32)
    from sparseattn.selection.compiled import slots_of_tokens

    slots = np.empty_like(tokens)
    slots_of_tokens(np.ascontiguousarray(tokens).reshape(-1, tokens.shape[-1]), slots.reshape(-1, tokens.shape[-1]))
    return slots
