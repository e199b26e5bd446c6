"""Profiles as files: words and numbers as JSON, arrays beside it, no pickle."""

from __future__ import annotations

import json

import numpy as np

from sparseattn.profiling.candidates import Candidate
from sparseattn.profiling.costs import Cost
from sparseattn.profiling.quantities import Rows

FORMAT = "sparseattn profile 1"
WORDS = ("shape", "n_kv_heads", "causal", "scale", "masses", "quantiles", "shares", "block_sizes", "names", "grid")
ARRAYS = ("row_positions", "column_mean", "column_rows", "offset_mean", "offset_rows", "block_share", "variability",
          "output_error", "l1_error")
COSTS = ("kept", "stored", "seconds")


def save(profile, path):
    """Write a profile, or all parts of a combined one."""
    words = {"format": FORMAT, "how": profile.how, "parts": [_words(p) for p in profile.parts]}
    arrays = {f"{number} {name}": x for number, p in enumerate(profile.parts) for name, x in _arrays(p).items()}
    with open(path, "wb") as stream:
        np.savez_compressed(stream, words=np.array(json.dumps(words)), **arrays)


def _words(profile):
    candidates = [{"name": c.name, "family": c.family, "options": dict(c.options)} for c in profile.candidates]
    return {name: getattr(profile, name) for name in WORDS} | {"candidates": candidates}


def _arrays(profile):
    found = {f"rows.{name}": getattr(profile.rows, name) for name in Rows.__dataclass_fields__}
    found |= {name: getattr(profile, name) for name in ARRAYS}
    for name in ("costs", "dense_cost"):
        cost = getattr(profile, name)
        found |= {} if cost is None else {f"{name}.{part}": getattr(cost, part) for part in COSTS}
    return {name: x for name, x in found.items() if x is not None}


def load(path):
    """Read a profile."""
    from sparseattn.profiling.record import Profile

    with np.load(path, allow_pickle=False) as file:
        words = json.loads(str(file["words"])) if "words" in file.files else {}
        if words.get("format") != FORMAT:
            raise ValueError(f"{path} holds no profile of this version ({words.get('format')!r}); expected a file "
                             f"written by Profile.save ({FORMAT!r})")
        arrays = {name: file[name] for name in file.files if name != "words"}
    parts = [_read(own, {name.partition(" ")[2]: x for name, x in arrays.items() if name.startswith(f"{number} ")})
             for number, own in enumerate(words["parts"])]
    return parts[0] if words["how"] is None else Profile.combine(parts, words["how"])


def _read(words, arrays):
    """One profile from its words and arrays."""
    from sparseattn.profiling.record import Profile

    candidates = tuple(Candidate(c["name"], c["family"], c["options"]) for c in words.pop("candidates"))
    words = {name: tuple(x) if isinstance(x, list) else x for name, x in words.items()}
    rows = Rows(**{name: arrays.get(f"rows.{name}") for name in Rows.__dataclass_fields__})
    costs = {name: Cost(*(arrays[f"{name}.{part}"] for part in COSTS)) for name in ("costs", "dense_cost")
             if f"{name}.kept" in arrays}
    return Profile(rows=rows, candidates=candidates, **words, **costs, **{name: arrays.get(name) for name in ARRAYS})
