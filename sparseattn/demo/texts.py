"""What the demo reads: two held-out excerpts or the user's own file, and a text that says everything twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseattn.demo.model import CONTEXT, load_data


@dataclass(frozen=True)
class Text:
    """Tokens (uint8, byte 0 first) and the position from which its bytes count: the second half."""

    name: str
    tokens: np.ndarray

    @property
    def start(self) -> int:
        return len(self.tokens) // 2


def passage(name, text, length=CONTEXT):
    """Byte 0 and the beginning of `text`: `length` tokens, or fewer where the text ends."""
    return Text(name, np.concatenate((np.zeros(1, np.uint8), text[: length - 1])))


def twice(name, text, length=CONTEXT):
    """Byte 0, a passage, byte 0, the same passage: the answer to the second half stands in the first."""
    half = passage(name, text, length // 2).tokens
    return Text(name, np.concatenate((half, half)))


def samples(length=CONTEXT):
    """Held-out prose and code, and the prose as a copy task."""
    data = load_data("samples.npz")
    return [
        passage("prose", data["prose"], length),
        passage("code", data["code"], length),
        twice("copy", data["prose"], length),
    ]


def from_file(path, length=CONTEXT):
    """The beginning of a file, and the same as a copy task. Zero bytes, the model's separators, are left out."""
    with open(path, "rb") as stream:
        text = np.frombuffer(stream.read(16 * length), np.uint8)
    text = text[text != 0][: length - 1]
    if len(text) < 2:
        raise ValueError(f"{path} begins with {len(text)} bytes of text; the demo needs at least 2")
    return [passage("file", text, length), twice("copy", text, length)]
