"""A language model on prose, on code and on a copy of what it read long before: which pattern keeps all three?

    python examples/language.py --accept-terms [--tokens 1536] [--tasks prose code copy] [--quick] [--out FILE]

The model is Gemma 3 270M; its terms are printed first. docs/evidence/language.md tells what came out.
"""

import argparse

import numpy as np

import sparseattn as sa
import texts
from attention import Profiling, Through, for_each_head
from models.gemma import TERMS, WINDOW, Gemma, is_global
from picture import save_scatter
from table import slower, table

NEAR, FIRST, BLOCK, N_BLOCKS = 64, 4, 16, 16  # what stands in for a global layer: keys, keys, keys a block, blocks
SIZE = NEAR + FIRST + BLOCK * N_BLOCKS
QUICK, MOST_SCORED = 768, 1024  # tokens of a quick run; tokens whose loss is measured
NEW_LINE = 108


def main():
    options = arguments()
    print(TERMS, end="\n\n")
    if not options.accept_terms:
        raise SystemExit("Read them, then run this again with --accept-terms.")
    model, n = Gemma.load(), options.tokens
    sa.warm(dtypes=("float32",), head_dims=(256,))
    rows, inputs = by_hand(n), {name: TASKS[name](model.tokenizer, n, profiled=False) for name in options.tasks}
    if options.quick:
        rows = {name: rows[name] for name in IN_QUICK}
    else:
        rows |= by_profile(model, n)
    results = {}
    for name, choose in rows.items():
        results[name] = read(model, inputs, choose)
        print(f"  {name}: done", flush=True)
    print(f"\n{n:,} tokens, loss in nats a token and change of perplexity. Pairs: share of the causal triangle.")
    print(table(*lines(results)))
    print(slower({name: choosing + attending for name, (_, _, choosing, attending) in results.items()}))
    if options.out:
        save_scatter(options.out, {name: (pairs, change(results, name)) for name, (_, pairs, *_) in results.items()},
                     "share of the causal pairs", "perplexity, % above its own pattern")


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accept-terms", action="store_true", help="you have read the Gemma terms and agree")
    parser.add_argument("--tokens", type=int, default=None, help="tokens of a text, 512 to 8192 (1536)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} tokens by default, and some patterns alone")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="what is read (all)")
    parser.add_argument("--out", help="write a picture there, .png")
    options = parser.parse_args(given)
    if options.tokens is None:
        options.tokens = QUICK if options.quick else 1536
    if not 512 <= options.tokens <= 8192:
        parser.error(f"--tokens is {options.tokens}; expected 512 to 8192")
    return options


# What is read. A copy of code is profiled, a copy of prose tested; no token is in both.

def _start_of(text):
    """Function of (tokenizer, number of tokens, whether to profile) that gives the first tokens of a text."""
    return lambda tokenizer, n, profiled: tokenizer.encode(text(profiled)[: 8 * n])[:n]


_prose, _code = _start_of(texts.prose), _start_of(texts.code)


def _copy(tokenizer, n, profiled):
    return texts.twice((_code if profiled else _prose)(tokenizer, n, profiled), NEW_LINE, n)


TASKS = {"prose": _prose, "code": _code, "copy": _copy}


# Patterns by hand: name -> function of (layer, q, k) that returns a Pattern.

OWN = f"its own: {WINDOW} in 15 layers, 3 global"
NARROW = f"window {WINDOW} everywhere"
SAME_SIZE = f"global layers: window {SIZE}"
RANDOM = f"global layers: {NEAR} near + first {FIRST} + {N_BLOCKS} random blocks of {BLOCK}"
CHOSEN = f"global layers: {NEAR} near + first {FIRST} + best {N_BLOCKS} blocks of {BLOCK}"
IN_QUICK = OWN, NARROW, SAME_SIZE, RANDOM, CHOSEN


def by_hand(n):
    local, whole, sinks = window(n, WINDOW), sa.patterns.causal(n), window(n, WINDOW, FIRST)
    random = window(n, NEAR, FIRST) | random_blocks(n)
    return {
        OWN: layers(local, whole),
        NARROW: layers(local, local),
        f"window {WINDOW}, global layers + first {FIRST}": layers(local, sinks),
        f"window {WINDOW} + first {FIRST} everywhere": layers(sinks, sinks),
        SAME_SIZE: layers(local, window(n, SIZE)),
        RANDOM: layers(local, random),
        CHOSEN: layers(local, best_blocks),
        "local layers cut to 256": layers(window(n, 256), whole),
        "local layers cut to 128, global with best blocks": layers(window(n, 128), best_blocks),
    }


def layers(local, whole):
    """A pattern or a function of (q, k) for the local layers, and one for the global ones."""
    def choose(layer, q, k):
        chosen = whole if is_global(layer) else local
        return chosen(q, k) if callable(chosen) else chosen
    return choose


def window(n, size, first=0):
    """The last `size` keys and the `first` ones of all."""
    near = sa.patterns.sliding_window(n, left=size - 1)
    return near | sa.patterns.global_tokens(n, range(first)) & sa.patterns.causal(n) if first else near


def best_blocks(q, k):
    """A window, the first keys, and the blocks whose mean key fits the query best."""
    chosen = sa.patterns.moba(q, k, chunk_size=BLOCK, top_k=N_BLOCKS + 1)
    return window(q.shape[1], NEAR, FIRST) | chosen


def random_blocks(n, seed=0):
    """As many blocks drawn from those before, the same for all heads; and the own block."""
    rng, n_blocks = np.random.default_rng(seed), -(-n // BLOCK)
    layout = np.eye(n_blocks, dtype=bool)
    for row in range(1, n_blocks):
        layout[row, rng.choice(row, min(N_BLOCKS, row), replace=False)] = True
    return sa.Pattern.from_blocks(layout, block_size=BLOCK, shape=(n, n)) & sa.patterns.causal(n)


# Patterns by profile, for the heads of the global layers; the local ones keep theirs.

def by_profile(model, n):
    whole = [layer for layer in range(model.n_layers) if is_global(layer)]
    own, profiles, candidates = layers(window(n, WINDOW), sa.patterns.causal(n)), {}, {}
    for name, make in TASKS.items():
        seen = Profiling(own, whole, candidates=candidates, causal=True, rows=256)
        model(make(model.tokenizer, n, profiled=True), seen)
        profiles[name] = seen.found
        candidates = candidates or {layer: found.candidates for layer, found in seen.found.items()}
    together = {layer: sa.Profile.combine([p[layer] for p in profiles.values()], how="worst") for layer in whole}
    return {
        name: recommended(name, found, n, dynamic)
        for name, found, dynamic in (("by head, profiled on prose", profiles["prose"], False),
                                     ("by head, profiled on prose, code and copy", together, False),
                                     ("by head, profiled on prose, keys by content too", profiles["prose"], True))
    }


def recommended(name, profiles, n, dynamic):
    """What each head of the global layers gets for an error up to 0.2; printed, and returned as a function."""
    chosen = {layer: sa.recommend(found, max_error=0.2, dynamic=dynamic) for layer, found in profiles.items()}
    print(f"\n{name}, an error up to 0.2 allowed in each head of the global layers")
    print(table(("layer", "head", "pattern", "pairs", "error", "mass"), head_lines(chosen)), flush=True)
    return by_head(chosen, n)


def by_head(chosen, n):
    local = window(n, WINDOW)
    return lambda layer, q, k: chosen[layer].build(q, *for_each_head(q, k)) if layer in chosen else local


def head_lines(chosen):
    for layer, choice in chosen.items():
        for head in choice.heads:
            yield (layer, head.head, head.choice, f"{head.kept / choice.dense_pairs:.1%}", f"{head.error:.3f}",
                   f"{head.recall_mean:.3f}")


def read(model, inputs, choose):
    """(mean loss of each task, share of the pairs, seconds of choosing, seconds of attending)."""
    through, losses = Through(choose, causal=True), {}
    for name, tokens in inputs.items():
        start = max(len(tokens) // 2, len(tokens) - MOST_SCORED)
        losses[name] = float(model.losses(tokens, start, through).mean())
    return losses, through.pairs, through.choosing, through.attending


def change(results, name):
    """Per cent of perplexity above the first row, for each task."""
    first = next(iter(results.values()))[0]
    return {task: 100 * (np.exp(loss - first[task]) - 1) for task, loss in results[name][0].items()}


def lines(results):
    tasks = list(next(iter(results.values()))[0])
    head = ["pattern", "pairs", "choosing", "attention", *(part for task in tasks for part in (task, "")), "worst"]
    rows = []
    for name, (losses, pairs, choosing, attending) in results.items():
        changes = change(results, name)
        cells = [part for task in tasks for part in (f"{losses[task]:.3f}", f"{changes[task]:+.1f} %")]
        rows.append([name, f"{pairs:.3f}", f"{choosing:.2f} s", f"{attending:.2f} s", *cells,
                     f"{max(changes.values()):+.1f} %"])
    return head, rows


if __name__ == "__main__":
    main()
