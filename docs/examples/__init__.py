"""What the gallery shows: of each family examples and a call to measure, of each variant a call and its sets of pairs.

Each module here has FAMILIES, by section and name, and VARIANTS, by name.
"""

import importlib
import pkgutil
from typing import NamedTuple


class Family(NamedTuple):
    """Code lines that are shown, run and drawn."""

    measured: str
    examples: tuple[str, ...]
    tile: int | None  # slots of a tile in the pictures; None: as the family chooses
    grid: tuple[int, int] | None  # of the examples
    n_tokens: int  # of the inputs of examples that choose by content


class Variant(NamedTuple):
    """A call that is shown and run, and the pairs of each of its softmaxes, which are drawn."""

    code: str
    sets: dict[str, str]


def family(measured, *examples, tile=4, grid=None, n_tokens=64):
    return Family(measured, examples, tile, grid, n_tokens)


def collected():
    """(FAMILIES, VARIANTS) of all modules here, in the order of their names."""
    families, variants = {}, {}
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{module}")
        families |= module.FAMILIES
        variants |= module.VARIANTS
    return families, variants
