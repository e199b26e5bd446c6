"""How much of dense attention's mass each choice by content captures, beside what as many pairs could capture.

    python benchmarks/captured_mass.py [--quick] [--plot FILE.png] [--text NAME]

Data: tokens about 64 topics in any order; the same in passages of 64; q and k of the demo model reading a text. All
causal, 4,096 tokens; averaged over heads (of all layers) and over the queries of the second half. For each family at
several sizes, with the pairs that it gives each query:

  mass    of the softmax over all earlier keys, the share that lies on its pairs
  random  what as many keys drawn at random hold on average, n / earlier keys; and the ratio to it
  window  what the as many last keys hold
  bound   what the as many largest hold: exact top-k, the most any pattern can

lsh and clusters compare directions of q and k. "balanced" gives them q and k without their means and of one covariance
(`suite/content.py` says why): in a trained model these fall apart otherwise.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np

import sparseattn as sa
from sparseattn.demo.model import ByteLM
from sparseattn.demo.texts import samples
from suite import content

N_TOKENS, QUICK = 4096, 512
CURVE = [8, 16, 32, 64, 128, 256, 512, 1024]  # pairs a query at which bound, window and random are drawn
PROMISED = "lsh", "lsh, balanced", "clusters", "clusters, balanced"  # to hold so many times the mass of random pairs
LEAST_RATIO = 3.0


@dataclass(frozen=True)
class Line:
    """Means over heads: pairs a query, and the masses."""

    pairs: float
    mass: float
    random: float
    window: float
    bound: float


def sizes(n_tokens):
    """Family -> {size in words: function of (q, k)}; each from few pairs to many."""
    p, few = sa.patterns, n_tokens // 128
    return {
        **by_direction("lsh", content.lsh, {f"{r} rounds, chunk {m}": {"n_hashes": r, "chunk_length": m}
                                            for r, m in ((1, 32), (2, 32), (4, 32), (4, 64))}),
        **by_direction("clusters", content.clusters, {f"window {w}": {"window": w}
                                                      for w in (few, 2 * few, 4 * few)}),
        "moba": {f"{t} of {n_tokens // 64}": lambda q, k, t=t: p.moba(q, k, chunk_size=64, top_k=t) for t in (2, 4, 8)},
        "block_top_k": {f"{t} blocks of 16": lambda q, k, t=t: content.block_top_k(q, k, block_size=16, n_blocks=t)
                        for t in (2, 4, 8, 16)},
        "vertical_slash": {f"{v} + {s}": lambda q, k, v=v, s=s: p.vertical_slash(q, k, n_vertical=v, n_slash=s)
                           for v, s in ((30, 50), (100, 100), (300, 200))},
        "flex_prefill": {f"gamma {g}": lambda q, k, g=g: p.flex_prefill(q, k, gamma=g, tau=0.1, block_size=64)
                         for g in (0.3, 0.6, 0.9)},
        "xattention": {f"threshold {t}": lambda q, k, t=t: p.xattention(q, k, block_size=64, stride=8, threshold=t)
                       for t in (0.1, 0.3, 0.6, 0.9)},
        "sparge": {f"tau {t}": lambda q, k, t=t: p.sparge(q, k, tau=t, theta=-1) for t in (0.1, 0.3, 0.6, 0.9)},
    }


def by_direction(name, build, sized):
    """A family that looks at directions of q and k, as they are and balanced."""
    return {name: {size: lambda q, k, o=options: build(q, k, **o) for size, options in sized.items()},
            f"{name}, balanced": {size: lambda q, k, o=options: build(*content.balanced(q, k), **o)
                                  for size, options in sized.items()}}


def data(n_tokens, text):
    """Name -> list of (q, k), each (1, n_heads, n_tokens, head_dim)."""
    read = next((s for s in samples(n_tokens) if s.name == text), None)
    if read is None:
        raise SystemExit(f"no text is named {text!r}; there are {', '.join(s.name for s in samples(n_tokens))}")
    return {
        "topics in any order": [content.topical(n_tokens)[:2]],
        "topics in passages": [content.topical(n_tokens, run=64)[:2]],
        f"demo model, {text}": layers(read.tokens),
    }


def layers(tokens):
    """(q, k) of every layer of the demo model reading tokens."""
    seen = []

    def attend(layer, q, k, v):
        seen.append((q[None], k[None]))
        return sa.attend(q, k, v, sa.patterns.causal(len(tokens)))

    ByteLM()(tokens, attend)
    return seen


class Dense:
    """The causal softmax rows of the second half of one head's queries, and what the most and the last keys hold."""

    def __init__(self, q, k):
        n = len(k)
        self.earlier = np.arange(n // 2, n) + 1  # itself included
        s = q[n // 2 :] @ k.T * np.float32(q.shape[1] ** -0.5)
        s[np.arange(n) >= self.earlier[:, None]] = -np.inf
        self.p = np.exp(s - s.max(axis=1, keepdims=True))
        self.p /= self.p.sum(axis=1, keepdims=True)
        self.most = _held(np.sort(self.p, axis=1)[:, ::-1])
        self.first = _held(self.p)

    def holds(self, counts):
        """(random, window, bound) of so many keys (rows,), means over rows."""
        counts = np.minimum(counts, self.earlier)
        row = np.arange(len(counts))
        last = self.first[row, self.earlier] - self.first[row, self.earlier - counts]
        return (counts / self.earlier).mean(), last.mean(), self.most[row, counts].mean()


def _held(p):
    """Mass of the first 0, 1, ... columns, float32 (rows, n + 1)."""
    total = np.zeros((p.shape[0], p.shape[1] + 1), np.float32)
    np.cumsum(p, axis=1, out=total[:, 1:])
    return total


def measure(pairs_of_layers, families):
    """({(family, size): Line}, {pairs a query: (random, window, bound)}), means over all heads."""
    lines, curves = {}, {}
    for q, k in pairs_of_layers:
        half = slice(k.shape[2] // 2, None)
        chosen = {(family, size): build(q, k)[:, :, half] for family, sized in families.items()
                  for size, build in sized.items()}
        for head in range(q.shape[1]):
            dense = Dense(q[0, head], k[0, head])
            for name, pattern in chosen.items():
                own = head if pattern.n_heads > 1 else 0
                pairs = pattern[:, own:own + 1].to_dense()[0, 0]
                counts = pairs.sum(axis=1)
                mass = dense.p.sum(axis=1, where=pairs).mean()
                lines.setdefault(name, []).append((counts.mean(), mass, *dense.holds(counts)))
            for count in CURVE:
                curves.setdefault(count, []).append(dense.holds(np.full(len(dense.p), count)))
    return ({name: Line(*np.mean(rows, axis=0)) for name, rows in lines.items()},
            {count: np.mean(rows, axis=0) for count, rows in curves.items()})


def show(title, lines):
    """The table of one kind of data; returns what falls short of what is promised."""
    print(f"\n{title}\n{'':<36}{'pairs':>7}{'mass':>8}{'random':>8}{'ratio':>8}{'window':>8}{'bound':>8}")
    short = []
    for (family, size), line in lines.items():
        ratio = line.mass / line.random
        print(f"{family + ', ' + size:<36}{line.pairs:>7.0f}{line.mass:>8.3f}{line.random:>8.3f}{ratio:>8.1f}"
              f"{line.window:>8.3f}{line.bound:>8.3f}", flush=True)
        if family in PROMISED and ratio < LEAST_RATIO:
            short.append(f"{title}: {family}, {size} ({ratio:.1f})")
    return short


def draw(path, results):
    """A panel for each kind of data: mass over pairs a query."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 4.8), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (title, (lines, curves)) in zip(panels, results.items()):
        held = np.array(list(curves.values()))
        for column, name, style in ((2, "exact top-k: the bound", "k-"), (1, "window", "k--"), (0, "random", "k:")):
            axes.plot(list(curves), held[:, column], style, linewidth=1, label=name)
        for family in dict.fromkeys(family for family, _ in lines):
            points = [line for (name, _), line in lines.items() if name == family]
            axes.plot([p.pairs for p in points], [p.mass for p in points], "o-", markersize=4, label=family)
        axes.set(xscale="log", xlabel="pairs a query", title=title, ylim=(0, 1.02))
    panels[0].set_ylabel("share of dense attention's mass")
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens, no verdict: shows that it runs, no more")
    parser.add_argument("--plot", metavar="FILE.png", help="draw mass over pairs; needs matplotlib")
    parser.add_argument("--text", default="prose", metavar="NAME",
                        help="what the demo model reads: prose, code or copy")
    args = parser.parse_args(arguments)
    n_tokens = QUICK if args.quick else N_TOKENS
    families, results, short = sizes(n_tokens), {}, []
    for title, pairs_of_layers in data(n_tokens, args.text).items():
        results[title] = measure(pairs_of_layers, families)
        short += show(title, results[title][0])
    if args.plot:
        draw(args.plot, results)
    if short:
        print(f"\nless than {LEAST_RATIO:g} times the mass of random pairs:", *short, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
