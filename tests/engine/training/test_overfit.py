"""LoRA on a frozen base of random weights learns eight pictures by heart."""

from __future__ import annotations

import json
import shutil

import pytest

from salmacli.data.synthetic.make import make
from salmacli.engine.progress import Silent

SETTINGS = [
    "model.sam2.image_size=192", "data.expressions=2", "train.batch_size=8", "train.learning_rate=2e-3",
    "train.recipe=lora", "train.lora.rank=16", "train.lora.dropout=0", "losses.boundary=0.3", "losses.points=784",
    "data.decoded_frames=1", "train.log_every=50", "train.steps=400", "train.save_every=400",
    "train.validation.every=400", "train.validation.set=own", "train.validation.split=train",
]  # fmt: skip


@pytest.mark.slow
def test_eight_pictures_are_learnt_by_heart(tmp_path, start, config):
    folder = make(tmp_path / "synthetic", sizes={"train": 8, "valid": 1, "held_out": 1}, processes=1)
    own = tmp_path / "own"
    shutil.copytree(folder / "own", own)
    entries = json.loads((own / "annotations.json").read_text())
    two = [{**entry, "mask": entry["mask"][:2], "text": entry["text"][:2]} for entry in entries]
    (own / "annotations.json").write_text(json.dumps(two))
    roots = [f"data.train=[{{set: own, root: {own}}}]", f"train.validation.root={own}"]
    trainer = start(config(*SETTINGS, *roots), progress=Silent())
    trainer.fit()
    lines = [json.loads(line) for line in trainer.run.metrics_path.read_text().splitlines()]
    (score,) = [line["validation_J"] for line in lines if "validation_J" in line]
    assert score >= 0.95
