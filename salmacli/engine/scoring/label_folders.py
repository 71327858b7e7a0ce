"""Scores of plain folders of label pictures ``<sequence>/<frame>.png``, object by object, by the rules of DAVIS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salmacli.config.files import safe_name
from salmacli.data.label_pictures import folder_names
from salmacli.engine.progress import Progress
from salmacli.engine.scoring.evaluation import Evaluation, results_of
from salmacli.engine.scoring.evaluator import Missing
from salmacli.engine.scoring.label_counts import MOST_PROPOSALS, CountedSequence, count_sequence, pictures
from salmacli.engine.scoring.matching import ObjectScores, frame_columns, matched, means, object_tables, same
from salmacli.engine.scoring.problems import refuse
from salmacli.engine.scoring.protocols import Protocol
from salmacli.engine.threads import in_threads
from salmacli.errors import DataError, UsageError

_OVERALL = "mean over the frames of an object, then over the objects of all sequences; J&F = (J + F) / 2"
_OBJECTS = "the objects of a sequence are 1 to the highest label of its first true frame"
_ROUNDING = "none; the official tool's two CSV files have three decimals"
_DECAY = (
    "The official tool keeps frame numbers in 8 bits, so that its decay is wrong or NaN from 256 frames on; here it is"
    " right. Sequences are the folders of the truth in alphabetical order, not those of a list"
)

SCORINGS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "semi-supervised",
            _OVERALL,
            differs="A label above the number of objects ends the official tool; here it is reported as extra and the"
            f" objects are scored. {_DECAY}",
            metrics=("JF", "J", "F"),
            frames="all but the first and the last of a sequence",
            void="255 in the truth is background",
            matching=f"none: label n is object n; {_OBJECTS}",
            rounding=_ROUNDING,
            average=None,
        ),
        Protocol(
            "unsupervised",
            _OVERALL,
            differs=f"{_DECAY}. The official CSV numbers the matched proposals of a sequence; the rows here name object"
            " and proposal",
            metrics=("JF", "J", "F"),
            void="255 in the truth is taken out of predictions",
            matching=f"per sequence the assignment of predicted labels, at most {MOST_PROPOSALS}, to objects that has"
            f" the highest sum of (J + F) / 2: swapped identities cost nothing; {_OBJECTS}",
            rounding=_ROUNDING,
            average=None,
        ),
    )
}


def score_label_folders(
    truth_dir: Path,
    prediction_dir: Path,
    scoring: str = "semi-supervised",
    missing: Missing = "error",
    progress: Progress | None = None,
    name: str = "val",
) -> Evaluation:
    """Score label pictures against label pictures.

    Args:
        truth_dir: One folder of indexed or grey PNGs per sequence; 255 is void.
        prediction_dir: The same sequences, frames and sizes.
        scoring: A key of ``SCORINGS``.
        missing: A predicted picture that is missing or does not fit is an error, scores 0 for each object
            whatever the truth, or is left out of the means. It is counted and named either way.
        progress: Told of every sequence.
        name: Of the set, as the names of the official tool's two files have it.

    Raises:
        DataError: The truth is missing or broken, a prediction is (with ``missing="error"``), a sequence has more
            proposals than the official tool takes, or ``name`` could lead out of a folder.
        UsageError: There is no such scoring.

    Source: davis2017-evaluation.
    """
    if scoring not in SCORINGS:
        raise UsageError(f"there is no scoring {scoring!r}", f"choose one of {', '.join(SCORINGS)}")
    safe_name(name, "the name of the set")
    names, predicted = _folders(truth_dir), _folders(prediction_dir)
    if not names:
        raise DataError(f"{truth_dir} holds no folder of label pictures", "expected <sequence>/<frame>.png below it")
    matching = scoring == "unsupervised"
    counted = in_threads(
        lambda folder: count_sequence(truth_dir / folder, prediction_dir / folder, matching, skip_ends=not matching),
        names,
        "scoring label pictures",
        progress,
    )
    problems = Counter(fault for one in counted for fault in one.faults * one.objects if fault is not None)
    if problems and missing == "error":
        refuse(problems, sum(len(one.frames) * one.objects for one in counted), prediction_dir)
    scored = [_score(one, matching, missing) for one in counted]
    rows = [row for of_sequence, _ in scored for row in of_sequence]
    if not rows:
        raise DataError(f"{prediction_dir}: no object is left to score", "predict the sequences of the truth")
    extra = Counter({folder: len(pictures(prediction_dir / folder)) for folder in predicted if folder not in names})
    extra.update(where for one in counted for where in sorted(one.extra))
    origin = {"benchmark": f"davis {scoring}", "split": name, "synthetic": False}
    counts = {
        "videos": len({row["sequence"] for row in rows}),
        "objects": len(rows),
        "left_out": sum(one.objects for one in counted) - len(rows),
        "frames": sum(row["frames"] for row in rows),
        "fallbacks": {},
    }
    results = results_of(
        origin | dict.fromkeys(("mode", "run", "checkpoint", "config")),
        SCORINGS[scoring],
        missing,
        means(rows),
        counts,
        problems,
        extra,
        groups={},
        unscored_labels=[where for one in counted for where in sorted(one.unscored)],
    )
    tables = object_tables(rows, [part for _, of_sequence in scored for part in of_sequence])
    return Evaluation(results, *tables, "per_object", official_texts(rows, name))


def official_texts(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """The two files of the official tool, byte for byte.

    Args:
        rows: One per object, in the official order.
        name: Of the set.

    Source: davis2017-evaluation, ``evaluation_method.py``.
    """
    titles = ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    whole = pd.DataFrame([list(means(rows).values())], columns=titles)
    seen: Counter[str] = Counter()
    lines = []
    for row in rows:
        seen[row["sequence"]] += 1
        lines.append((f"{row['sequence']}_{seen[row['sequence']]}", row["J"], row["F"]))
    parts = pd.DataFrame(lines, columns=["Sequence", "J-Mean", "F-Mean"])
    return {
        f"{title}-{name}.csv": table.to_csv(index=False, float_format="%.3f", lineterminator="\n")
        for title, table in (("global_results", whole), ("per-sequence_results", parts))
    }


def _score(counted: CountedSequence, matching: bool, missing: Missing) -> tuple[list[dict[str, Any]], list[Any]]:
    """A sequence's rows, in the official order, and its columns of ``per_frame``, per object."""
    failed = np.array([fault is not None for fault in counted.faults])
    kept = ~failed if missing == "drop" else np.ones_like(failed)
    tables = [table for table, keep in zip(counted.counts, kept, strict=True) if keep]
    scores: list[ObjectScores] = []
    if tables and matching:
        rows = max(counted.proposals, counted.objects)
        scores = matched(tables, counted.proposals, np.tile(failed[kept], (rows, 1)))
    elif tables:
        scores = same(tables, failed[kept])
    unscored = np.stack([table[0] if matching else table for table in counted.counts], axis=1)
    kinds = np.array([fault.kind if fault else None for fault in counted.faults], dtype=object)
    by_object = {score.object: score for score in scores}
    columns = []
    for number in range(1, counted.objects + 1):
        score = by_object.get(number)
        about = _about(counted, number, score).items()
        columns.append(
            {
                **{key: np.full(len(kept), value, dtype=object) for key, value in about},
                "frame": np.array(counted.frames, dtype=object),
                **frame_columns(score, kept, unscored[number - 1], counted.shape[0] * counted.shape[1]),
                "problem": kinds,
            }
        )
    lost = int(failed.sum())
    return [{**_about(counted, score.object, score), "missing": lost, **score.row()} for score in scores], columns


def _about(counted: CountedSequence, number: int, score: ObjectScores | None) -> dict[str, Any]:
    """What tells an object from the others."""
    return {"sequence": counted.name, "object": number, "proposal": score.proposal if score else None}


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "name the folder that holds one folder per sequence")
    return folder_names(folder)
