"""The threshold sweep over saved logits against the evaluator and against torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from salmacli.data.rle import decode
from salmacli.engine.scoring.evaluator import evaluate
from salmacli.engine.scoring.sweep import has_logits, sweep_predictions, upsample, write_sweep
from salmacli.errors import DataError
from salmacli.metrics.threshold import even_thresholds

SIZE = (40, 60)


@pytest.mark.parametrize(
    ("small", "large"), [((10, 15), SIZE), ((16, 16), SIZE), ((40, 60), SIZE), ((64, 7), (31, 40))]
)
def test_upsampling_is_torchs(small, large):
    logits = np.random.default_rng(0).normal(size=small).astype(np.float32)
    theirs = interpolate(torch.from_numpy(logits)[None, None], size=large, mode="bilinear", align_corners=False)
    assert np.abs(upsample(logits, *large) - theirs[0, 0].numpy()).max() < 2e-6


def fabricate(make_benchmark, make_predictions, folder):
    """Noisy low-resolution logits around the truth, and the masks a predictor makes of them with torch."""
    benchmark = make_benchmark(videos=6)
    rng = np.random.default_rng(3)
    logits, masks = {}, {}
    for key, truth in benchmark.masks.items():
        coarse = truth[:, 2::4, 2::4].astype(np.float32) * 4 - 2.5
        logits[key] = coarse + rng.normal(size=coarse.shape).astype(np.float32)
        large = interpolate(torch.from_numpy(logits[key])[:, None], size=SIZE, mode="bilinear", align_corners=False)
        masks[key] = (large[:, 0] > 0).numpy()
    return benchmark, make_predictions(folder, benchmark, masks, logits), logits


def test_at_one_half_it_is_the_evaluators_j(make_benchmark, make_predictions, tmp_path):
    benchmark, folder, _ = fabricate(make_benchmark, make_predictions, tmp_path)
    found = sweep_predictions(benchmark, folder, even_thresholds(99))
    J = evaluate(benchmark, folder).rows["J"].to_numpy()
    assert found.iou[:, 49] == pytest.approx(J, abs=1e-12)
    assert found.videos == tuple(v.name for v in benchmark.videos for _ in v.expressions)


def test_every_threshold_is_that_of_the_probability(make_benchmark, make_predictions, tmp_path):
    benchmark, folder, logits = fabricate(make_benchmark, make_predictions, tmp_path)
    found = sweep_predictions(benchmark, folder, np.array([0.2, 0.5, 0.9]))
    for row, (key, truth) in enumerate(benchmark.masks.items()):
        large = interpolate(torch.from_numpy(logits[key])[:, None], size=SIZE, mode="bilinear", align_corners=False)
        probability = large[:, 0].double().sigmoid().numpy()
        for column, threshold in enumerate((0.2, 0.5, 0.9)):
            mask = probability >= threshold
            both, either = (mask & truth).sum((1, 2)), (mask | truth).sum((1, 2))
            total = mask.sum((1, 2)) + truth.sum((1, 2))
            iou = np.where(either == 0, 1, both / np.maximum(either, 1)).mean()
            dice = np.where(total == 0, 1, 2 * both / np.maximum(total, 1)).mean()
            assert found.iou[row, column] == pytest.approx(iou, abs=1e-12)
            assert found.dice[row, column] == pytest.approx(dice, abs=1e-12)


def test_the_record_names_best_and_held_out(make_benchmark, make_predictions, tmp_path):
    benchmark, folder, _ = fabricate(make_benchmark, make_predictions, tmp_path / "predictions")
    found = sweep_predictions(benchmark, folder, even_thresholds(9))
    record = json.loads(write_sweep(found.record(), tmp_path).read_text())
    assert record["schema"] == 1
    assert record["best"]["iou"]["score"] == pytest.approx(found.iou.mean(axis=0).max())
    assert record["best"]["iou"]["held_out"] <= record["best"]["iou"]["score"]
    assert len(record["best"]["dice"]["fold_thresholds"]) == 5
    assert record["thresholds"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def test_a_fallback_without_logits_keeps_its_mask(make_benchmark, make_predictions, tmp_path):
    benchmark, folder, logits = fabricate(make_benchmark, make_predictions, tmp_path)
    np.savez(folder / "v0.npz", **{id: logits["v0", id] for id in ("0", "1")})
    with pytest.raises(DataError, match=r"v0\.npz lacks expression '2'"):
        sweep_predictions(benchmark, folder, even_thresholds(3))
    content = json.loads((folder / "v0.json").read_text())
    content["expressions"]["2"]["fallback"] = "no-seg"
    (folder / "v0.json").write_text(json.dumps(content))
    found = sweep_predictions(benchmark, folder, even_thresholds(3))
    masks = [decode({"size": list(SIZE), "counts": c}) for c in content["expressions"]["2"]["masks"]]
    # Nothing was meant, so J is 1 where the fall-back is empty, whatever the threshold.
    assert found.iou[2].tolist() == [np.mean([not mask.any() for mask in masks])] * 3


def test_logits_that_are_missing_or_do_not_fit(make_benchmark, make_predictions, tmp_path):
    benchmark, folder, logits = fabricate(make_benchmark, make_predictions, tmp_path)
    three = even_thresholds(3)

    def save(**change):
        np.savez(folder / "v1.npz", **({id: logits["v1", id] for id in "012"} | change))

    save(**{"1": logits["v1", "1"][:2]})
    with pytest.raises(DataError, match="has 2 frames of logits for 4 frames"):
        sweep_predictions(benchmark, folder, three)
    save(**{"1": np.full((4, 10, 15), np.nan, dtype=np.float32)})
    with pytest.raises(DataError, match="without NaN"):
        sweep_predictions(benchmark, folder, three)
    save(**{"1": np.array([{"not": "plain"}], dtype=object)})
    with pytest.raises(DataError, match=r"v1\.npz cannot be read"):
        sweep_predictions(benchmark, folder, three)
    (folder / "v1.npz").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match=r"v1\.npz cannot be read"):
        sweep_predictions(benchmark, folder, three)
    (folder / "v1.npz").unlink()
    with pytest.raises(DataError, match=r"v1\.npz is missing"):
        sweep_predictions(benchmark, folder, three)


def test_logits_count_only_of_this_checkpoint_and_split(make_benchmark, make_predictions, tmp_path):
    benchmark, folder, logits = fabricate(make_benchmark, make_predictions, tmp_path / "p")
    assert has_logits(benchmark, folder)
    make_predictions(folder, benchmark, None, logits, checkpoint={"step": 7})
    assert has_logits(benchmark, folder, step=7)
    assert not has_logits(benchmark, folder, step=8)
    benchmark.split = "train"
    assert not has_logits(benchmark, folder, step=7)
    with pytest.raises(DataError, match="split 'valid', not 'train'"):
        sweep_predictions(benchmark, folder, even_thresholds(3))
    benchmark.split = "valid"
    (folder / "v1.npz").unlink()
    assert not has_logits(benchmark, folder, step=7)
    assert not has_logits(benchmark, tmp_path / "nowhere")
