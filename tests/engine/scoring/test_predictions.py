"""Three forms of predictions, and where each of their faults is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from salmacli.data.records import Video
from salmacli.data.rle import encode
from salmacli.engine.scoring.evaluator import evaluate
from salmacli.engine.scoring.foreign_predictions import JsonPredictions, PicturePredictions
from salmacli.engine.scoring.own_predictions import OwnPredictions
from salmacli.engine.scoring.predictions import Said, open_predictions
from salmacli.engine.scoring.problems import ProblemError
from salmacli.errors import DataError


def noisy(benchmark, seed=1):
    rng = np.random.default_rng(seed)
    return {key: mask ^ (rng.random(mask.shape) < 0.03) for key, mask in benchmark.masks.items()}


def save(path, pixels, mode="L"):
    """A mask as a PNG of the given mode; a palette picture whose colours mean nothing for P."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        picture = Image.fromarray(pixels.astype(np.uint8) * 3)
        picture.putpalette([7] * 768)
    else:
        picture = Image.fromarray(pixels.astype(np.uint8) * 255).convert(mode)
    picture.save(path)


def write_pictures(folder, benchmark, masks, mode="L"):
    for video in benchmark.videos:
        for expression in video.expressions:
            for frame, mask in zip(video.frames, masks[video.name, expression.id], strict=True):
                save(folder / video.name / expression.id / f"{frame}.png", mask, mode)
    return folder


def content_of(benchmark, masks):
    return {
        video.name: {
            one.id: {"prediction_masks": [encode(m) for m in masks[video.name, one.id]]} for one in video.expressions
        }
        for video in benchmark.videos
    }


def write_json_form(path, benchmark, masks, change=lambda content: None):
    content = content_of(benchmark, masks)
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def scored(make_benchmark, make_predictions, tmp_path):
    """A benchmark, noisy masks for it, and their evaluation from SALMA's own folder."""
    benchmark = make_benchmark()
    masks = noisy(benchmark)
    return benchmark, masks, evaluate(benchmark, make_predictions(tmp_path / "own", benchmark, masks))


def same_scores(one, other):
    counts = [{k: v for k, v in e.results["counts"].items() if k != "fallbacks"} for e in (one, other)]
    columns = [c for c in one.frames.columns if c != "problem"]
    return (
        one.results["scores"] == other.results["scores"]
        and counts[0] == counts[1]
        and one.frames[columns].equals(other.frames[columns])
    )


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("top", ["", "Annotations"])
def test_pictures_score_as_our_own_form(mode, top, scored, tmp_path):
    benchmark, masks, own = scored
    write_pictures(tmp_path / "pictures" / top, benchmark, masks, mode)
    found = evaluate(benchmark, tmp_path / "pictures")
    assert same_scores(found, own)
    assert found.rows[["fallback", "answer"]].isna().all(axis=None)
    assert found.results["mode"] is None


def test_one_json_file_scores_as_our_own_form(scored, tmp_path):
    benchmark, masks, own = scored
    found = evaluate(benchmark, write_json_form(tmp_path / "p.json", benchmark, masks))
    assert same_scores(found, own)
    assert found.rows["text"].notna().all() and found.rows["answer"].isna().all()


def test_the_form_is_found_from_what_lies_there(tmp_path):
    (tmp_path / "empty").mkdir()
    assert isinstance(open_predictions(tmp_path / "empty"), OwnPredictions)
    (tmp_path / "pictures" / "v0").mkdir(parents=True)
    (tmp_path / "pictures" / "scores.json").write_text("{}")
    assert isinstance(open_predictions(tmp_path / "pictures"), PicturePredictions)
    (tmp_path / "own" / "overlays").mkdir(parents=True)
    (tmp_path / "own" / "prediction.json").write_text('{"schema": 1}')
    assert isinstance(open_predictions(tmp_path / "own"), OwnPredictions)
    (tmp_path / "file.json").write_text("{}")
    assert isinstance(open_predictions(tmp_path / "file.json"), JsonPredictions)
    with pytest.raises(DataError, match="neither a folder nor a file"):
        open_predictions(tmp_path / "nowhere")


def test_our_own_form_tells_what_was_said(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    predicted = open_predictions(make_predictions(tmp_path, benchmark)).read(benchmark.videos[0])
    assert predicted.said("0") == Said("the red box", "It is [SEG].", None)
    assert predicted.said("7") == Said()
    assert dict(predicted.masks()) == dict.fromkeys("012", benchmark.videos[0].frames)


def no_video(folder):
    (folder / "v1").rename(folder / "w1")


def no_expression(folder):
    (folder / "v1" / "1").rename(folder / "v1" / "one")


def no_frame(folder):
    (folder / "v1" / "1" / "00002.png").unlink()


def other_size(folder):
    save(folder / "v1" / "1" / "00002.png", np.ones((60, 40), dtype=bool))


def colours(folder):
    save(folder / "v1" / "1" / "00002.png", np.ones((40, 60), dtype=bool), "RGB")


def transparent(folder):
    save(folder / "v1" / "1" / "00002.png", np.ones((40, 60), dtype=bool), "RGBA")


def no_picture(folder):
    (folder / "v1" / "1" / "00002.png").write_bytes(b"not a picture")


def cut_picture(folder):
    path = folder / "v1" / "1" / "00002.png"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "kind", "where", "masks", "extra"),
    [
        (no_video, "video", "v1", 12, 12),
        (no_expression, "expression", "v1/1", 4, 4),
        (no_frame, "frame", "v1/1/00002", 1, 0),
        (other_size, "size", "v1/1/00002", 1, 0),
        (colours, "mode", "v1/1/00002", 1, 0),
        (transparent, "mode", "v1/1/00002", 1, 0),
        (no_picture, "unreadable", "v1/1/00002", 1, 0),
        (cut_picture, "unreadable", "v1/1/00002", 1, 0),
    ],
)
def test_faults_of_pictures(damage, kind, where, masks, extra, make_benchmark, tmp_path):
    benchmark = make_benchmark()
    folder = write_pictures(tmp_path / "p", benchmark, benchmark.masks)
    damage(folder)
    with pytest.raises(DataError, match=rf"{masks} of 36 predicted masks .* the first: {where} \("):
        evaluate(benchmark, folder)
    for how, J in (("zero", 1 - masks / 36), ("drop", 1.0)):
        results = evaluate(benchmark, folder, missing=how).results
        assert results["scores"]["J"] == pytest.approx(J)
        assert results["counts"]["problems"] == {kind: masks}
        assert [results["problems"][0][key] for key in ("kind", "where", "masks")] == [kind, where, masks]
        assert results["counts"]["extra"] == extra


def test_pictures_nobody_asked_for(make_benchmark, tmp_path):
    benchmark = make_benchmark()
    folder = write_pictures(tmp_path / "p", benchmark, benchmark.masks)
    for name in ("v0/0/00009", "v0/0/00004", "v1/7/00000", "v9/0/00000", "v9/1/00000"):
        save(folder / f"{name}.png", np.ones((40, 60), dtype=bool))
    results = evaluate(benchmark, folder).results
    assert results["counts"]["extra"] == 5
    assert results["extra"] == [
        {"where": "v9", "masks": 2},
        {"where": "v0/0/00004", "masks": 1},
        {"where": "v0/0/00009", "masks": 1},
        {"where": "v1/7", "masks": 1},
    ]


@pytest.mark.parametrize(
    ("change", "kind", "where", "masks"),
    [
        (lambda c: c.pop("v1"), "video", "v1", 12),
        (lambda c: c["v1"].pop("1"), "expression", "v1/1", 4),
        (lambda c: c["v1"]["1"]["prediction_masks"].pop(), "frame", "v1/1/00003", 1),
        (
            lambda c: c["v1"]["1"]["prediction_masks"].__setitem__(2, encode(np.ones((60, 40), bool))),
            "size",
            "v1/1/00002",
            1,
        ),
        (lambda c: c["v1"]["1"]["prediction_masks"][2].update(counts="0P1"), "rle", "v1/1/00002", 1),
        (lambda c: c["v1"]["1"]["prediction_masks"][2].update(counts="ä"), "rle", "v1/1/00002", 1),
        (lambda c: c["v1"]["1"]["prediction_masks"][2].update(size=[40]), "rle", "v1/1/00002", 1),
        (lambda c: c["v1"]["1"]["prediction_masks"].__setitem__(2, None), "rle", "v1/1/00002", 1),
    ],
)
def test_faults_of_one_json_file(change, kind, where, masks, make_benchmark, tmp_path):
    benchmark = make_benchmark()
    path = write_json_form(tmp_path / "p.json", benchmark, benchmark.masks, change)
    with pytest.raises(DataError, match=rf"{masks} of 36 predicted masks .* the first: {where} \("):
        evaluate(benchmark, path)
    results = evaluate(benchmark, path, missing="zero").results
    assert results["counts"]["problems"] == {kind: masks}
    assert results["scores"]["J"] == pytest.approx(1 - masks / 36)


def test_one_json_file_may_name_its_frames_and_tell_the_answer(scored, tmp_path):
    def change(content):
        for video in benchmark.videos:
            for entry in content[video.name].values():
                entry["prediction_masks"].reverse()
                entry.update(frames=list(video.frames[::-1]), text_prediction="Sure.", exp="Please segment it.")

    benchmark, masks, own = scored
    found = evaluate(benchmark, write_json_form(tmp_path / "p.json", benchmark, masks, change))
    assert same_scores(found, own)
    assert set(found.rows["answer"]) == {"Sure."}


def test_masks_of_one_json_file_nobody_asked_for(make_benchmark, tmp_path):
    def change(content):
        content["v0"]["0"]["prediction_masks"] *= 2
        content["v0"]["9"] = content["v0"]["1"]
        content["v9"] = content["v1"]

    benchmark = make_benchmark()
    results = evaluate(benchmark, write_json_form(tmp_path / "p.json", benchmark, benchmark.masks, change)).results
    assert results["counts"]["extra"] == 4 + 4 + 12
    assert [one["where"] for one in results["extra"]] == ["v9", "v0/0/#4", "v0/0/#5", "v0/0/#6", "v0/0/#7", "v0/9"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no object"),
        ('{"v0": []}', "video 'v0' is not an object"),
        ('{"v0": {"0": []}}', "'0' has no list prediction_masks"),
        ('{"v0": {"0": {"prediction_masks": {}}}}', "'0' has no list prediction_masks"),
        ('{"v0": {"0": {"prediction_masks": [], "frames": ["00000"]}}}', "not one name for each of the 0 masks"),
        ('{"v0": {"0": {"prediction_masks": [1, 2], "frames": ["0", "0"]}}}', "not one name for each of the 2 masks"),
    ],
)
def test_one_json_file_that_is_broken_is_refused_whatever_is_allowed(text, says, make_benchmark, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=says):
        evaluate(make_benchmark(), tmp_path / "p.json", missing="drop")


def test_names_cannot_lead_out_of_the_folder(tmp_path):
    (tmp_path / "p" / "v0").mkdir(parents=True)
    save(tmp_path / "out.png", np.ones((40, 60), dtype=bool))
    found = open_predictions(tmp_path / "p")
    with pytest.raises(DataError, match="could lead outside"):
        found.read(Video("..", ("out",), ()))
    predicted = found.read(Video("v0", ("../../../out",), ()))
    for expression, frame in (("..", "out"), ("../..", "out"), ("0", "../../../out")):
        with pytest.raises(DataError, match="could lead outside") as error:
            predicted.bits(expression, frame)
        assert not isinstance(error.value, ProblemError)
    (tmp_path / "own").mkdir()
    with pytest.raises(DataError, match="could lead outside"):
        open_predictions(tmp_path / "own").read(Video("../p", (), ()))


def test_a_video_in_two_places_is_refused(tmp_path):
    for place in ("Annotations/v0/0", "v0/0", "overlays"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(DataError, match="both in Annotations and beside it"):
        open_predictions(tmp_path)
    assert open_predictions(tmp_path / "Annotations").videos() == {"v0"}
