"""Candidates: patterns described by data, so that they can be built again for other q and k, and kept in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.profiling import families, peaks

SIZE = 64  # keys of the window that other families come with
FIRST = 4  # sinks
STEPS = (4, 8, 16, 32)  # of samples


@dataclass(frozen=True)
class Candidate:
    """A family with its sizes: what a head may be recommended.

    Parameters
    ----------
    name : str
        For people; unique among the candidates of a profile.
    family : str
        A name of `sparseattn.profiling.families.FAMILIES`; "given" for a pattern or a function of the caller's.
    options : dict
        Whole numbers and lists of them, the keywords of the family. Options named `columns` and `offsets` hold a list
        for each head.
    source : Pattern or callable, optional
        What "given" gives: a pattern, or a function of (q, k) that returns one.
    """

    name: str
    family: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: Any = None

    @property
    def dynamic(self) -> bool:
        """Whether it looks at q and k, and not only at their shapes."""
        return self.family in families.DYNAMIC or (self.family == "given" and not isinstance(self.source, Pattern))

    def build(self, q, k, causal: bool, scale: float | None = None) -> Pattern:
        """The pattern for some q and k.

        Parameters
        ----------
        q, k : array, (batch, n_heads, n_queries, head_dim) and (batch, n_kv_heads, n_keys, head_dim)
            The tokens; static families look at the shapes alone.
        causal : bool
            Only keys up to the query; the last query sits at the last key. A given pattern is not cut.
        scale : float, optional
            Factor of the scores, for families that choose by them.

        Returns
        -------
        Pattern
            Shape (n_queries, n_keys), for 1 or all heads and for 1 or all batch items.
        """
        if self.family != "given":
            return families.FAMILIES[self.family](q, k, causal, scale, **self.options)
        pattern = self.source if isinstance(self.source, Pattern) else self.source(q, k)
        if not isinstance(pattern, Pattern):
            raise TypeError(f"candidate {self.name!r} gave a {type(pattern).__name__}; expected a Pattern")
        if pattern.shape != (q.shape[2], k.shape[2]):
            raise ValueError(f"{self.name!r} is a pattern for {pattern.shape} (n_queries, n_keys), but q and k have "
                             f"{(q.shape[2], k.shape[2])} tokens; give a Candidate or a function of (q, k) instead")
        return pattern

    def of_heads(self, heads: Sequence[int], n_heads: int) -> Candidate:
        """The candidate for some heads alone.

        Parameters
        ----------
        heads : sequence of int
            Which heads, in order.
        n_heads : int
            How many the profile has.

        Returns
        -------
        Candidate
        """
        own = {name: [value[h * len(value) // n_heads] for h in heads] if name in families.PER_HEAD else value
               for name, value in self.options.items()}
        if isinstance(self.source, Pattern) and self.source.n_heads > 1:
            each = [self.source[:, at : at + 1] for at in (h * self.source.n_heads // n_heads for h in heads)]
            return replace(self, source=Pattern.per_head(each))
        return replace(self, options=own)


def as_candidates(given) -> list[Candidate]:
    """Candidates from a list of them, of patterns, of functions of (q, k), of (name, any of these), or a dict."""
    items = list(given.items()) if isinstance(given, Mapping) else list(given)
    found = [_one(item, number) for number, item in enumerate(items)]
    names = [c.name for c in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two candidates are named {twice[0]!r}; give each its own name")
    return found


def _one(item, number):
    if isinstance(item, Candidate):
        return item
    name, thing = item if isinstance(item, tuple) and len(item) == 2 else (f"pattern {number}", item)
    if isinstance(thing, Candidate):
        return replace(thing, name=str(name))
    if not isinstance(thing, Pattern) and not callable(thing):
        raise TypeError(f"candidate {name!r} is a {type(thing).__name__}; expected a Pattern, a function of (q, k) "
                        "that returns one, or a Candidate")
    return Candidate(str(name), "given", {}, thing)


def defaults(n_queries: int, n_keys: int, *, causal: bool, offsets=None, columns=None,
             grid: Sequence[int] | None = None) -> list[Candidate]:
    """Dense, windows, windows with the first keys, strides, even and random samples, columns, diagonals, the best keys
    and blocks, each at several sizes; on a grid also neighborhoods, windows, axes and strides of it.

    Parameters
    ----------
    n_queries, n_keys : int
        Tokens that were profiled; sizes rise to half of them.
    causal : bool
        Whether queries see later keys.
    offsets : array, (n_heads, n_distances), optional
        Mass at each distance between query and key: the mean over rows, rows without such a key counted as 0. It says
        which strides and diagonals are offered.
    columns : array, (n_heads, n_keys), optional
        Mass of each key, the mean over rows. It says which columns are offered.
    grid : sequence of int, optional
        Lengths of the axes, if the tokens (all, or the last of them) are a grid in raster order.

    Returns
    -------
    list of Candidate
        Each built in O(n_keys) time for each head, but for those that look at q and k.
    """
    found = [Candidate("dense", "dense")]
    found += _windows(n_keys) + _samples(n_keys)
    if offsets is not None:
        found += _strides(np.asarray(offsets), n_keys) + _diagonals(np.asarray(offsets), n_keys)
    if columns is not None:
        found += _verticals(np.asarray(columns), n_keys)
    found += _chosen(n_keys, causal)
    return found + (_of_grid([int(n) for n in grid], causal) if grid is not None else [])


def _sizes(least, most, factor=2):
    """least, least * factor ..., below most."""
    return [least * factor**i for i in range(64) if least * factor**i < most]


def _windows(n):
    plain = [Candidate(f"window {w}", "window", {"size": w}) for w in _sizes(16, n)]
    with_first = [Candidate(f"window {w} + first {FIRST}", "window", {"size": w, "first": FIRST})
                  for w in _sizes(64, n - FIRST)]
    return plain + with_first


def _samples(n):
    """Even and random samples of all keys, each with a window: what estimates a mean."""
    steps = [s for s in STEPS if s * 16 <= n]
    size = min(SIZE, n)
    return [
        *(Candidate(f"one key in {s} + window {size}", "even", {"stride": s, "size": size}) for s in steps),
        *(Candidate(f"stride {s} + window {size}", "strided", {"stride": s, "size": size}) for s in steps),
        *(Candidate(f"random 1/{s} + window {size}", "random", {"one_in": s, "size": size}) for s in steps
          if s * 32 <= n),
    ]


def _strides(offsets, n):
    """Strides at which some head repeats itself."""
    return [Candidate(f"stride {s} + window {w}", "strided", {"stride": s, "size": w})
            for s in peaks.strides(offsets) for w in sorted({min(16, n), min(s, SIZE)}) if s not in STEPS]


def _diagonals(offsets, n):
    size = min(SIZE, n)
    return [Candidate(f"{m} diagonals of {2 * peaks.WIDTH + 1} + window {size}", "diagonals",
                      {"offsets": peaks.diagonals(offsets, m, size), "width": peaks.WIDTH, "size": size})
            for m in (1, 4, 16) if m * 16 * peaks.WIDTH < n]


def _verticals(columns, n):
    size = min(SIZE, n)
    return [Candidate(f"{m} columns + window {size}", "columns", {"columns": peaks.largest(columns, m), "size": size})
            for m in (4, 16, 64, 256) if m * 4 <= n]


def _chosen(n, causal):
    """Candidates that look at q and k. Blocks of 4 keys stay rows of blocks, larger ones are sorted into tiles."""
    size = min(SIZE, n)
    keys = [Candidate(f"top {m} keys", "top_keys", {"n": m}) for m in (16, 64, 256, 1024) if m * 4 <= n]
    blocks = [Candidate(f"top {m} blocks of {b} + {near} near", "top_blocks", {"block": b, "n": m + near, "near": near})
              for b, near in ((4, 16), (16, 4), (64, 1)) for m in (16, 64) if (m + near) * b * 2 <= n]
    pages = [Candidate(f"top {m} pages of {b} + window {size}", "pages", {"page": b, "n": m, "size": size})
             for b in (4, 16) for m in (16, 64, 128) if causal and (m * b + size) * 2 <= n]
    lines = [Candidate(f"vertical-slash {a}, {b}", "vertical_slash", {"vertical": a, "slash": b})
             for a, b in ((30, 100), (100, 400), (500, 700)) if causal and (a + b) * 4 <= n]
    return keys + blocks + pages + lines


def _of_grid(grid, causal):
    """Candidates of a grid, none of them causal."""
    if causal:
        return []
    kernels = {tuple(min(size, n - 1 + n % 2) for n in grid) for size in (7, 13, 25)}
    windows = {tuple(min(size, n) for n in grid) for size in (7, 13)}
    by = " x ".join
    near = [Candidate(f"neighborhood {by(map(str, x))}", "neighborhood", {"grid": grid, "kernel": list(x)})
            for x in sorted(kernels)]
    tiles = [Candidate(f"swin {by(map(str, x))}" + (" shifted" if half else ""), "swin",
                       {"grid": grid, "window": list(x), "shift": [n // 2 * half for n in x]})
             for x in sorted(windows) for half in (0, 1)]
    steps = [s for s in (2, 3, 4) if s * 2 <= min(grid)]
    far = [Candidate("axial", "axial", {"grid": grid}),
           *(Candidate(f"axial + grid stride {s}", "axial", {"grid": grid, "stride": s}) for s in steps),
           *(Candidate(f"grid stride {s}", "grid_strided", {"grid": grid, "stride": s}) for s in steps)]
    return near + tiles + far

