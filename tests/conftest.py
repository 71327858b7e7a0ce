"""Fixtures every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real frames and masks; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("SALMA_SHARED") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder} (SALMA_SHARED names another folder)")
    return folder
