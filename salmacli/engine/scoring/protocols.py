"""By which rules each benchmark is scored, in words that go into every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from salmacli.engine.scoring.averages import (
    Average,
    Scores,
    of_pictures,
    of_pictures_with_no_target,
    region_and_contour,
    rounded,
    with_no_target,
)
from salmacli.errors import DataError, UsageError


@dataclass(frozen=True)
class Protocol:
    """The rules of one benchmark; the words say in full what the functions do.

    Attributes:
        name: What ``--protocol`` calls it.
        overall: How the scores of expressions become the benchmark's.
        differs: Where we are not as the official script on purpose, and how its number is had.
        metrics: The headline, in order; a split that has nothing to make one of is scored without it.
        needed: The metric without which nobody would want this protocol.
        frames: Which frames are scored.
        void: What becomes of pixels nobody annotated.
        matching: How predictions and truth find each other.
        empty: What an empty mask scores.
        rounding: What is rounded before it is averaged.
        average: From rows, one per expression, to scores; None where the protocol has an evaluator of its own.
        kinds: Kinds of expressions that count; None for all.
        macro: The overall score is the unweighted mean over kinds, not over expressions.
        accuracy: Whether A and R of ReVOS are measured, and in which arithmetic.
        whole: Where missing masks score 0, so does their whole expression.
    """

    name: str
    overall: str
    differs: str
    metrics: tuple[str, ...] = ("J", "F", "JF")
    needed: str | None = None
    frames: str = "all"
    void: str = "none"
    matching: str = "none: each expression has its own masks"
    empty: str = (
        "J: both masks empty 1, one empty 0; F: likewise by boundaries, so that a full frame against an empty one has 1"
    )
    rounding: str = "none"
    average: Average | None = region_and_contour
    kinds: tuple[str, ...] | None = None
    macro: bool = False
    accuracy: Literal["boolean", "8 bits"] | None = None
    whole: bool = False

    def record(self, missing: str) -> dict[str, str]:
        """The rules as ``results.json`` states them."""
        words = ("name", "frames", "void", "matching", "empty", "overall", "rounding")
        return {**{word: getattr(self, word) for word in words}, "missing": missing, "differs": self.differs}

    def counted(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The expressions that count: of a kind that is asked for, and with a frame left to score."""
        rows = rows[rows["frames"] > 0]
        return rows if self.kinds is None else rows[rows["kind"].isin(self.kinds)]

    def scores(self, rows: pd.DataFrame) -> Scores:
        """The benchmark's scores from one row per expression.

        Raises:
            DataError: There are no rows for the metric that is needed.
        """
        if self.macro:
            of_kinds = pd.DataFrame([self.flat(part) for _, part in rows.groupby("kind")])
            scores = {str(metric): float(value) for metric, value in of_kinds.mean().items()}
        else:
            scores = self.flat(rows)
        if self.needed is not None and self.needed not in scores:
            raise DataError(
                f"protocol {self.name} needs expressions with a target and without, here is only one kind",
                "choose another split or --protocol",
            )
        return scores

    def flat(self, rows: pd.DataFrame) -> Scores:
        """The scores of some rows, each expression with the same weight; those that can be made of them."""
        assert self.average is not None
        return self.average(rows)

    def groups(self, rows: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
        """Scores per value of each column that sorts the expressions, if it does."""
        groups = {}
        for column in ("category", "distractor", "kind"):
            parts = {
                str(value): {**self.flat(part), "expressions": len(part)}
                for value, part in rows.groupby(column, sort=True)
            }
            if parts:
                groups[column] = parts
        return groups


def protocol_of(benchmark: str, name: str | None = None) -> Protocol:
    """The protocol of a benchmark, by default the one that people report.

    Raises:
        DataError: The benchmark has no protocol.
        UsageError: It has none of this name.
    """
    if benchmark not in PROTOCOLS:
        raise DataError(f"there is no protocol to score {benchmark!r}", f"use one of {', '.join(PROTOCOLS)}")
    found = PROTOCOLS[benchmark]
    if name is None:
        return next(iter(found.values()))
    if name not in found:
        raise UsageError(f"{benchmark} has no protocol {name!r}", f"choose one of {', '.join(found)}")
    return found[name]


def _by_name(*protocols: Protocol) -> dict[str, Protocol]:
    return {protocol.name: protocol for protocol in protocols}


_FLAT = "mean over frames, then over expressions; J&F = (J + F) / 2"
_LOST = (
    "The official script gives 0 to the expressions of a missing video and silently loses every other expression with"
    " a fault in it; here both are errors, --missing zero scores the missing masks 0 and --missing drop leaves them out"
)
_EMPTY_IOU = "both masks empty 1, one empty 0"
_SUMS = (
    "Sums are whole numbers and IoU is theirs; LISA's script adds 1e-5 to unions and passes sums on as 32-bit floats,"
    " which is not reproduced"
)
_PICTURES = Protocol(
    "default",
    "cIoU = sum of intersections / sum of unions; gIoU = mean IoU of expressions; P@x = share of expressions with"
    " IoU >= x",
    differs=_SUMS,
    metrics=("cIoU", "gIoU"),
    frames="the picture",
    empty=_EMPTY_IOU,
    average=of_pictures,
)

PROTOCOLS: Mapping[str, Mapping[str, Protocol]] = {
    "davis": _by_name(
        Protocol("expression", _FLAT, differs=f"{_LOST}. Its scores are rounded to two decimals of a percent"),
        Protocol(
            "annotators",
            "per annotator mean over the frames of an object, then over the objects of all videos; mean of the four"
            " annotators; J&F = (J + F) / 2",
            differs="Probabilities are the sigmoid of saved logits, enlarged bilinearly; where only masks are there"
            " they are 0 and 1, and a pixel that two claim goes to the first. Decay is right from 256 frames on."
            " A mask that is missing scores 0 against every object with --missing zero; with --missing drop its frame"
            " leaves the means of its video and annotator",
            void="255 in the official PNGs is taken out of predictions; a set that has only mask_dict.pkl has none",
            matching="number i of a video's expressions is of object i // 4 and annotator i % 4. An annotator's masks"
            " become one label picture: probabilities below 0.5 are 0, background is 0.1, the highest takes the pixel."
            " Per annotator and video the assignment of labels to objects that has the highest sum of (J + F) / 2:"
            " swapped identities cost nothing; the objects are 1 to the highest label of the first true frame; a video"
            " without one is left out and named",
            average=None,
        ),
    ),
    "mevis": _by_name(
        Protocol("v1", _FLAT, differs=_LOST),
        Protocol(
            "v2",
            "J, F: mean over frames, then over expressions with a target; J&F = (J + F) / 2; N_acc = share of"
            " expressions without target whose frames are all predicted empty; T_acc = share of expressions with a"
            " target that have any predicted pixel; final = (J&F + N_acc + T_acc) / 3",
            differs="The script of the server is not public, so these rules are not checked against it",
            metrics=("J", "F", "JF", "N_acc", "T_acc", "final"),
            needed="final",
            average=with_no_target,
        ),
    ),
    "revos": _by_name(
        Protocol(
            "default",
            "mean over frames, then over expressions of one kind; overall = unweighted mean of referring and reasoning"
            " (micro: over the expressions of both); J&F = (J + F) / 2; A = share of pixels that agree; R = max(1 -"
            " predicted pixels outside the target / (annotated pixels + 1e-6), 0); A and R by booleans, R only where"
            " the foreground masks are there; expressions of type 2 (without target) are left out",
            differs="The official script rounds each expression and computes A and R in 8 bits: --visa-compat. It gives"
            " 0 to a whole expression with a fault in it; here that is an error, or --missing zero scores the frame 0",
            kinds=("referring", "reasoning"),
            macro=True,
            accuracy="boolean",
        ),
        Protocol(
            "visa-compat",
            "as default, but A and R in 8 bits that wrap around, with overlapping objects added up: A and R with"
            " predictions of 0/255 (PNGs), A_rle and R_rle with predictions of 0/1 (decoded RLEs)",
            differs="As the official script; with --missing zero an expression with a fault scores 0 as a whole, as"
            " there. Predictions count as 0/255 whatever numbers they hold",
            rounding="each expression to two decimals of a percent",
            average=rounded,
            kinds=("referring", "reasoning"),
            macro=True,
            accuracy="8 bits",
            whole=True,
        ),
    ),
    "refytvos": _by_name(
        Protocol("default", _FLAT, differs="The server's script is not public; J and F are those of DAVIS")
    ),
    **{name: _by_name(_PICTURES) for name in ("refcoco", "refcoco+", "refcocog")},
    "grefcoco": _by_name(
        Protocol(
            "default",
            "cIoU = sum of intersections / sum of unions, where a missed no-target adds its predicted pixels to the"
            " unions; gIoU = mean IoU of expressions; P@x = share of expressions with a target and IoU >= x; N_acc ="
            " share of expressions without target that are predicted empty; T_acc = share of expressions with a target"
            " that are not",
            differs="ReLA says no-target with a classifier of its own and then takes its mask for empty, though not in"
            " the union: here an empty mask says it. There an empty mask for an empty truth of an expression with a"
            f" target scores 0, here 1. {_SUMS}",
            metrics=("cIoU", "gIoU", "N_acc", "T_acc"),
            frames="the picture",
            empty=_EMPTY_IOU,
            average=of_pictures_with_no_target,
        )
    ),
}
