"""What the demo reads: two held-out excerpts or the user's own file, and a text that says everything twice.

The model is profiled on one part of them and tested on another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseattn.demo.model import CONTEXT, load_data

LEAST = 64  # bytes of a file


@dataclass(frozen=True)
class Text:
    """Tokens (uint8, byte 0 first), and whether the second half says the first one again."""

    name: str
    tokens: np.ndarray
    repeats: bool = False

    @property
    def start(self) -> int:
        """The position from which bytes count: the second half."""
        return len(self.tokens) // 2

    @property
    def targets(self) -> np.ndarray | None:
        """For each byte of a copy the position of the byte that followed the last time, -1 in the first half."""
        position = np.arange(len(self.tokens))
        return np.where(position >= self.start, position - self.start + 1, -1) if self.repeats else None


def passage(name, text, length=CONTEXT):
    """Byte 0 and the beginning of `text`: `length` tokens, or fewer where the text ends."""
    return Text(name, np.concatenate((np.zeros(1, np.uint8), text[: length - 1])))


def twice(name, text, length=CONTEXT):
    """Byte 0, a passage, byte 0, the same passage: the answer to the second half stands in the first."""
    half = passage(name, text, length // 2).tokens
    return Text(name, np.concatenate((half, half)), repeats=True)


def samples(length=CONTEXT, skip=0):
    """Held-out prose and code, and the prose as a copy task, from byte `skip` of each on."""
    data = load_data("samples.npz")
    prose, code = data["prose"][skip:], data["code"][skip:]
    return [passage("prose", prose, length), passage("code", code, length), twice("copy", prose, length)]


def halves(file=None, length=CONTEXT):
    """(texts to profile, texts to test) of the samples or of a file, which have no byte in common."""
    if file is None:
        return samples(length, skip=length - 1), samples(length)
    text = read(file, 2 * (length - 1))
    cut = len(text) // 2
    return from_bytes(text[cut:], length), from_bytes(text[:cut], length)


def read(path, count):
    """The first bytes of a file. Zero bytes, the model's separators, are left out."""
    with open(path, "rb") as stream:
        text = np.frombuffer(stream.read(16 * count), np.uint8)
    text = text[text != 0][:count]
    if len(text) < LEAST:
        raise ValueError(f"{path} begins with {len(text)} bytes of text; the demo needs at least {LEAST}")
    return text


def from_bytes(text, length):
    """A text, and its beginning as a copy task, both of one length."""
    length = min(length, len(text) + 1)
    return [passage("file", text, length), twice("copy", text, length)]
