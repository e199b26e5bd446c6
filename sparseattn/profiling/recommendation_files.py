"""A recommendation as a file: words and numbers as JSON, arrays and given patterns beside it, no pickle."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.profiling.candidates import Candidate

FORMAT = 1


def save(rec, path):
    """Write a recommendation."""
    patterns = {}
    for choice in rec.heads:
        source = choice.candidate.source
        if isinstance(source, Pattern):
            patterns[f"pattern {choice.choice}"] = _to_bytes(source)
        elif source is not None:
            raise ValueError(f"{choice.choice!r} is a function, which a file cannot hold; profile a Candidate of a "
                             "family instead")
    heads = [_described(choice) for choice in rec.heads]
    words = {"format": FORMAT, "asked": asdict(rec.asked), "causal": rec.causal, "scale": rec.scale, "heads": heads,
             "n_kv_heads": rec.n_kv_heads, "shape": rec.shape, "whole": rec.whole,
             "dense_pairs": rec.dense_pairs, "names": rec.points.names,
             "families": rec.points.families, "loss_name": rec.points.loss_name}
    with open(path, "wb") as stream:
        np.savez_compressed(stream, words=np.array(json.dumps(words)), share=rec.points.share, loss=rec.points.loss,
                            **patterns)


def _described(choice):
    """A HeadChoice as what JSON holds; a given pattern stays out."""
    own = {name: getattr(choice, name) for name in choice.__dataclass_fields__ if name != "candidate"}
    candidate = choice.candidate
    return own | {"candidate": {"name": candidate.name, "family": candidate.family,
                                "options": dict(candidate.options)}}


def load(path):
    """Read a recommendation."""
    from sparseattn.profiling.recommendation import Asked, HeadChoice, Points, Recommendation

    with np.load(path, allow_pickle=False) as arrays:
        if "words" not in arrays.files:
            raise ValueError(f"{path} holds no recommendation; expected a file written by Recommendation.save")
        words = json.loads(str(arrays["words"]))
        if words.get("format") != FORMAT:
            raise ValueError(f"{path} has format {words.get('format')}; this version reads {FORMAT}")
        share, loss = arrays["share"], arrays["loss"]
        sources = {name: _from_bytes(arrays[name]) for name in arrays.files if name.startswith("pattern ")}
    heads = []
    for own in words["heads"]:
        candidate = own.pop("candidate")
        source = sources.get(f"pattern {candidate['name']}")
        heads.append(HeadChoice(candidate=Candidate(**candidate, source=source), **own))
    points = Points(tuple(words["names"]), tuple(words["families"]), share, loss, words["loss_name"])
    return Recommendation(tuple(heads), Asked(**words["asked"]), words["causal"], words["scale"], words["n_kv_heads"],
                          tuple(words["shape"]), words["whole"], words["dense_pairs"],
                          points)


def _to_bytes(pattern):
    """The file of a pattern, uint8."""
    with tempfile.TemporaryDirectory() as folder:
        pattern.save(os.path.join(folder, "pattern.npz"))
        return np.fromfile(os.path.join(folder, "pattern.npz"), np.uint8)


def _from_bytes(octets):
    with tempfile.TemporaryDirectory() as folder:
        octets.tofile(os.path.join(folder, "pattern.npz"))
        return Pattern.load(os.path.join(folder, "pattern.npz"))
