"""Every way in which predictions can be incomplete, wrong or too many."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from salmacli.engine.scoring.evaluator import evaluate
from salmacli.engine.scoring.problems import KINDS
from salmacli.errors import DataError


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def remove_video(folder):
    (folder / "v1.json").unlink()


def remove_expression(folder):
    edit(folder / "v1.json", lambda content: content["expressions"].pop("1"))


def remove_frame(folder):
    def change(content):
        content["frames"].pop(2)
        for expression in content["expressions"].values():
            expression["masks"].pop(2)

    edit(folder / "v1.json", change)


def change_size(folder):
    edit(folder / "v1.json", lambda content: content.update(size=[60, 40]))


def cut_counts(folder):
    edit(folder / "v1.json", lambda content: content["expressions"]["1"]["masks"].__setitem__(3, "0P1"))


def null_mask(folder):
    edit(folder / "v1.json", lambda content: content["expressions"]["1"]["masks"].__setitem__(3, None))


@pytest.mark.parametrize(
    ("damage", "masks", "kind", "first"),
    [
        (remove_video, 12, "video", {"where": "v1", "detail": "", "masks": 12}),
        (remove_expression, 4, "expression", {"where": "v1/1", "detail": "", "masks": 4}),
        (remove_frame, 3, "frame", {"where": "v1/0/00002", "detail": "", "masks": 1}),
        (
            change_size,
            12,
            "size",
            {"where": "v1/0/00000", "detail": "it is of size (60, 40) where the truth is (40, 60)", "masks": 1},
        ),
        (
            cut_counts,
            1,
            "rle",
            {"where": "v1/1/00003", "detail": "RLE covers 32 pixels but its size 40x60 has 2400", "masks": 1},
        ),
        (null_mask, 1, "rle", {"where": "v1/1/00003"}),
    ],
)
def test_what_is_missing_is_named_and_counted(damage, masks, kind, first, make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, benchmark)
    damage(folder)
    says = rf"{masks} of 36 predicted masks .*: {masks} {KINDS[kind]}; the first: {first['where']} .*--missing zero"
    with pytest.raises(DataError, match=says):
        evaluate(benchmark, folder)
    zero, drop = (evaluate(benchmark, folder, missing=how) for how in ("zero", "drop"))
    assert zero.results["scores"]["J"] == zero.results["scores"]["F"] == pytest.approx(1 - masks / 36)
    assert drop.results["scores"] == {"J": 1.0, "F": 1.0, "JF": 1.0}
    for one in (zero, drop):
        assert one.results["counts"]["missing"] == masks
        assert one.results["counts"]["problems"] == {kind: masks}
        assert one.results["problems"][0].items() >= {"kind": kind, **first}.items()
        assert one.frames["problem"].value_counts().to_dict() == {kind: masks}
        assert one.rows["missing"].sum() == masks
    assert (zero.results["counts"]["frames"], drop.results["counts"]["frames"]) == (36, 36 - masks)
    assert (zero.frames["J"] == 0).sum() == drop.frames["J"].isna().sum() == masks
    assert [one.results["protocol"]["missing"] for one in (zero, drop)] == ["zero", "drop"]


def test_a_missing_mask_scores_zero_even_where_nothing_is_meant(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, benchmark)
    edit(folder / "v1.json", lambda content: content["expressions"].pop("2"))
    frames = evaluate(benchmark, folder, missing="zero").frames
    lost = frames[frames["problem"].notna()]
    assert lost[["video", "expression"]].drop_duplicates().to_numpy().tolist() == [["v1", "2"]]
    assert (lost[["J", "F"]] == 0).all(axis=None)


def test_an_expression_without_a_frame_left_is_left_out(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, benchmark)
    remove_expression(folder)
    evaluation = evaluate(benchmark, folder, missing="drop")
    assert (evaluation.results["counts"]["expressions"], evaluation.results["counts"]["left_out"]) == (8, 1)
    row = evaluation.rows[evaluation.rows["frames"] == 0]
    assert row[["video", "expression", "missing"]].to_numpy().tolist() == [["v1", "1", 4]]
    assert row["J"].isna().all()


def test_problems_beyond_the_twentieth_are_counted_but_not_named(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark(videos=6)
    folder = make_predictions(tmp_path, benchmark)
    for video in benchmark.videos:
        edit(folder / f"{video.name}.json", lambda content: content.update(size=[60, 40]))
    results = evaluate(benchmark, folder, missing="zero").results
    assert (results["counts"]["missing"], len(results["problems"])) == (72, 20)


def test_a_worker_that_dies_fails_the_run(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark(videos=8)
    folder = make_predictions(tmp_path, benchmark)
    give = benchmark.truth_bits

    def dies(video, expression):
        if video.name == "v5":
            raise MemoryError("no room")
        return give(video, expression)

    benchmark.truth_bits = dies
    for how in ("error", "zero", "drop"):
        with pytest.raises(MemoryError, match="no room"):
            evaluate(benchmark, folder, missing=how)


def test_what_is_too_much_is_counted(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, make_benchmark(videos=4, frames=5))
    # one more video of 3 expressions and 5 frames, and a fifth frame of 9 expressions
    few = make_benchmark(videos=4, frames=5)
    benchmark.masks = {key: few.masks[key][:4] for key in benchmark.masks}
    results = evaluate(benchmark, folder).results
    assert results["counts"]["extra"] == 15 + 9
    assert results["extra"][0] == {"where": "v3", "masks": 15}
    assert results["extra"][1] == {"where": "v0/0/00004", "masks": 1}
    assert len(results["extra"]) == 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(schema=2), "schema 2"),
        (lambda c: c.update(video="other"), "video 'other'"),
        (lambda c: c.update(size=[40]), "size"),
        (lambda c: c.update(frames="abc"), "frames"),
        (lambda c: c.update(frames=["00000"] * 4), "named twice"),
        (lambda c: c.update(expressions=[]), "expressions"),
        (lambda c: c["expressions"]["0"]["masks"].pop(), "'0' has not one mask"),
        (lambda c: c["expressions"].update({"0": None}), "'0' has not one mask"),
        (lambda c: c["expressions"]["0"].update(fallback=3), "fallback 3"),
        (lambda c: c["expressions"]["0"].update(empty_frames=-1), "empty_frames -1"),
        (lambda c: c["expressions"]["0"].update(filled_frames=True), "filled_frames True"),
        (lambda c: c["expressions"]["0"].update(text="the green box"), "answers 'the green box'"),
    ],
)
def test_a_broken_file_is_refused_even_where_missing_is_allowed(
    change, says, make_benchmark, make_predictions, tmp_path
):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, benchmark)
    edit(folder / "v2.json", change)
    with pytest.raises(DataError, match=rf"v2\.json.*{says}"):
        evaluate(benchmark, folder, missing="zero")


def test_files_that_are_not_predictions(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    with pytest.raises(DataError, match="neither a folder nor a file of predictions"):
        evaluate(benchmark, tmp_path / "nowhere")
    folder = make_predictions(tmp_path / "p", benchmark)
    (folder / "v0.json").write_text('{"schema": 1,')
    with pytest.raises(DataError, match=r"v0\.json is not valid JSON"):
        evaluate(benchmark, folder)


def test_predictions_of_another_benchmark(make_benchmark, make_predictions, tmp_path):
    folder = make_predictions(tmp_path, make_benchmark("davis"))
    with pytest.raises(DataError, match="benchmark 'davis', not 'mevis'"):
        evaluate(make_benchmark("mevis"), folder)


def test_a_benchmark_without_protocol(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark("own")
    with pytest.raises(DataError, match="no protocol to score 'own'"):
        evaluate(benchmark, make_predictions(tmp_path, benchmark))


def test_nothing_to_score(make_benchmark, tmp_path):
    benchmark = make_benchmark()
    benchmark.videos = tuple(replace(video, expressions=()) for video in benchmark.videos)
    with pytest.raises(DataError, match="mevis valid in nowhere has no expression to score"):
        evaluate(benchmark, tmp_path)


def test_nothing_left_to_score(make_benchmark, tmp_path):
    with pytest.raises(DataError, match="none of the 3 videos"):
        evaluate(make_benchmark(), tmp_path, missing="drop")
