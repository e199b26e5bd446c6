"""Files of wheels that are no dependency of this project, and what to install where one is missing."""

import importlib
import importlib.util
from pathlib import Path


def module(name, install):
    """The imported module; where it is missing, the script ends and says what `pip install` needs."""
    _check(name, install)
    return importlib.import_module(name)


def folder(name, install):
    """The folder of an installed package, without importing it."""
    return Path(_check(name, install).submodule_search_locations[0])


def _check(name, install):
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of a module in a package, the package
        spec = None
    if spec is None:
        raise SystemExit(f"The module {name} is not installed. This example needs it:\n\n"
                         f"    python -m pip install {install}\n\nsparseattn itself does not.")
    return spec
