"""Ref-DAVIS17 by annotators: what one annotator's expressions select together is scored like a method of DAVIS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from salmacli.data.readers.ref_davis import ANNOTATORS
from salmacli.engine.progress import Progress
from salmacli.engine.scoring.annotator_counts import CountedAnnotator, count_by_annotators, label_paths
from salmacli.engine.scoring.evaluation import Evaluation, results_of
from salmacli.engine.scoring.evaluator import Missing, check_given, check_same, extra_videos, origin
from salmacli.engine.scoring.fallbacks import fallback_counts
from salmacli.engine.scoring.matching import MEASURES, ObjectScores, frame_columns, matched, means, object_tables
from salmacli.engine.scoring.predictions import open_predictions
from salmacli.engine.scoring.problems import refuse
from salmacli.engine.scoring.protocols import protocol_of
from salmacli.engine.threads import in_threads
from salmacli.errors import DataError

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark


def evaluate_annotators(
    benchmark: Benchmark,
    predictions: Path,
    protocol: str = "annotators",
    missing: Missing = "error",
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score predictions for Ref-DAVIS17 annotator by annotator.

    Expressions are taken in the order of their numbers: number i is of object i // 4 and annotator i % 4.

    Args:
        benchmark: Gives the videos, the expressions and the truth.
        predictions: A folder or file in one of the forms of ``open_predictions``.
        protocol: Name of the rules.
        missing: What becomes of a predicted mask that is missing or does not fit: an error; it scores 0 in its
            frame against every object; or the frame leaves the means of its video and annotator.
        record: ``run``, ``mode``, ``checkpoint`` and ``config`` for the results.
        progress: Told of every video.

    Raises:
        DataError: A video has not four expressions per object, or too many objects; there is no public truth, or it
            is broken; predictions are missing (with ``missing="error"``), broken as a whole, or of another
            benchmark.

    Source: URVOS (Seo et al., ECCV 2020), in the form of ReferFormer's ``inference_davis.py``.
    """
    rules = protocol_of(benchmark.name, protocol)
    found = open_predictions(predictions)
    check_same(benchmark, found)
    counted = in_threads(
        lambda video: count_by_annotators(benchmark, found, video),
        benchmark.videos,
        f"scoring {benchmark.name}",
        progress,
    )
    check_given(benchmark, found, predictions)
    seen = [video for video in counted if video.annotators[0].objects]
    parts = [video.annotators[annotator] for annotator in range(ANNOTATORS) for video in seen]
    problems = Counter(fault for part in parts for frame in part.faults for fault in frame if fault is not None)
    if problems and missing == "error":
        refuse(problems, sum(len(video.expressions) * len(video.frames) for video in benchmark.videos), predictions)
    scored = [_score(part, missing) for part in parts]
    rows = [row for of_part, _ in scored for row in of_part]
    groups = {}
    for annotator in range(ANNOTATORS):
        of_one = [row for row in rows if row["annotator"] == annotator]
        if not of_one:
            raise DataError(f"{predictions}: annotator {annotator} has no object left to score")
        groups[str(annotator)] = {**means(of_one), "objects": len(of_one)}
    extra = sum((video.extra for video in counted), extra_videos(benchmark, found))
    counts = {
        "videos": len({row["video"] for row in rows}),
        "expressions": sum(len(part.expressions) for part in parts),
        "objects": len(rows),
        "left_out": sum(part.objects for part in parts) - len(rows),
        "frames": sum(row["frames"] for row in rows),
        **fallback_counts((said for video in counted for said in video.said), found.record),
        "soft": sum(video.soft for video in seen),
    }
    results = results_of(
        origin(benchmark, found, record or {}),
        rules,
        missing,
        {key: float(np.mean([group[key] for group in groups.values()])) for key in MEASURES},
        counts,
        problems,
        extra,
        groups={"annotator": groups},
        unscored_videos=[
            f"{video.name} (no object in its first frame)"
            for video, one in zip(benchmark.videos, counted, strict=True)
            if not one.annotators[0].objects
        ],
    )
    results["protocol"] |= _void(benchmark)
    columns = [part for _, of_part in scored for part in of_part]
    return Evaluation(results, *object_tables(rows, columns), "per_object")


def _void(benchmark: Benchmark) -> dict[str, str]:
    """What there is to say of void beside the protocol's own words."""
    if label_paths(benchmark, benchmark.videos[0]):
        return {}
    return {"void": "none: the set has no official PNGs, and run-length encoded masks know no void"}


def _score(part: CountedAnnotator, missing: Missing) -> tuple[list[dict[str, Any]], list[dict[str, NDArray[Any]]]]:
    """The rows of one video and annotator, in the official order, and its columns of ``per_frame``, per object."""
    kinds = np.array([[fault.kind if fault else None for fault in frame] for frame in part.faults], dtype=object).T
    failed = np.array([[fault is not None for fault in frame] for frame in part.faults]).T
    kept = np.array([missing != "drop" or not any(frame) for frame in part.faults], dtype=np.bool_)
    pairs = [table for table, keep in zip(part.pairs, kept, strict=True) if keep]
    found: list[ObjectScores] = []
    if pairs:
        # A mask that is missing takes part, even where no later one has a pixel: as an empty one it might score.
        lost = [number for number, of_one in enumerate(failed[:, kept], start=1) if of_one.any()]
        proposals = max([*lost, *(len(table) - 1 for table in pairs)])
        found = matched(pairs, proposals, failed[: max(proposals, part.objects), kept])
    unscored = np.stack([table[0] for table in part.pairs], axis=1)
    # A frame that was left out names the fault it was left out for.
    why = np.array([next((kind for kind in frame if kind), None) for frame in kinds.T], dtype=object)
    scores = {score.object: score for score in found}
    columns = []
    for number in range(1, part.objects + 1):
        score = scores.get(number)
        own = kinds[score.proposal - 1] if score and score.proposal else np.full_like(why, None)
        columns.append(
            {
                **{key: np.full(len(kept), value, dtype=object) for key, value in _about(part, number, score).items()},
                "frame": np.array(part.video.frames, dtype=object),
                **frame_columns(score, kept, unscored[number - 1], part.pixels),
                "problem": np.where(kept, own, why),
            }
        )
    rows = []
    for score in found:
        expression = part.expressions[score.proposal - 1] if score.proposal else None
        about = {**_about(part, score.object, score), "text": expression.text if expression else None}
        missed = int(failed[score.proposal - 1].sum()) if score.proposal else 0
        rows.append({**about, "missing": missed, **score.row()})
    return rows, columns


def _about(part: CountedAnnotator, number: int, score: ObjectScores | None) -> dict[str, Any]:
    """What tells an object of one video and annotator from the others."""
    proposal = score.proposal if score else None
    return {
        "video": part.video.name,
        "annotator": part.annotator,
        "object": number,
        "proposal": proposal,
        "expression": part.expressions[proposal - 1].id if proposal else None,
    }
