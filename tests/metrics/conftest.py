"""Every kernel that is there."""

from __future__ import annotations

import pytest

from salmacli.metrics import kernels
from salmacli.metrics.kernels import plain

KERNELS = ["plain", "compiled"]


@pytest.fixture(params=KERNELS)
def each_kernel(request, monkeypatch):
    """Runs a test once per kernel; the name of the kernel in use."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        from salmacli.metrics.kernels import compiled as chosen
    else:
        chosen = plain
    for name in kernels.KERNELS:
        monkeypatch.setattr(kernels, name, getattr(chosen, name))
    return request.param
