"""Fixtures every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from salmacli.models.salma import Salma

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real frames and masks; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("SALMA_SHARED") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder} (SALMA_SHARED names another folder)")
    return folder


@pytest.fixture(scope="session")
def small_synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few videos of the synthetic benchmark in all layouts."""
    from salmacli.data.synthetic.make import make

    sizes = {"train": 6, "valid": 1, "held_out": 2}
    return make(tmp_path_factory.mktemp("small") / "synthetic", sizes=sizes, processes=1)


@pytest.fixture(scope="session")
def tiny_model() -> Salma:
    """The tiny preset's model with CMA and random weights. Shared: leave it as it is."""
    import torch

    from salmacli.config.loading import load_config
    from salmacli.models.grounding import Grounding
    from salmacli.models.salma import Salma

    torch.manual_seed(0)
    config = load_config("tiny", ["model.cma.enabled=true"]).model
    with pytest.MonkeyPatch.context() as patch:
        # A loud memory of random weights makes another mask of a rounding.
        patch.setattr(Grounding, "start_memory", lambda grounding: None)
        return Salma.build(config, ["the red circle", "the blue square on the left"]).eval()


@pytest.fixture
def run_checkpoint(tiny_model: Salma, tmp_path: Path) -> Path:
    """A checkpoint of the tiny model as a run holds it, with a trainer state."""
    import torch

    from salmacli.checkpoints.save import save_checkpoint

    folder = tmp_path / "runs" / "first" / "checkpoints" / "step-7"
    state = {"optimizer": {"momentum": torch.ones(3)}, "rng": torch.get_rng_state(), "epoch": 2}
    config = {"seed": 0, "model": tiny_model.config.model_dump(mode="json")}
    save_checkpoint(folder, tiny_model, config=config, step=7, trainer_state=state)
    return folder
