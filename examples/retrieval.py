"""An encoder that embeds passages: is the nearest passage still the nearest when its attention is sparse?

    python examples/retrieval.py [--quick] [--out retrieval.png]

The model is all-MiniLM-L6-v2, the passages are this project's documentation. docs/evidence/retrieval.md tells what
came out.
"""

import argparse

import numpy as np

import sparseattn as sa
import texts
from attention import Profiling, Through, always, as_many
from models.minilm import LONGEST, MiniLM, vocabulary
from picture import save_scatter
from table import counted, head_lines, slower, table

N_PROFILED, N_QUICK, N_MOST = 6, 8, 32  # passages that are profiled; tested in a quick run, and at most
ENDS = [0, LONGEST - 1]  # the marks of beginning and end
COMPARED = "window 64 + ends", "window 16 + ends + every 8th", "by head, error 0.3"  # with a window and chance


def main():
    options = arguments()
    model, passages = MiniLM.load(), cut(vocabulary())
    sa.warm(dtypes=("float32",), head_dims=(32,))
    profiled, tested = passages[::2][:N_PROFILED], passages[1::2][: N_QUICK if options.quick else N_MOST]
    rows = by_hand()
    rows |= by_profile(model, profiled[:2] if options.quick else profiled)
    seen = {}
    for name, choose in rows.items():
        seen[name] = embed(model, tested, choose)
        if name in COMPARED:
            for kind, pattern in as_many(LONGEST, seen[name][0].pairs).items():
                seen[f"  {kind}, as many as {name}"] = embed(model, tested, always(pattern))
    print(f"\n{len(tested)} passages of {LONGEST} tokens; cosine is that to the embedding by dense attention")
    print(table(*lines(seen)))
    print(slower({name: through.seconds for name, (through, _) in seen.items()}))
    if options.out:
        losses = {name: (through.pairs, {"mean": 100 * (1 - cosines(seen, name).mean()),
                                         "worst passage": 100 * (1 - cosines(seen, name).min())})
                  for name, (through, _) in seen.items()}
        save_scatter(options.out, losses, "share of the pairs", "100 (1 - cosine to dense)")


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer passages")
    parser.add_argument("--out", help="write a picture there, .png")
    return parser.parse_args(given)


def cut(tokenizer):
    """The documentation in passages of equal length."""
    inner, found = LONGEST - 2, []
    for page in texts.documentation():
        tokens = tokenizer.encode(page)
        found += [tokenizer.passage(tokens[i : i + inner]) for i in range(0, len(tokens) - inner + 1, inner)]
    return found


def by_hand(n=LONGEST):
    """Name -> function of (layer, q, k) that returns a Pattern."""
    p, ends = sa.patterns, sa.patterns.global_tokens(n, ENDS)
    window = {size: p.sliding_window(n, left=size // 2, right=size // 2) for size in (64, 128, 256)}
    every = {stride: p.sliding_window(n, left=None, right=None, dilation=stride) for stride in (8, 4)}
    near = p.sliding_window(n, left=8, right=8) | ends
    same = {
        "dense": p.dense(n),
        "window 64": window[64],
        "window 64 + ends": window[64] | ends,
        "window 128 + ends": window[128] | ends,
        "window 16 + ends + every 8th": near | every[8],
        "window 16 + ends + every 4th": near | every[4],
        "window 256 + ends": window[256] | ends,
    }
    return {name: always(pattern) for name, pattern in same.items()}


def by_profile(model, passages):
    """What each head gets, by mass, by error, by content too, from the mean over passages."""
    found, candidates = [], None
    for tokens in passages:
        seen = Profiling(always(sa.patterns.dense(LONGEST)), range(model.n_layers), candidates=candidates, rows=128)
        model(tokens, seen)
        found.append(seen.found)
        candidates = candidates or {layer: profile.candidates for layer, profile in seen.found.items()}
    profiles = {layer: sa.Profile.combine([each[layer] for each in found], how="mean") for layer in found[0]}
    print("What dense attention looks at, mean over heads (lowest to highest head)")
    print(table(*head_lines(profiles, ("window 64", "window 256"))))
    asked = {"mass 0.95": {"max_error": None, "target_recall": 0.95, "dynamic": False},
             "error 0.3": {"max_error": 0.3, "dynamic": False},
             "error 0.2": {"max_error": 0.2, "dynamic": False},
             "error 0.2, keys by content too": {"max_error": 0.2}}
    return {f"by head, {words}": recommended(profiles, words, options) for words, options in asked.items()}


def recommended(profiles, words, options):
    """What was chosen, printed, and returned as a function."""
    chosen = {layer: sa.recommend(profile, **options) for layer, profile in profiles.items()}
    print(f"\nBy head, {words}: {counted(chosen)}", flush=True)
    built = {}

    def choose(layer, q, k):
        if layer not in built or options.get("dynamic", True):  # patterns by position serve every passage
            built[layer] = chosen[layer].build(q, k)
        return built[layer]
    return choose


def embed(model, passages, choose):
    """(the attention with its pairs and seconds, embeddings)."""
    through = Through(choose, causal=False)
    return through, np.stack([model.embed(tokens, through) for tokens in passages])


def cosines(seen, name):
    return (seen[name][1] * seen["dense"][1]).sum(-1)


def nearest(embeddings):
    """For each passage the number of the nearest other."""
    products = embeddings @ embeddings.T
    np.fill_diagonal(products, -np.inf)
    return products.argmax(-1)


def lines(seen):
    head = "pattern", "pairs", "choosing", "attention", "cosine", "worst", "same nearest passage"
    rows = []
    for name, (through, embeddings) in seen.items():
        near, same = cosines(seen, name), nearest(embeddings) == nearest(seen["dense"][1])
        rows.append([name, f"{through.pairs:.3f}", f"{through.choosing:.2f} s", f"{through.attending:.2f} s",
                     f"{near.mean():.4f}", f"{near.min():.4f}", f"{same.mean():.2f}"])
    return head, rows


if __name__ == "__main__":
    main()
