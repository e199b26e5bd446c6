"""Fixtures shared by the tests."""

import pytest
from hypothesis import settings

import sparseattn as sa

# a shared machine may stall any example; the same examples every time
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=80)
settings.load_profile("steady")


@pytest.fixture(params=["numba_cpu", "reference"])
def backend(request):
    """Name of a backend; skips with the reason where it cannot be used here."""
    found = {b.name: b for b in sa.backends()}[request.param]
    if not found.usable:
        pytest.skip(f"{found.reason}; {found.cure}")
    return found.name
