"""The annotators' protocol against a merge written down here, scored by the rules of label folders."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from salmacli.data.benchmarks import open_benchmark
from salmacli.data.rle import encode
from salmacli.engine.scoring.annotators import evaluate_annotators
from salmacli.engine.scoring.evaluator import evaluate
from salmacli.engine.scoring.label_folders import score_label_folders
from salmacli.errors import DataError

SIZE, FRAMES = (36, 52), ("00000", "00001", "00002", "00003", "00004")
OBJECTS = {"boats": 3, "cat": 1}


def truth_of(video):
    """(frames, H, W) labels: boxes that move, void beside the first."""
    labels = np.zeros((len(FRAMES), *SIZE), dtype=np.uint8)
    for t in range(len(FRAMES)):
        for number in range(OBJECTS[video]):
            labels[t, 4 + 9 * number : 12 + 9 * number, 5 + 3 * t : 25 + 3 * t] = number + 1
        labels[t, 4:12, 26 + 3 * t : 29 + 3 * t] = 255
    return labels


@pytest.fixture
def root(tmp_path):
    """A small Ref-DAVIS17 on disk. With three objects, expression 10 sorts before 2 as a string."""
    root, videos = tmp_path / "davis", {}
    for video, objects in OBJECTS.items():
        texts = {str(i): {"exp": f"thing {i}", "obj_id": str(i // 4 + 1)} for i in range(objects * 4)}
        videos[video] = {"expressions": texts, "frames": list(FRAMES)}
        for place, suffix in (("Annotations", "png"), ("JPEGImages", "jpg")):
            (root / "valid" / place / video).mkdir(parents=True)
            for frame, labels in zip(FRAMES, truth_of(video), strict=True):
                Image.fromarray(labels).save(root / "valid" / place / video / f"{frame}.{suffix}")
    meta = root / "meta_expressions" / "valid" / "meta_expressions.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"videos": videos}))
    return root


@pytest.fixture
def logits():
    """(frames, 9, 13) per video and expression: the object's box, blurred, noisy, of every annotator another."""
    rng = np.random.default_rng(5)
    found = {}
    for video, objects in OBJECTS.items():
        truth = truth_of(video)
        for i in range(objects * 4):
            # The second annotator mixes up the objects of a video with several.
            number = (i // 4 + (i % 4 == 1)) % objects + 1
            small = torch.from_numpy((truth == number).astype(np.float32))[:, None]
            small = functional.interpolate(small, (9, 13), mode="bilinear", align_corners=False, antialias=True)[:, 0]
            found[video, str(i)] = (8 * small.numpy() - 3 + 2 * rng.standard_normal((5, 9, 13))).astype(np.float32)
    return found


def enlarged(logits):
    wide = functional.interpolate(torch.from_numpy(logits)[:, None], SIZE, mode="bilinear", align_corners=False)
    return torch.sigmoid(wide)[:, 0].numpy()


def write_own(folder, masks, logits=None, drop=lambda content: None):
    """Predictions in SALMA's own form."""
    folder.mkdir(parents=True, exist_ok=True)
    for video in OBJECTS:
        of_video = {key: value for (name, key), value in masks.items() if name == video}
        expressions = {
            key: {
                "text": f"thing {key}",
                "answer": "[SEG]",
                "fallback": None,
                "masks": [encode(m)["counts"] for m in of_one],
            }
            for key, of_one in of_video.items()
        }
        content = {"schema": 1, "video": video, "size": list(SIZE), "frames": list(FRAMES), "expressions": expressions}
        if video == "boats":
            drop(content)
        (folder / f"{video}.json").write_text(json.dumps(content))
        if logits is not None:
            kept = {key: value for (name, key), value in logits.items() if name == video}
            np.savez(folder / f"{video}.npz", **kept)
    return folder


def expected(root, probabilities, folder):
    """Scores per annotator by the definition: zero, background, arg-max, label pictures, unsupervised."""
    found = []
    for annotator in range(4):
        for video, objects in OBJECTS.items():
            planes = [np.full((len(FRAMES), *SIZE), 0.1, dtype=np.float32)]
            for thing in range(objects):
                plane = probabilities[video, str(thing * 4 + annotator)].copy()
                plane[plane < 0.5] = 0
                planes.append(plane)
            labels = np.argmax(np.stack(planes), axis=0).astype(np.uint8)
            place = folder / str(annotator) / video
            place.mkdir(parents=True)
            for frame, picture in zip(FRAMES, labels, strict=True):
                Image.fromarray(picture).save(place / f"{frame}.png")
        found.append(score_label_folders(root / "valid" / "Annotations", folder / str(annotator), "unsupervised"))
    return found


def agrees(found, separate):
    """The four evaluations, and their mean."""
    for annotator, one in enumerate(separate):
        group = found.results["groups"]["annotator"][str(annotator)]
        assert {key: group[key] for key in one.results["scores"]} == one.results["scores"]
        rows = found.rows[found.rows["annotator"] == annotator]
        for column in ("object", "proposal", "J", "F", "J_decay", "F_recall"):
            assert rows[column].tolist() == one.rows[column].tolist(), column
    for key, value in found.results["scores"].items():
        assert value == np.mean([one.results["scores"][key] for one in separate])


def test_soft_masks_are_merged_by_their_probabilities(root, logits, tmp_path):
    soft = {key: enlarged(value) for key, value in logits.items()}
    folder = write_own(tmp_path / "predictions", {key: value > 0.5 for key, value in soft.items()}, logits)
    found = evaluate_annotators(open_benchmark("davis", root), folder)
    agrees(found, expected(root, soft, tmp_path / "labels"))
    assert found.results["counts"]["soft"] == 16
    assert found.rows.loc[found.rows["annotator"] == 1, "proposal"].tolist()[:3] == [1, 2, 3]
    assert found.rows.loc[found.rows["annotator"] == 1, "object"].tolist()[:3] == [2, 3, 1]


def test_binary_masks_give_a_pixel_to_the_first_that_claims_it(root, logits, tmp_path):
    masks = {key: enlarged(value) > 0.3 for key, value in logits.items()}
    assert any((masks["boats", "0"] & masks["boats", "4"]).ravel())
    separate = expected(root, {key: mask.astype(np.float32) for key, mask in masks.items()}, tmp_path / "labels")
    benchmark = open_benchmark("davis", root)
    found = evaluate_annotators(benchmark, write_own(tmp_path / "own", masks))
    agrees(found, separate)
    assert found.results["counts"]["soft"] == 0
    for (video, key), of_one in masks.items():
        place = tmp_path / "pictures" / "Annotations" / video / key
        place.mkdir(parents=True)
        for frame, mask in zip(FRAMES, of_one, strict=True):
            Image.fromarray(mask).save(place / f"{frame}.png")
    agrees(evaluate(benchmark, tmp_path / "pictures", "annotators"), separate)


def test_logits_of_some_expressions_are_mixed_with_the_masks_of_others(root, logits, tmp_path):
    soft = {key: enlarged(value) for key, value in logits.items()}
    masks = {key: value > 0.3 for key, value in soft.items()}
    some = {key: value for key, value in logits.items() if int(key[1]) >= 8}
    found = evaluate_annotators(open_benchmark("davis", root), write_own(tmp_path / "p", masks, some))
    mixed = {key: soft[key] if key in some else masks[key].astype(np.float32) for key in soft}
    agrees(found, expected(root, mixed, tmp_path / "labels"))
    assert found.results["counts"]["soft"] == len(some) == 4


def test_expressions_that_select_nothing_at_the_end_are_no_proposals(root, tmp_path):
    # Of the boats only the first is true, and it is gone at once: an empty mask would be right in most frames.
    truth = truth_of("boats")
    truth[:] = np.where(truth == 1, 1, 0)
    truth[1:] = 0
    for frame, labels in zip(FRAMES, truth, strict=True):
        Image.fromarray(labels).save(root / "valid" / "Annotations" / "boats" / f"{frame}.png")
    masks = {("cat", str(i)): truth_of("cat") == 1 for i in range(4)}
    masks |= {("boats", str(i)): np.full(truth.shape, i < 4) for i in range(12)}
    found = evaluate_annotators(open_benchmark("davis", root), write_own(tmp_path / "p", masks))
    probabilities = {key: mask.astype(np.float32) for key, mask in masks.items()}
    agrees(found, expected(root, probabilities, tmp_path / "labels"))
    assert found.rows["proposal"].tolist() == [1, 1] * 4


def test_swapped_objects_and_void_cost_nothing(root, tmp_path):
    masks = {}
    for video, objects in OBJECTS.items():
        truth = truth_of(video)
        for i in range(objects * 4):
            number = (i // 4 + i % 4) % objects + 1
            # Void is claimed by whoever is first, and taken out again.
            masks[video, str(i)] = (truth == number) | ((truth == 255) & (i // 4 == 0))
    found = evaluate_annotators(open_benchmark("davis", root), write_own(tmp_path / "p", masks))
    assert found.results["scores"]["JF"] == 1.0
    assert found.results["protocol"]["void"].startswith("255 in the official PNGs is taken out")


def test_a_set_without_pngs_has_no_void(root, tmp_path):
    tracks, masks = {}, {}
    for video, objects in OBJECTS.items():
        truth = truth_of(video)
        for key in sorted(map(str, range(objects * 4))):
            track = truth == int(key) // 4 + 1
            tracks[len(tracks)] = [encode(mask) for mask in track]
            masks[video, key] = track | ((truth == 255) & (int(key) // 4 == 0))
    for path in sorted((root / "valid" / "Annotations").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "valid" / "Annotations").rmdir()
    (root / "valid" / "mask_dict.pkl").write_bytes(pickle.dumps(tracks))
    found = evaluate_annotators(open_benchmark("davis", root), write_own(tmp_path / "p", masks))
    assert found.results["protocol"]["void"].startswith("none")
    assert found.rows["J"][found.rows["object"] > 1].tolist() == [1.0] * 8
    first = found.rows["J"][found.rows["object"] == 1]
    assert first.tolist() == pytest.approx([160 / 184] * 8)


def test_missing_masks(root, logits, tmp_path):
    masks = {key: enlarged(value) > 0.5 for key, value in logits.items()}
    benchmark = open_benchmark("davis", root)
    whole = evaluate_annotators(benchmark, write_own(tmp_path / "whole", masks))

    def drop(content):
        del content["expressions"]["8"]  # annotator 0, the third boat
        content["expressions"]["7"]["masks"][2] = encode(np.zeros((3, 3)))["counts"]  # annotator 3, the second

    broken = write_own(tmp_path / "broken", masks, drop=drop)
    with pytest.raises(DataError, match=r"6 of 80 predicted masks .*: 5 expression missing, 1 RLE that does not fit"):
        evaluate_annotators(benchmark, broken)

    zero = evaluate_annotators(benchmark, broken, missing="zero")
    assert zero.results["counts"]["problems"] == {"expression": 5, "rle": 1}
    of = zero.frames.set_index(["annotator", "expression"]).sort_index()
    assert of.loc[(0, "8"), ["J", "F"]].to_numpy().tolist() == [[0.0, 0.0]] * 5
    assert set(of.loc[(0, "8"), "problem"]) == {"expression"}
    assert of.loc[(3, "7"), "problem"].fillna("").tolist() == ["", "", "rle", "", ""]
    assert of.loc[(3, "7"), "J"].tolist()[2] == 0.0
    for annotator in "12":
        groups = [found.results["groups"]["annotator"][annotator] for found in (whole, zero)]
        assert groups[0] == groups[1]

    drop_ = evaluate_annotators(benchmark, broken, missing="drop")
    counts = drop_.results["counts"]
    assert (counts["objects"], counts["left_out"]) == (16 - 3, 3)  # no frame of the boats is left to annotator 0
    assert counts["frames"] == 13 * 5 - 3
    dropped = drop_.frames[drop_.frames["J"].isna()]
    assert len(dropped) == 15 + 3
    assert dropped["problem"].value_counts().to_dict() == {"expression": 15, "rle": 3}


def test_a_missing_mask_never_scores_as_an_empty_one(root, tmp_path):
    # The last boat leaves the picture: a mask that is not there must not pass for a right empty one.
    truth = truth_of("boats")
    truth[1:][truth[1:] == 3] = 0
    for frame, labels in zip(FRAMES, truth, strict=True):
        Image.fromarray(labels).save(root / "valid" / "Annotations" / "boats" / f"{frame}.png")
    masks = {("cat", str(i)): truth_of("cat") == 1 for i in range(4)}
    masks |= {("boats", str(i)): truth == i // 4 + 1 for i in range(12)}

    def drop(content):
        for i in range(8, 12):
            del content["expressions"][str(i)]

    folder = write_own(tmp_path / "p", masks, drop=drop)
    found = evaluate_annotators(open_benchmark("davis", root), folder, missing="zero")
    assert found.rows["J"].tolist() == [1.0, 1.0, 0.0, 1.0] * 4


def test_a_missing_video_and_extra_masks(root, logits, tmp_path):
    masks = {key: enlarged(value) > 0.5 for key, value in logits.items()}
    folder = write_own(
        tmp_path / "p", masks, drop=lambda content: content["expressions"].update({"99": content["expressions"]["0"]})
    )
    (folder / "cat.json").rename(folder / "dog.json")
    content = json.loads((folder / "dog.json").read_text())
    (folder / "dog.json").write_text(json.dumps(content | {"video": "dog"}))
    found = evaluate_annotators(open_benchmark("davis", root), folder, missing="zero")
    assert found.results["counts"]["problems"] == {"video": 20}
    assert {entry["where"]: entry["masks"] for entry in found.results["extra"]} == {"boats/99": 5, "dog": 20}
    assert found.rows["J"][found.rows["video"] == "cat"].tolist() == [0.0] * 4
    left = evaluate_annotators(open_benchmark("davis", root), folder, missing="drop")
    assert set(left.rows["video"]) == {"boats"}


def test_expressions_that_are_not_four_per_object(root, logits, tmp_path):
    meta = root / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(meta.read_text())
    masks = {key: enlarged(value) > 0.5 for key, value in logits.items()}
    folder = write_own(tmp_path / "p", masks)
    del content["videos"]["boats"]["expressions"]["11"]
    meta.write_text(json.dumps(content))
    with pytest.raises(DataError, match="boats has 11 expressions, not 4 for each object"):
        evaluate_annotators(open_benchmark("davis", root), folder)
    content["videos"]["boats"]["expressions"]["eleven"] = {"exp": "thing 11", "obj_id": "3"}
    meta.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"video boats, expression: an integer is needed, found 'eleven'"):
        evaluate_annotators(open_benchmark("davis", root), folder)


def test_logits_that_do_not_fit_are_refused(root, logits, tmp_path):
    masks = {key: enlarged(value) > 0.5 for key, value in logits.items()}
    short = {key: value[:3] for key, value in logits.items()}
    with pytest.raises(DataError, match=r"(boats|cat)\.npz: '0' has 3 frames of logits for 5 frames"):
        evaluate_annotators(open_benchmark("davis", root), write_own(tmp_path / "p", masks, short))


def test_tables_can_be_written(root, logits, tmp_path):
    masks = {key: enlarged(value) > 0.5 for key, value in logits.items()}
    found = evaluate_annotators(open_benchmark("davis", root), write_own(tmp_path / "p", masks))
    assert json.loads(found.write(tmp_path / "scores").read_text())["protocol"]["name"] == "annotators"
    assert len(found.frames) == 16 * 5
    assert found.rows_name == "per_object"
    assert found.rows["text"].tolist()[0] == f"thing {found.rows['expression'].tolist()[0]}"


def test_a_video_that_begins_without_an_object_is_left_out_and_named(root, tmp_path):
    first = root / "valid" / "Annotations" / "boats" / f"{FRAMES[0]}.png"
    Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(first)
    masks = {(video, str(i)): truth_of(video) == 1 for video, n in OBJECTS.items() for i in range(n * 4)}
    found = evaluate_annotators(open_benchmark("davis", root), write_own(tmp_path / "p", masks))
    assert set(found.rows["video"]) == {"cat"}
    assert found.results["scores"]["JF"] == 1.0
    assert found.results["unscored_videos"] == ["boats (no object in its first frame)"]


@pytest.mark.parametrize("missing", ["error", "zero", "drop"])
def test_predictions_of_other_videos_only_are_refused(root, tmp_path, missing):
    (tmp_path / "p").mkdir()
    with pytest.raises(DataError, match="none of the 2 videos"):
        evaluate_annotators(open_benchmark("davis", root), tmp_path / "p", missing=missing)
