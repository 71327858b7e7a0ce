"""Label pictures against label pictures, made up and real."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from salmacli.engine.label_folders import read_labels, score_label_folders
from salmacli.errors import DataError
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import count_frames
from salmacli.metrics.region import region_similarity


def labels(frames=6, seed=0):
    rng = np.random.default_rng(seed)
    out = np.zeros((frames, 30, 50), dtype=np.uint8)
    for f in range(frames):
        out[f, 3 + f : 13 + f, 4:20] = 1
        out[f, 5:20, 25 + f : 40 + f] = 2
    out[rng.random(out.shape) < 0.01] = 255
    return out


def write(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame, mode="P")
        picture.putpalette(list(range(256)) * 3)
        picture.save(folder / f"{number:05d}.png")
    return folder


def test_rows_and_means_of_two_objects(tmp_path):
    truth, prediction = labels(), labels(seed=1)
    prediction[prediction == 2] = 0  # the second object is lost
    for sequence in ("a", "b"):
        write(tmp_path / "truth" / sequence, truth)
        write(tmp_path / "prediction" / sequence, prediction)
    write(tmp_path / "prediction" / "c", prediction)
    found = score_label_folders(tmp_path / "truth", tmp_path / "prediction")
    assert [(row["sequence"], row["object"]) for row in found.rows] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 2),
    ]
    counts = count_frames((p == 1, t == 1) for p, t in zip(prediction[1:-1], truth[1:-1], strict=True))
    row = found.rows[0]
    assert row["frames"] == 4
    assert row["J"] == pytest.approx(region_similarity(counts).mean())
    assert row["F"] == pytest.approx(contour_accuracy(counts).mean())
    assert (found.rows[1]["J"], found.rows[1]["F"]) == (0.0, 0.0)
    assert found.scores["J"] == pytest.approx(row["J"] / 2)
    assert found.scores["JF"] == pytest.approx((found.scores["J"] + found.scores["F"]) / 2)
    assert found.extra == 1


def test_all_frames_and_chosen_objects(tmp_path):
    write(tmp_path / "truth" / "a", labels())
    write(tmp_path / "prediction" / "a", labels())
    found = score_label_folders(tmp_path / "truth", tmp_path / "prediction", objects=[2], skip_ends=False)
    assert [(row["object"], row["frames"], row["JF"]) for row in found.rows] == [(2, 6, 1.0)]


def test_labels_are_what_is_stored_not_what_the_palette_shows(tmp_path):
    write(tmp_path / "a", labels(1))
    assert (read_labels(tmp_path / "a" / "00000.png") == labels(1)[0]).all()


def test_what_is_wrong_is_named(tmp_path):
    truth, prediction = tmp_path / "truth", tmp_path / "prediction"
    with pytest.raises(DataError, match="truth is not a folder"):
        score_label_folders(truth, prediction)
    write(truth / "a", labels())
    with pytest.raises(DataError, match="prediction is not a folder"):
        score_label_folders(truth, prediction)
    (prediction / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"prediction.a has no PNG"):
        score_label_folders(truth, prediction)
    (prediction / "a").rmdir()
    write(prediction / "a", labels())
    whole = (prediction / "a" / "00003.png").read_bytes()

    (prediction / "a" / "00003.png").unlink()
    with pytest.raises(DataError, match=r"prediction.a.00003\.png is missing"):
        score_label_folders(truth, prediction)
    (prediction / "a" / "00003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"00003\.png cannot be read"):
        score_label_folders(truth, prediction)
    Image.fromarray(labels()[3][:20], mode="P").save(prediction / "a" / "00003.png")
    with pytest.raises(DataError, match=r"00003\.png is of size \(20, 50\) where .* \(30, 50\)"):
        score_label_folders(truth, prediction)
    Image.new("RGB", (50, 30)).save(prediction / "a" / "00003.png")
    with pytest.raises(DataError, match=r"00003\.png is a picture of mode RGB"):
        score_label_folders(truth, prediction)


def test_sequences_without_objects_or_inner_frames(tmp_path):
    write(tmp_path / "empty" / "a", np.zeros((3, 5, 5), dtype=np.uint8))
    with pytest.raises(DataError, match="has no object"):
        score_label_folders(tmp_path / "empty", tmp_path / "empty")
    write(tmp_path / "short" / "a", labels(2))
    with pytest.raises(DataError, match="has 2 frames"):
        score_label_folders(tmp_path / "short", tmp_path / "short")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no folder"):
        score_label_folders(tmp_path / "nothing", tmp_path / "short")


def test_real_masks_of_two_methods_give_finite_scores(shared_data):
    masks = shared_data / "real_masks"
    found = score_label_folders(masks / "osvos", masks / "rvos", objects=[1])
    assert len(found.rows) == 10
    for row in found.rows:
        assert all(np.isfinite(row[key]) for key in ("J", "F", "JF", "J_decay", "F_decay"))
        assert 0 <= row["J"] <= 1
        assert 0 <= row["F"] <= 1
    assert 0 < found.scores["JF"] < 1
