"""Fixtures shared by the tests."""

import pytest

import sparseattn as sa


@pytest.fixture(params=["numba_cpu", "reference"])
def backend(request):
    """Name of a backend; skips with the reason where it cannot be used here."""
    found = {b.name: b for b in sa.backends()}[request.param]
    if not found.usable:
        pytest.skip(f"{found.reason}; {found.cure}")
    return found.name
