"""The documentation's pages agree with the package. None of this needs Sphinx."""

import doctest
import importlib
import pathlib
import re
import sys

import pytest

import sparseattn as sa

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def gallery():
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("gallery")
    finally:
        sys.path.remove(str(DOCS))


def test_quick_start():
    found = doctest.testfile(str(DOCS / "quickstart.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 20 and not found.failed


def test_which_pattern_fits():
    found = doctest.testfile(str(DOCS / "which_pattern.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 15 and not found.failed


def test_the_gallery_shows_every_family_and_variant(gallery, monkeypatch):
    gallery.check()
    for module in (sa.patterns, sa.variants):
        monkeypatch.setattr(module, "__all__", [*module.__all__, "missing"])
        with pytest.raises(ValueError, match="missing"):
            gallery.check()
        monkeypatch.undo()


@pytest.mark.parametrize("name", sa.patterns.__all__)
def test_the_gallery_finds_the_rule_and_the_cost_in_the_docstring(gallery, name):
    function = getattr(sa.patterns, name)
    assert re.search(r"query \w", gallery.rule(function), re.IGNORECASE) and "attend" in gallery.rule(function)
    assert "O(" in gallery.build_cost(function)


def test_the_gallery_is_written(gallery, tmp_path):
    gallery.write(tmp_path)
    page = (tmp_path / "gallery.rst").read_text()
    shown = re.findall(r"image:: (\S+)", page)
    assert sorted(shown) == sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(shown) >= len(sa.patterns.__all__) + len(sa.variants.__all__)
    # the idea of the product, in its own figures: strided attention is dense somewhere else
    assert "66% full as stored, and would be 9% full where the pairs lie" in page


def test_the_api_page_lists_every_public_name():
    page = (DOCS / "api.rst").read_text()
    listed = set(re.findall(r"^   (\w+)$", page, re.MULTILINE))
    assert listed == {name for name in sa.__all__ if name != "__version__"}


def test_every_design_page_is_listed():
    index = (DOCS / "design" / "README.md").read_text()
    pages = {path.name for path in (DOCS / "design").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\S+\.md)\)", index)) == pages
