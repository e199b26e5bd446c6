"""bytelm, a byte-level causal language model of 4.3 M parameters, in NumPy; the attention is left to the caller.

Six layers of width 256, 8 heads of 32, RMSNorm, SwiGLU, a tied embedding. RoPE turns the first 16 dimensions of a head.
Byte 0 begins a text and stands between texts. It was trained on 4,096 bytes and knows nothing beyond.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from scipy.special import expit

CONTEXT = 4096


def load_data(name):
    """The arrays of one packaged .npz as a dict."""
    with (files("sparseattn.demo") / "data" / name).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


class ByteLM:
    """The model with its weights as float32. `model(tokens, attend)` gives the logits of the next byte."""

    def __init__(self):
        arrays = load_data("bytelm-int8.npz")
        self.n_heads, self.rotary, self.base, self.n_layers = (int(x) for x in arrays.pop("config"))
        scales = {name: arrays.pop(name + ".scale") for name in list(arrays) if name + ".scale" in arrays}
        self.weights = {name: weight.astype(np.float32) for name, weight in arrays.items()}
        for name, scale in scales.items():
            self.weights[name] *= scale.astype(np.float32)[:, None]

    def __call__(self, tokens, attend):
        """Logits (n_tokens, 256) for tokens uint8 (n_tokens,).

        `attend(layer, q, k, v)` gets q, k, v (n_heads, n_tokens, head_dim) and returns an array like v.
        """
        if len(tokens) > CONTEXT:
            raise ValueError(f"got {len(tokens)} tokens, but bytelm was trained on {CONTEXT}; pass at most {CONTEXT}")
        w, rotation = self.weights, self._rotation(len(tokens))
        x = w["embed.weight"][tokens]
        for layer in range(self.n_layers):
            x = x + self._attention(layer, x, rotation, attend)
            x = x + self._feed_forward(layer, x)
        return rms_norm(x, w["norm.weight"]) @ w["embed.weight"].T

    def _attention(self, layer, x, rotation, attend):
        name = f"layers.{layer}."
        qkv = rms_norm(x, self.weights[name + "norm1.weight"]) @ self.weights[name + "qkv.weight"].T
        q, k, v = qkv.reshape(len(x), 3, self.n_heads, -1).transpose(1, 2, 0, 3)
        out = attend(layer, rotate(q, *rotation), rotate(k, *rotation), np.ascontiguousarray(v))
        return out.transpose(1, 0, 2).reshape(len(x), -1) @ self.weights[name + "out.weight"].T

    def _feed_forward(self, layer, x):
        name = f"layers.{layer}."
        up = rms_norm(x, self.weights[name + "norm2.weight"]) @ self.weights[name + "up.weight"].T
        gate, value = np.split(up, 2, axis=-1)
        return gate * expit(gate) * value @ self.weights[name + "down.weight"].T

    def _rotation(self, n_tokens):
        """cos, sin, each float32 (n_tokens, rotary / 2)."""
        frequency = float(self.base) ** (-np.arange(self.rotary // 2) * 2.0 / self.rotary)
        angle = np.arange(n_tokens)[:, None] * frequency
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rms_norm(x, gain):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-5)) * gain


def rotate(x, cos, sin):
    """RoPE on the first 2 * cos.shape[-1] dimensions of each head, halves paired; the rest carry no position."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate((a * cos - b * sin, a * sin + b * cos, rest), axis=-1)


def bits_per_byte(logits, tokens, start):
    """Mean bits that the bytes at positions `start` on cost; `start` >= 1."""
    logits = logits[start - 1 : -1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[start:, None].astype(np.int64), axis=-1)[:, 0]
    return float(np.mean(np.log(np.exp(logits).sum(axis=-1)) - chosen) / np.log(2))
