"""Mode sa2va against what the public implementation computes with the same weights (tiny and random, in fp32)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from salmacli.checkpoints.load import load_checkpoint
from salmacli.cli import main
from salmacli.config.schema import PredictConfig
from salmacli.data.collate import Collator
from salmacli.data.conversation import Turn
from salmacli.data.frames import arrays, frames_of
from salmacli.data.training.clips import Clip
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.prediction.sights import to_language, to_sam2
from salmacli.engine.prediction.tracks import Track, resized

ANSWER = "Sure, [SEG]."
SA2VA = PredictConfig(mode="sa2va")


@pytest.fixture(scope="module")
def parity(shared_data: Path) -> Path:
    return shared_data / "parity"


@pytest.fixture(scope="module")
def case(parity: Path) -> dict:
    return json.loads((parity / "case.json").read_text())


@pytest.fixture(scope="module")
def frames(parity: Path) -> list[np.ndarray]:
    return list(frames_of(parity / "frames"))


@pytest.fixture(scope="module")
def released(parity: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released model as `salma convert` makes it ours."""
    out = tmp_path_factory.mktemp("parity") / "released"
    assert main(["convert", str(parity), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def trained(parity: Path, case: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training file on the released model."""
    out = tmp_path_factory.mktemp("parity") / "trained"
    alpha = str(case["training_v2"]["lora_alpha"])
    file = str(parity / case["training_v2"]["file"])
    assert main(["convert", file, "--base", str(parity), "--lora-alpha", alpha, "--out", str(out)]) == 0
    return out


def assert_same(track: Track, expected: np.lib.npyio.NpzFile, name: str, shape: list[int]) -> None:
    logits = resized(torch.from_numpy(track.logits), (track.side, track.side))[:, None].numpy()
    assert np.abs(logits - expected[f"{name[0]}logits{name[1]}"]).max() < 1e-4
    assert np.abs(track.embedding.numpy() - expected[f"{name[0]}embedding{name[1]}"][0]).max() < 1e-5
    if f"{name[0]}masks{name[1]}" in expected:
        masks = np.unpackbits(expected[f"{name[0]}masks{name[1]}"], count=int(np.prod(shape))).reshape(shape)
        assert (track.masks() == masks).mean() >= 0.9999


@pytest.mark.parametrize("which", ["released", "trained"])
def test_video_equals_the_public_implementation(which, parity, case, frames, request):
    model = load_checkpoint(request.getfixturevalue(which))[0]
    tracks = Predictor(model, SA2VA).video(frames, case["expressions"], answer=ANSWER, keep_logits=True)
    expected = np.load(parity / ("expected.npz" if which == "released" else "expected_after_training_v2.npz"))
    for number, track in enumerate(tracks):
        assert_same(track, expected, ("video_", f"_{number}"), case["mask_shape"])


def test_picture_in_tiles_equals_the_public_implementation(released, parity, case, frames):
    model = load_checkpoint(released)[0]
    track = Predictor(model, SA2VA).video(
        arrays(frames[:1], still=True), case["expressions"][:1], answer=ANSWER, keep_logits=True
    )[0]
    assert_same(track, np.load(parity / "expected.npz"), ("image_", ""), case["image_mask_shape"])


def test_training_computes_the_same_on_the_conditioning_frames(released, parity, case, frames):
    """One training step's forward pass over the five frames and both expressions."""
    model, shown = load_checkpoint(released)[0], frames[:5]
    collator = Collator(model.tokenizer, model.mllm.frame_size, model.mllm.tokens_per_frame, 256, model.mllm.chat)
    texts = tuple(case["expressions"])
    masks = np.zeros((2, 5, *shown[0].shape[:2]), bool)
    dialogues = tuple((Turn("Please segment {expression}.", ANSWER, text),) for text in texts)
    clip = Clip("cat", tuple(shown), tuple(shown), dialogues, (("1",), ("2",)), masks, masks[0])
    batch = replace(
        collator.batch([clip]),
        mllm_pixels=to_language(model, "sa2va", shown, False).pixels,
        sam_pixels=to_sam2(model, "sa2va", shown),
    )
    with torch.no_grad():
        logits = resized(model(batch).masks.logits, (256, 256)).view(2, 5, 256, 256).numpy()
    expected = np.load(parity / "expected.npz")
    for number in range(2):
        assert np.abs(logits[number] - expected[f"video_logits_{number}"][:5, 0]).max() < 1e-4


def test_predict_writes_what_the_public_implementation_computes(released, parity, case, tmp_path):
    """The command that the README names, and the three arrays it writes."""
    file = tmp_path / "logits.npz"
    text = case["expressions"][0]
    options = ["--checkpoint", str(released), "--mode", "sa2va", "--text", text, "--answer", ANSWER]
    argv = ["predict", str(parity / "frames"), *options, "--save-logits", str(file), "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    found, expected = np.load(file), np.load(parity / "expected.npz")
    assert found["logits"].dtype == np.float32 and found["logits"].shape == expected["video_logits_0"].shape
    assert np.abs(found["logits"] - expected["video_logits_0"]).max() < 1e-4
    assert found["embedding"].shape == (1, 256)
    assert np.abs(found["embedding"] - expected["video_embedding_0"]).max() < 1e-5
    masks = np.unpackbits(expected["video_masks_0"], count=int(np.prod(case["mask_shape"])))
    assert found["masks"].dtype == bool and (found["masks"].ravel() == masks).mean() >= 0.9999
