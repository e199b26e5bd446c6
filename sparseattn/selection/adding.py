"""Rows added up by token or by class, in one order wherever it is done."""

import numpy as np

from sparseattn.xp import library, namespace


def add_rows(rows, members, heads, total):
    """total[b, heads[h], members[b, h, c, s]] += rows[b, h, c, s], in order; members of -1 are left out.

    rows: (batch, n_heads, n_clusters, slots, width); members: int32 of NumPy, the same without width; total: (batch,
    any heads, n_tokens, width), in the dtype that is added in, and returned.
    """
    if library(rows) == "cupy":
        return add_by_turns(rows, members, heads, total)
    from sparseattn.selection.compiled import add_rows as compiled

    for b, h in np.ndindex(members.shape[:2]):
        compiled(rows[b, h].astype(total.dtype), members[b, h], total[b, heads[h]])
    return total


def add_by_turns(rows, members, heads, total):
    """As `add_rows`, of either library: the first row of each token is added, then the second of those that have one,
    and so on. No token is met twice in a turn, so nothing depends on which of two additions comes first."""
    xp = namespace(rows)
    flat_rows, flat_total = rows.reshape(-1, rows.shape[4]), total.reshape(-1, total.shape[3])
    for places, tokens in _turns(members, heads, total.shape[1:3]):
        places, tokens = xp.asarray(places), xp.asarray(tokens)
        flat_total[tokens] = flat_total[tokens] + flat_rows[places].astype(total.dtype, copy=False)
    return total


def _turns(members, heads, shape):
    """Yield, for each turn, the flat places of its members and the flat tokens of (batch, *shape) that they are."""
    b, h = (x[:, :, None, None] for x in np.ogrid[: members.shape[0], : members.shape[1]])
    tokens = ((b * shape[0] + np.asarray(heads)[h]) * shape[1] + members).ravel()
    places = np.flatnonzero(members.ravel() >= 0)
    places = places[np.argsort(tokens[places], kind="stable")]
    tokens = tokens[places]
    first = np.flatnonzero(np.diff(tokens, prepend=-1))
    turn = np.arange(tokens.size) - np.repeat(first, np.diff(first, append=tokens.size))
    by_turn = np.argsort(turn, kind="stable")
    for some in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]) if tokens.size else ():
        yield places[some], tokens[some]


def sums_by_class(rows, classes, n_classes):
    """Sums, float64 (n_classes, width), of the rows (n, width) of each class, and how many these are (n_classes,).

    classes: int (n,), -1 for rows of none, which hold no NaN.
    """
    if library(rows) == "cupy":
        return sums_by_product(rows, classes, n_classes)
    from sparseattn.selection.compiled import add_rows as compiled

    sums = np.zeros((n_classes, rows.shape[1]))
    compiled(rows[None].astype(np.float64), classes[None].astype(np.int32), sums)
    return sums, np.bincount(classes[classes >= 0], minlength=n_classes)


def sums_by_product(rows, classes, n_classes):
    """As `sums_by_class`, of either library: a product with 0 and 1."""
    one = classes == namespace(rows).arange(n_classes)[:, None]
    return one.astype(np.float64) @ rows.astype(np.float64), one.sum(axis=1)
