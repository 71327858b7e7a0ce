"""One small synthetic benchmark for all tests of the readers; those that change it copy it first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salmacli.data.synthetic.make import make

SIZES = {"train": 5, "valid": 2, "held_out": 4}


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "synthetic", seed=3, sizes=SIZES, processes=1)


@pytest.fixture
def change():
    def change(path, edit):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change
