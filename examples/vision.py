"""A vision transformer on photographs: do near patches do, or does it need a view over the whole picture?

    python examples/vision.py [--quick] [--out vision.png] [--profile FILE] [--test FILE ...]

The model is DINOv2 ViT-S/14 with a decoder of saliency. docs/evidence/vision.md tells what came out.
"""

import argparse
from dataclasses import dataclass

import numpy as np

import sparseattn as sa
from attention import Profiling, Through, always, as_many
from models import wheels
from models.dino import SIDE, Dino, pixels_of
from picture import save_grids
from table import counted, head_lines, slower, table

GRID, STRIDE = (SIDE, SIDE), 4
SHOWN = "neighborhood 7 x 7", "swin 13 x 13, every other shifted", "axial", "axial + grid 4"
COMPARED = "neighborhood 7 x 7", "axial + grid 4", "neighborhood 15 x 15", "by head, error up to 0.2 + class token"
PHOTOS = "matplotlib && python -m pip install --no-deps scikit-learn"


@dataclass(frozen=True)
class Seen:
    """What the model made of one picture."""

    features: np.ndarray
    saliency: np.ndarray


def main():
    options = arguments()
    model = Dino.load()
    sa.warm(dtypes=("float32",), head_dims=(64,))
    tests = [pixels_of(path) for path in options.test or sample_tests()]
    rows = by_hand()
    if options.quick:
        tests, rows = tests[:1], {name: rows[name] for name in ("dense", *SHOWN)}
    else:
        rows |= by_profile(model, pixels_of(options.profile or sample_profile()))
    seen = {}
    for name, choose in rows.items():
        seen[name] = look(model, tests, choose)
        if name in COMPARED:
            for kind, pattern in as_many(SIDE * SIDE, seen[name][0].pairs).items():
                seen[f"  {kind}, as many as {name}"] = look(model, tests, always(with_class(pattern)))
    print("\nCosines are of final features to those of dense attention; saliency: correlation of the maps.")
    print(table(*lines(seen)))
    print(slower({name: through.seconds for name, (through, _) in seen.items()}))
    if options.out:
        maps = {name: seen[name][1][-1].saliency for name in ("dense", *SHOWN)}
        save_grids(options.out, {name: keys_of_the_middle(rows[name]) for name in ("dense", *SHOWN)}, maps)


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one picture, no profile")
    parser.add_argument("--profile", metavar="FILE", help="the picture to profile (a flower of scikit-learn's)")
    parser.add_argument("--test", metavar="FILE", nargs="+", help="pictures to test (a temple and a portrait)")
    parser.add_argument("--out", help="write a picture there, .png")
    return parser.parse_args(given)


def sample_profile():
    """A photograph inside scikit-learn."""
    return wheels.folder("sklearn", PHOTOS) / "datasets" / "images" / "flower.jpg"


def sample_tests():
    """Photographs inside scikit-learn and matplotlib."""
    return [wheels.folder("sklearn", PHOTOS) / "datasets" / "images" / "china.jpg",
            wheels.folder("matplotlib", PHOTOS) / "mpl-data" / "sample_data" / "grace_hopper.jpg"]


# Patterns of the patches; the class token sees all, all see it.

def by_hand():
    """Name -> function of (layer, q, k) that returns a Pattern."""
    p, n = sa.patterns, SIDE * SIDE
    near = {size: with_class(p.neighborhood(GRID, kernel_size=(size, size))) for size in (7, 15, 25)}
    axial, grid = with_class(p.axial(GRID, (0, 1))), with_class(residues(STRIDE))
    swin = [with_class(p.swin(GRID, window=(13, 13), shift=shift)) for shift in ((0, 0), (6, 6))]
    alike = {
        "dense": p.dense(n + 1),
        "neighborhood 7 x 7": near[7],
        "axial": axial,
        "grid 4": grid,
        "axial + grid 4": axial | grid,
        "neighborhood 15 x 15": near[15],
        "neighborhood 25 x 25": near[25],
    }
    rows = {name: always(pattern) for name, pattern in alike.items()}
    return rows | {"swin 13 x 13, every other shifted": lambda layer, q, k: swin[layer % 2]}


def with_class(patches):
    """A pattern of the patches with the class token before them."""
    inner = sa.Pattern.block_diagonal([sa.patterns.dense(1), patches])
    return inner | sa.patterns.global_tokens(inner.shape[0], [0])


def residues(stride):
    """Patches a whole number of strides apart along both axes: each such class is an even sample of the picture."""
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
    kind = row % stride * stride + column % stride
    return sa.Pattern.from_buckets(kind, kind)


def by_profile(model, pixels):
    """What each head gets from a profile of one picture, by error and by a budget of pairs (of each layer's)."""
    n = SIDE * SIDE + 1
    seen = Profiling(always(sa.patterns.dense(n)), range(model.n_layers), shape=GRID, rows=256)
    model(pixels, seen)
    print("What dense attention looks at, mean over heads (lowest to highest head)")
    print(table(*head_lines(seen.found, ("window 64", "neighborhood 7 x 7", "axial"))))
    asked = {"error up to 0.2": {"max_error": 0.2}, "error up to 0.3": {"max_error": 0.3},
             "a tenth of the pairs": {"max_error": None, "budget": 0.1}}
    rows, first = {}, sa.patterns.global_tokens(n, [0])
    for words, options in asked.items():
        chosen = {layer: sa.recommend(found, dynamic=False, **options) for layer, found in seen.found.items()}
        print(f"\nBy head, {words}: {counted(chosen)}", flush=True)
        for name, more in (("", None), (" + class token", first)):
            patterns = [choice.pattern if more is None else choice.pattern | more for choice in chosen.values()]
            rows[f"by head, {words}{name}"] = lambda layer, q, k, patterns=patterns: patterns[layer]
    return rows


def look(model, pictures, choose):
    """(the attention with its pairs and seconds, what each picture gave)."""
    through, seen = Through(choose, causal=False), []
    for pixels in pictures:
        features = model(pixels, through)
        seen.append(Seen(features, model.saliency(features)))
    return through, seen


def lines(seen):
    head = "pattern", "pairs", "attention", "patches", "worst 5 %", "class token", "saliency", "worst picture"
    dense = seen["dense"][1]
    rows = []
    for name, (through, pictures) in seen.items():
        cosines = [cosine(own.features, other.features) for own, other in zip(pictures, dense)]
        maps = [np.corrcoef(own.saliency.ravel(), other.saliency.ravel())[0, 1] for own, other in zip(pictures, dense)]
        patches = np.concatenate([x[1:] for x in cosines])
        numbers = patches.mean(), np.quantile(patches, 0.05), np.mean([x[0] for x in cosines]), np.mean(maps), min(maps)
        rows.append([name, f"{through.pairs:.3f}", f"{through.attending:.2f} s", *(f"{x:.3f}" for x in numbers)])
    return head, rows


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def keys_of_the_middle(choose):
    """Bool, GRID: which patches the one in the middle attends in the first two layers."""
    patterns = [choose(layer, None, None) for layer in (0, 1)]
    middle = 1 + SIDE // 2 * SIDE + SIDE // 2
    return np.stack([p[:, :, middle : middle + 1].to_dense()[0, 0, 0, 1:].reshape(GRID) for p in patterns]).any(0)


if __name__ == "__main__":
    main()
