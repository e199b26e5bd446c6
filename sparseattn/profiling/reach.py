"""What a stack of patterns connects: the boolean product of its layers."""

from __future__ import annotations

import hashlib
import itertools
import operator
from dataclasses import dataclass

import numpy as np

from sparseattn.pattern import Pattern

STRIP = 1 << 24  # pairs of a pattern unpacked together


@dataclass(frozen=True, repr=False)
class Reach:
    """What each output of a stack depends on.

    Attributes
    ----------
    pairs : array of bool, (n_queries, n_keys)
        Entry (i, j): whether output i of the last layer depends on input j of the first.
    layers_to_full : int or None
        After how many layers, for the first time, each output depended on all that it may; None: it never happened.
    n_layers : int
        Layers that were multiplied.
    causal : bool
        Whether no layer looks ahead: then an output may depend on earlier inputs alone, else on all.
    """

    pairs: np.ndarray
    layers_to_full: int | None
    n_layers: int
    causal: bool

    @property
    def unreached(self) -> np.ndarray:
        """The pairs (output, input) that may be joined and are not, int32 (m, 2)."""
        return np.argwhere(~self.pairs & _allowed(self.pairs.shape, self.causal)).astype(np.int32)

    @property
    def share(self) -> float:
        """Share of the pairs that may be joined and are, 0 to 1."""
        allowed = _allowed(self.pairs.shape, self.causal)
        return float(self.pairs.sum() / allowed.sum()) if allowed.any() else 1.0

    def __repr__(self):
        allowed = "all earlier inputs" if self.causal else "all inputs"
        full = "never" if self.layers_to_full is None else f"from {self.layers_to_full} layers on"
        return f"Reach after {self.n_layers} layers: {self.share:.1%} of the pairs; {allowed} reached {full}"


def reach(patterns_by_layer, *, n_layers=None, residual=False) -> Reach:
    """Which inputs of the first layer each output of the last depends on, when layers attend by these patterns.

    Parameters
    ----------
    patterns_by_layer : Pattern or sequence of Pattern
        The lowest layer first. The queries of a layer are the keys of the next. The heads of a pattern are united: a
        layer mixes them. One Pattern: the same in every layer.
    n_layers : int, optional
        Layers in all; the patterns are repeated in turn. None: a sequence once, one Pattern until all is reached or
        nothing changes.
    residual : bool
        Whether each output of a layer also keeps its own input, as a residual connection does, where the pattern
        leaves the query's own key out. Square patterns only.

    Returns
    -------
    Reach
        With `pairs`, `layers_to_full` and `unreached`.

    Raises
    ------
    TypeError, ValueError
        Something is no pattern, shapes do not follow each other, a pattern differs between batch items, or `n_layers`
        is below 1.

    Notes
    -----
    Output i depends on input j when some j = t[0], t[1], ..., t[L] = i exist with (t[l], t[l - 1]) in the pattern of
    layer l: the boolean product of the patterns, the lowest on the right. A star (one global token) reaches all in two
    layers at any length; a window of w keys on each side needs ``ceil((n - 1) / w)``.

    What can be reached need not be learned: this bounds what a model can express.

    Each layer takes O(n_queries * n_keys / 8 * n_keys / 64) operations on words at most, fewer for sparse patterns, and
    bits of n_queries * n_keys pairs: seconds for a few layers of 4,096 tokens.

    References
    ----------
    .. [1] Zaheer et al., Big Bird, arXiv:2007.14062, section 3.
    .. [2] Child et al., Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, section 4.2.

    Examples
    --------
    >>> import sparseattn as sa
    >>> star = sa.patterns.global_tokens(256, [0])
    >>> sa.reach(star).layers_to_full
    2
    """
    single = isinstance(patterns_by_layer, Pattern)
    layers = _checked([patterns_by_layer] if single else list(patterns_by_layer), residual)
    count = _count(n_layers, layers, single)
    uppers = [_packed_pattern(pattern, residual) for pattern in layers]
    causal = not any((upper & ~_packed_allowed(pattern.shape, True)).any() for upper, pattern in zip(uppers, layers))
    reached, number, layers_to_full = _multiply(uppers, layers[0].shape[1], count, causal)
    pairs = np.unpackbits(reached.view(np.uint8), axis=1, bitorder="little", count=layers[0].shape[1])
    return Reach(pairs.astype(bool), layers_to_full, number, causal)


def _multiply(uppers, n_keys, count, causal):
    """(words of the product of `count` layers, how many they were, the first number of layers that reached all).

    count None: until all is reached, or the product is one that was there before.
    """
    reached = _words(_packed(np.eye(n_keys, dtype=bool)))
    wholes = {len(upper): _words(_packed_allowed((len(upper), n_keys), causal)) for upper in uppers}
    seen, layers_to_full = set(), None
    for number in itertools.count(1):
        reached = _product(uppers[(number - 1) % len(uppers)], reached)
        if layers_to_full is None and np.array_equal(reached, wholes[len(reached)]):
            layers_to_full = number
        state = hashlib.blake2b(reached, digest_size=16).digest() if count is None else None
        if number == count or (count is None and (layers_to_full or state in seen)):
            return reached, number, layers_to_full
        seen.add(state)


def _product(upper, lower):
    """Words (n_queries, words): for each query, which of `lower`'s inputs its keys have.

    upper : uint8 (n_queries, ceil(n_keys / 8)); lower : uint64 (n_keys, words). Eight keys at a time: what each of
    their 256 subsets has is made once for all queries.
    """
    product = np.zeros((len(upper), lower.shape[1]), np.uint64)
    for group, subsets in enumerate(np.ascontiguousarray(upper.T)):
        rows = np.flatnonzero(subsets)
        if rows.size:
            product[rows] |= _unions(lower[8 * group : 8 * group + 8])[subsets[rows]]
    return product


def _unions(sets):
    """The unions of all subsets of up to eight sets, uint64 (2 ** sets, words)."""
    unions = np.zeros((1 << len(sets), sets.shape[1]), np.uint64)
    for bit, one in enumerate(sets):
        np.bitwise_or(unions[: 1 << bit], one, out=unions[1 << bit : 2 << bit])
    return unions


def _packed_pattern(pattern, residual):
    """A pattern's pairs, its heads united, as bits: uint8 (n_queries, ceil(n_keys / 8))."""
    n_queries, n_keys = pattern.shape
    step = max(STRIP // max(n_keys * pattern.n_heads, 1), 1)
    strips = [_packed(pattern[:, :, first : first + step].to_dense().any(axis=(0, 1)))
              for first in range(0, n_queries, step)]
    bits = np.concatenate(strips) if strips else np.zeros((0, -(-n_keys // 8)), np.uint8)
    return bits | _packed(np.eye(n_keys, dtype=bool)) if residual else bits


def _allowed(shape, causal):
    """Pairs that may be joined, bool shape: the last query sits at the last key."""
    return np.tri(*shape, shape[1] - shape[0], dtype=bool) if causal else np.ones(shape, bool)


def _packed_allowed(shape, causal):
    return _packed(_allowed(shape, causal))


def _packed(pairs):
    return np.packbits(pairs, axis=1, bitorder="little")


def _words(bits):
    """Bits of uint8 rows as uint64 rows, filled up with zeros."""
    padded = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)


def _checked(layers, residual):
    """The patterns, if each is one that can be multiplied."""
    if not layers:
        raise ValueError("no pattern is given; give one a layer, the lowest first")
    for number, pattern in enumerate(layers):
        if not isinstance(pattern, Pattern):
            raise TypeError(f"layer {number} is a {type(pattern).__name__}; expected a Pattern")
        if pattern.batch > 1:
            raise ValueError(f"the pattern of layer {number} is for {pattern.batch} batch items; ask for one of them: "
                             "pattern[0:1]")
        if residual and pattern.shape[0] != pattern.shape[1]:
            raise ValueError(f"the pattern of layer {number} has {pattern.shape[0]} queries and {pattern.shape[1]} "
                             "keys; residual=True needs as many queries as keys")
        if number and pattern.shape[1] != layers[number - 1].shape[0]:
            raise ValueError(f"layer {number} has {pattern.shape[1]} keys but the layer below "
                             f"{layers[number - 1].shape[0]} queries; the queries of a layer are the keys of the next")
    return layers


def _count(n_layers, layers, single):
    """How many layers to multiply; None: until nothing new comes."""
    if n_layers is not None:
        try:
            count = operator.index(n_layers)
        except TypeError:
            raise TypeError(f"n_layers is {n_layers!r}; expected a whole number of layers, or None") from None
        if count < 1:
            raise ValueError(f"n_layers is {count}; expected at least 1")
    else:
        count = None if single else len(layers)
    repeated = count is None or count > len(layers)
    if repeated and layers[0].shape[1] != layers[-1].shape[0]:
        raise ValueError(f"the last pattern has {layers[-1].shape[0]} queries and the first {layers[0].shape[1]} keys; "
                         "layers can be repeated only where these are equal")
    return count
