"""How Sphinx builds the documentation: `sphinx-build docs docs/_build/html`."""

import pathlib
import sys

import sparseattn

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import gallery  # noqa: E402

project = "sparseattn"
author = copyright = "the sparseattn developers"
version = release = sparseattn.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "myst_parser", "numpydoc"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
smartquotes = False  # quotes are code more often than not
default_role = "autolink"  # `sparseattn.attend` is a link, `n_keys` is not

autosummary_ignore_module_all = False
autodoc_typehints = "none"  # docstrings say more
numpydoc_show_class_members = False  # templates list them
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = "sparseattn"
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}


def list_design_pages(app, docname, source):
    """The page has links that work wherever it is read; for its place in the site Sphinx wants a toctree."""
    if docname == "design/README":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def skip_member(app, what, name, member, skip, options):
    """Fields of a named tuple, of which is only known that they are fields."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app):
    gallery.write(HERE / "generated")
    app.connect("source-read", list_design_pages)
    app.connect("autodoc-skip-member", skip_member)
