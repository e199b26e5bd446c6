"""The gallery: a page with a picture, the rule, the cost and a code line of every family, all taken from the package.

    python docs/gallery.py DIRECTORY

writes gallery.rst and its pictures. `conf.py` calls `write` when the documentation is built.
"""

import inspect
import pathlib
import re
import sys
import textwrap

import numpy as np
from examples import collected
from inputs import inputs
from pictures import drawn, fullness, picture, where_it_lies

from sparseattn import Pattern, patterns, variants

PIXELS = 105  # of an inch of a picture, on the page
FAMILIES, VARIANTS = collected()
LARGE = 4096  # tokens of the inputs that are measured
SENTENCES = re.compile(r"(?<=\S[.])\s+(?=\S)")  # what parts them
RULE = re.compile(r"\bquery \w\b.*\battends\b", re.IGNORECASE | re.DOTALL)

INTRODUCTION = """\
Gallery
=======

Every family of patterns, and what it costs. The code lines drew the pictures, after ``import numpy as np`` and
``from sparseattn import patterns, variants``.

A picture shows a pattern as a square of queries and keys. Kernels work in tiles, and a tile with one pair costs as much
as a full one: shaded cells are computed for nothing. So a pattern that is scattered in the order of the text is stored
in an order of tokens in which it is dense, some in several parts with an order each. A pair has one color wherever it
is drawn. Tiles are tiny in the pictures, and those that run in the figures below them.
"""

ABOUT = {"Chosen by content": ("""\
Functions of q and k, or of what a model makes of them: here of few tokens in the pictures and 4,096 in the figures, a
walk in which near tokens are alike, with two keys that all queries like.
""",)}

ABOUT_VARIANTS = """\
What is not one softmax over one set of pairs, built from `sparseattn.attend`. Each gives its result and the function of
its gradients. A picture shows the pairs of each softmax. Here q, k, v and q_global, k_global, v_global hold 64 tokens.
"""


def write(directory):
    """Write gallery.rst and its pictures into a directory."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    check()
    page = [INTRODUCTION]
    for title, families in FAMILIES.items():
        page += [heading(title, "-"), *ABOUT.get(title, ())]
        page += [family_section(name, families[name], directory) for name in families]
    page += [heading("Variants", "-"), ABOUT_VARIANTS]
    page += [variant_section(name, VARIANTS[name], directory) for name in VARIANTS]
    (directory / "gallery.rst").write_text("\n".join(page))


def check():
    """Raise where a family or variant has no entry, or an entry no family."""
    families = {name for section in FAMILIES.values() for name in section}
    # update_means moves the means of routing: no attention of its own
    for what, shown, known in (("patterns", families, set(patterns.__all__)),
                               ("variants", set(VARIANTS), set(variants.__all__) - {"update_means"})):
        if shown != known:
            raise ValueError(f"docs/examples and sparseattn.{what} differ in {shown ^ known}")


def family_section(name, family, directory):
    function = getattr(patterns, name)
    text = [heading(name, "~"), summary(function), "", rule(function), ""]
    for number, code in enumerate(family.examples):
        found = sets(run(code, **inputs(family.n_tokens)))
        if len(found) > 1:
            tiles = [(family.tile, family.tile)]
            figure = drawn([where_it_lies([p.to_dense()[0, 0]], tiles, which) for which, p in found.items()])
        else:
            figure = picture(*found.values(), family.tile, family.grid)
        text += [code_block(code), *image(figure, directory / f"{name}-{number}.png", f"Pairs of {code}")]
    text += [f"- {build_cost(function)}", *measures(family.measured)]
    return "\n".join([*text, f"- Arguments: :func:`sparseattn.patterns.{name}`", ""])


def variant_section(name, variant, directory):
    function = getattr(variants, name)
    random = np.random.default_rng(0)
    arrays = {x: random.standard_normal((64, 16), np.float32) for x in
              ("q", "k", "v", "q_global", "k_global", "v_global")}
    arrays |= {"gates": np.ones((64, 3), np.float32), "means": inputs(64)["means"]}
    exec(variant.code, {"variants": variants, **arrays})
    rows = Pattern.from_ranges([0] * 64, np.where(np.isin(np.arange(64), [0, 30]), 64, 0), 64)
    figure = drawn([where_it_lies([run(code, global_rows=rows, **inputs(64)).to_dense()[0, 0]], [(1, 1)], title)
                    for title, code in variant.sets.items()])
    text = [heading(name, "~"), summary(function), "", notes(function), "", code_block(variant.code)]
    text += image(figure, directory / f"variant-{name}.png", f"Pairs of each softmax of {name}")
    return "\n".join([*text, f"- Arguments: :func:`sparseattn.variants.{name}`", ""])


def run(code, **more):
    """The value of a code line."""
    return eval(code, {"np": np, "Pattern": Pattern, "patterns": patterns, **more})


def sets(result):
    """The patterns of what a family returns, by name: one, or those of a named tuple."""
    return {"": result} if isinstance(result, Pattern) else result._asdict()


def measures(code):
    """Figures of a call, a line for each of its patterns."""
    for which, pattern in sets(run(code, **inputs(LARGE))).items():
        pairs = pattern.nnz / (pattern.batch * pattern.n_heads * pattern.shape[0])
        line = f"- ``{code}{'.' * bool(which)}{which}``: {pairs:,.4g} pairs a query, {pattern.density:.1%} of all; "
        single = all(part.block_size == (1, 1) for part in pattern.tiles())
        line += "single pairs" if single else f"tiles are {pattern.density_in_tiles:.0%} full"
        if any(part.q_order is not None or part.k_order is not None for part in pattern.parts):
            line += f" as stored, and would be {fullness_where_it_lies(pattern):.0%} full where the pairs lie"
        yield line + "."


def fullness_where_it_lies(pattern):
    """Pairs over pairs of tiles in the natural order, with tiles of the size that most of the pattern's work has."""
    largest = max(pattern.tiles(), key=lambda part: part.n_blocks * part.block_size[0] * part.block_size[1])
    return fullness(pattern.to_dense()[0, 0], largest.block_size)


def summary(function):
    """The first paragraph of a docstring."""
    return inspect.getdoc(function).split("\n\n")[0]


def notes(function):
    """The Notes of a docstring, without numbers of references."""
    after = inspect.getdoc(function).partition("Notes\n-----\n")[2]
    return re.sub(r"\s*\[\d+\]_", "", re.split(r"\n\n\w+\n-+\n", after)[0].strip())


def rule(function):
    """The Notes up to the last sentence of the kind "query i attends key j when ..."."""
    text = notes(function)
    found = [sentence for sentence in SENTENCES.split(text) if RULE.search(sentence)]
    if not found:
        raise ValueError(f'the Notes of {function.__name__} do not say "query i attends key j when ..."')
    return text[: text.index(found[-1]) + len(found[-1])]


def build_cost(function):
    """What the Notes say it takes to build, in time or in memory."""
    pieces = re.split(r"(?<=\S[.:;]) +", " ".join(notes(function).split()))
    found = [piece for piece in pieces if "O(" in piece]
    if not found:
        raise ValueError(f"the Notes of {function.__name__} do not say what it takes to build")
    return " ".join(found)


def image(figure, path, words):
    """Save a figure and give the lines that show it."""
    figure.savefig(path, metadata={"Software": None})  # else files would differ by the version of matplotlib
    return [f".. image:: {path.name}", f"   :width: {figure.get_figwidth() * PIXELS:.0f}px", f"   :alt: {words}", ""]


def heading(text, line):
    return f"{text}\n{line * len(text)}\n"


def code_block(code):
    return ".. code-block:: python\n\n" + textwrap.indent(code, "   ") + "\n"


if __name__ == "__main__":
    write(sys.argv[1])
