"""Checks public docstrings with numpydoc: of `sparseattn`, `sparseattn.bias`, `patterns`, `variants` and `Pattern`.

    python .ci/docstrings.py
"""

import inspect
import sys

import sparseattn as sa
from numpydoc.validate import validate

TEXT = {"GL03", "GL06", "GL07", "GL08", "GL10", "SS01", "SS03", "SS04", "RT04", "RT05"}
SECTIONS = TEXT | {"PR01", "PR02", "PR06", "PR09", "PR10", "RT01"}


def public():
    """(name, object) of everything public that has a docstring of its own."""
    for name in sa.__all__:
        yield f"sparseattn.{name}", getattr(sa, name)
    for module in (sa.bias, sa.patterns, sa.variants):
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)
    for name, member in vars(sa.Pattern).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, (property, classmethod, staticmethod))):
            yield f"sparseattn.Pattern.{name}", getattr(sa.Pattern, name)


def checks_of(thing):
    """Sections are for functions with arguments; a property, a class or `pattern.check()` may be one sentence."""
    if not inspect.isroutine(thing):
        return TEXT
    arguments = set(inspect.signature(thing).parameters) - {"self"}
    return SECTIONS if arguments else TEXT


def main():
    found = 0
    for name, thing in public():
        if inspect.ismodule(thing) or isinstance(thing, str):
            continue
        for code, message in validate(name)["errors"]:
            if code in checks_of(thing):
                found += 1
                print(f"{name}: {code} {message}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
