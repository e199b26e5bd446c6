"""Fixtures shared by the tests."""

import pytest
from hypothesis import settings

import sparseattn as sa
from sparseattn.kernels.gpu import layout as gpu_layout

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


@pytest.fixture
def cut(monkeypatch):
    """On a GPU rows are cut into pieces of 32 moving slots."""
    monkeypatch.setattr(gpu_layout, "LEAST", 32)
    monkeypatch.setattr(gpu_layout, "SHARES", 10**6)
