"""Layers that the models share. Arrays are float32, a token a row."""

import numpy as np
from scipy.special import erf


def heads(x, n_heads):
    """(n_tokens, n_heads * head_dim) as (n_heads, n_tokens, head_dim)."""
    return np.ascontiguousarray(x.reshape(len(x), n_heads, -1).transpose(1, 0, 2))


def joined(x):
    """(n_heads, n_tokens, head_dim) as (n_tokens, n_heads * head_dim)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def layer_norm(x, gain, offset, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(eps)) * gain + offset


def rms_norm(x, gain, eps=1e-6):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * gain


def gelu(x):
    return np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))


def gelu_tanh(x):
    """The approximation by tanh."""
    return np.float32(0.5) * x * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x)))


def rotate(x, base):
    """Rotary embedding of x (..., n_tokens, head_dim): dimension i is paired with i + head_dim / 2."""
    n_tokens, half = x.shape[-2], x.shape[-1] // 2
    angle = np.arange(n_tokens)[:, None] * float(base) ** (-np.arange(half) / half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
