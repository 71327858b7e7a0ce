"""Writes the official scores that tests compare with, from the official code itself.

    python tests/golden/make.py --davis2017 PATH [--only real_masks sav fuzz cases]

PATH is a checkout of davis2017-evaluation; it needs OpenCV, scikit-image and tqdm, which SALMA does not. The real masks
and SA-V lie in ../shared/data (SALMA_SHARED names another folder). All in one thread: half a minute, and for the real
masks a quarter of an hour and 14 GB of memory, since the official code holds every object of a video as float64.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import re
import runpy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402
import fuzz  # noqa: E402

Scores = NDArray[np.float64]

# 20 true objects against 20 proposals take the official code minutes a sequence, so only of two.
OF_TWENTY_OBJECTS = ["judo", "loading"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis2017", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS))
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0, which the official code then sets to 1
    official = Official(options.davis2017.resolve())
    shared = Path(os.environ.get("SALMA_SHARED") or HERE.parents[2] / "shared" / "data")
    for name in options.only:
        sys.stderr.write(f"{name}\n")
        text = json.dumps({"made_with": official.versions(), **MAKERS[name](official, shared)}, indent=1)
        # Lists of numbers on one line.
        text = re.sub(r"\[([^][{}\"]*)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
        (HERE / f"{name}.json").write_text(text + "\n")


class Official:
    """The official code in its folder."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(folder))
        self.folder = folder
        self.cv2 = import_module("cv2")
        self.cv2.setNumThreads(1)
        self.metrics = import_module("davis2017.metrics")
        self.statistics: Callable[..., tuple[float, float, float]] = import_module("davis2017.utils").db_statistics
        self.evaluation = import_module("davis2017.evaluation").DAVISEvaluation

    def versions(self) -> dict[str, str]:
        names = {"opencv": self.cv2, "scikit-image": import_module("skimage"), "numpy": np}
        return {"code": "davis2017-evaluation", **{name: module.__version__ for name, module in names.items()}}

    def scores(self, pairs: Iterable[tuple[Any, Any, int | None]]) -> Scores:
        """(2, n): J and F of (prediction, truth, radius)."""
        found = []
        for prediction, truth, radius in pairs:
            tolerance = 0.008 if radius is None else radius
            F = self.metrics.db_eval_boundary(truth, prediction, bound_th=tolerance)
            found.append((float(self.metrics.db_eval_iou(truth, prediction)), float(F)))
        return np.ascontiguousarray(np.array(found, dtype=np.float64).T)

    def evaluate(
        self, task: str, truth: Path, prediction: Path, sequences: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """One run of evaluation_method.py over folders <sequence>/<frame>.png: in full precision, and its CSV files."""
        kept: list[tuple[Scores, Scores]] = []
        name = f"_evaluate_{task.replace('-', '')}"
        method = getattr(self.evaluation, name)

        def keeping(*arguments: Any) -> tuple[Scores, Scores]:
            kept.append(method(*arguments))
            return kept[-1]

        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()) as said:
            results = lay_out(Path(scratch), truth, prediction, sorted(sequences or folders(truth)))
            before = sys.argv
            sys.argv = ["evaluation_method.py", "--davis_path", scratch, "--task", task, "--results_path", str(results)]
            setattr(self.evaluation, name, staticmethod(keeping))
            try:
                ended = runpy.run_path(str(self.folder / sys.argv[0]), run_name="__main__")
            except SystemExit:
                return {"refused": said.getvalue().strip().splitlines()[-1]}
            finally:
                sys.argv = before
                setattr(self.evaluation, name, staticmethod(method))
            texts = {path.name: path.read_text() for path in sorted(results.glob("*.csv"))}
        frames = [np.stack([J, F]) for all_J, all_F in kept for J, F in zip(all_J, all_F, strict=True)]
        objects = {}
        for i, (name, scores) in enumerate(zip(ended["seq_names"], frames, strict=True)):
            statistics = {of: numbers(ended[of][statistic][i] for statistic in "MRD") for of in "JF"}
            objects[name] = {**of_object(scores), **statistics}
        means = dict(zip(ended["g_measures"], numbers(ended["g_res"].ravel()), strict=True))
        return {"refused": None, "global": means, "objects": objects, "csv": texts}


def lay_out(scratch: Path, truth: Path, prediction: Path, sequences: list[str]) -> Path:
    """A DAVIS folder in ``scratch`` with its annotations; the folder of results, which gets the CSV files."""
    (scratch / "ImageSets" / "2017").mkdir(parents=True)
    (scratch / "ImageSets" / "2017" / "val.txt").write_text("\n".join(sequences) + "\n")
    for name in ("Annotations", "Annotations_unsupervised"):
        (scratch / name).mkdir()
        (scratch / name / "480p").symlink_to(truth.resolve())
    results = scratch / "results"
    results.mkdir()
    for sequence in sequences:
        images = scratch / "JPEGImages" / "480p" / sequence
        images.mkdir(parents=True)
        for frame in sorted((truth / sequence).glob("*.png")):
            (images / f"{frame.stem}.jpg").touch()
        (results / sequence).symlink_to((prediction / sequence).resolve())
    return results


def numbers(values: Iterable[Any]) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [None if math.isnan(value) else float(value) for value in values]


def of_object(scores: Scores) -> dict[str, Any]:
    """Number of frames, and a digest of J of all frames and then F of all, as little-endian float64."""
    return {"frames": scores.shape[1], "digest": digest(scores)[:16]}


def digest(scores: Scores) -> str:
    return hashlib.sha256(np.ascontiguousarray(scores).astype("<f8").tobytes()).hexdigest()


def of_pairs(scores: Scores, first: int) -> dict[str, Any]:
    """What says whether all pairs agree, and if not, which do not: one hex digit per pair finds 15 of 16."""
    digits = (hashlib.sha256(column.astype("<f8").tobytes()).hexdigest()[0] for column in scores.T)
    return {
        "count": scores.shape[1],
        "J": {"sha256": digest(scores[0]), "sum": math.fsum(scores[0]), "first": scores[0][:first].tolist()},
        "F": {"sha256": digest(scores[1]), "sum": math.fsum(scores[1]), "first": scores[1][:first].tolist()},
        "digits": "".join(digits),
    }


def make_real_masks(official: Official, shared: Path) -> dict[str, Any]:
    """Two methods against each other: by the official protocols, and label by equal label over all frames."""
    folder = shared / "real_masks"
    found: dict[str, Any] = {}
    for truth, prediction in (("osvos", "rvos"), ("rvos", "osvos")):
        of_direction: dict[str, Any] = {}
        for task in ("semi-supervised", "unsupervised"):
            sys.stderr.write(f"{prediction} against {truth}, {task}\n")
            sequences = OF_TWENTY_OBJECTS if (truth, task) == ("rvos", "unsupervised") else None
            scored = official.evaluate(task, folder / truth, folder / prediction, sequences)
            if scored["refused"]:
                with tempfile.TemporaryDirectory() as scratch:
                    clip(folder / truth, folder / prediction, Path(scratch))
                    clipped = official.evaluate(task, folder / truth, Path(scratch))
                scored = {**clipped, "refused": scored["refused"]}
            of_direction[task] = scored
        found[f"{prediction} against {truth}"] = of_direction
    by_label = {sequence: equal_labels(official, folder, sequence) for sequence in folders(folder / "osvos")}
    return {"directions": found, "equal_labels": by_label}


def clip(truth: Path, prediction: Path, out: Path) -> None:
    """Predictions without the labels above the number of true objects, at which the official tool stops."""
    for sequence in folders(truth):
        (out / sequence).mkdir()
        frames = sorted((truth / sequence).glob("*.png"))
        objects = labels(frames[0]).max()
        for frame in frames:
            predicted = labels(prediction / sequence / frame.name)
            save(np.where(predicted > objects, 0, predicted), out / sequence / frame.name)


def equal_labels(official: Official, folder: Path, sequence: str) -> dict[str, Any]:
    """Every label of a sequence over all frames, rvos against osvos; checks that the other way round is the same."""
    frames = sorted((folder / "osvos" / sequence).glob("*.png"))
    one = np.stack([labels(frame) for frame in frames])
    other = np.stack([labels(folder / "rvos" / sequence / frame.name) for frame in frames])
    found = {}
    for label in sorted(({*np.unique(one), *np.unique(other)}) - {0}):
        pairs = [(b, a, None) for a, b in zip(one == label, other == label, strict=True)]
        scores = official.scores(pairs)
        if not np.array_equal(scores, official.scores((a, b, None) for b, a, _ in pairs)):
            raise SystemExit(f"{sequence}, label {label}: J or F depends on which is the truth")
        statistics = {name: numbers(official.statistics(row)) for name, row in zip("JF", scores, strict=True)}
        found[str(label)] = {**of_object(scores), **statistics}
    return found


def make_sav(official: Official, shared: Path) -> dict[str, Any]:
    coco = import_module("pycocotools.mask")
    video = json.loads((shared / "sav" / "sav_000001_manual.json").read_text())["masklet"]
    masks = np.stack([[coco.decode(rle) > 0 for rle in frame] for frame in video])  # (T, 5, H, W)
    frames, objects = masks.shape[:2]
    next_frame = ((masks[t + 1, i], masks[t, i], None) for t in range(frames - 1) for i in range(objects))
    same_frame = (
        (masks[t, j], masks[t, i], None) for t in range(frames) for i in range(objects) for j in range(i + 1, objects)
    )
    return {
        "order": "next_frame: by frame, masklet; truth at t, prediction at t + 1. same_frame: by frame, i < j; truth i",
        "next_frame": of_pairs(official.scores(next_frame), 20),
        "same_frame": of_pairs(official.scores(same_frame), 20),
    }


def make_fuzz(official: Official, shared: Path) -> dict[str, Any]:
    chunks = []
    for start in range(0, fuzz.PAIRS, fuzz.CHUNK):
        pairs = [fuzz.pair(number) for number in range(start, start + fuzz.CHUNK)]
        of_masks = hashlib.sha256()
        for one, other, radius in pairs:
            of_masks.update(repr((one.shape, radius)).encode() + one.tobytes() + other.tobytes())
        chunks.append({"masks": of_masks.hexdigest()[:16], **of_pairs(official.scores(pairs), 3)})
    return {"chunks": chunks}


def make_cases(official: Official, shared: Path) -> dict[str, Any]:
    masks = cases.masks()
    against = {
        f"{prediction} against {truth}": official.scores([(masks[prediction], masks[truth], None)]).ravel().tolist()
        for prediction in masks
        for truth in masks
    }
    videos: dict[str, Any] = {}
    for name, (truth, prediction) in cases.videos().items():
        with tempfile.TemporaryDirectory() as scratch:
            for folder, video in (("truth", truth), ("prediction", prediction)):
                (Path(scratch) / folder / "a").mkdir(parents=True)
                for number, frame in enumerate(video):
                    save(frame, Path(scratch) / folder / "a" / f"{number:05d}.png")
            videos[name] = {
                task: official.evaluate(task, Path(scratch) / "truth", Path(scratch) / "prediction")
                for task in ("semi-supervised", "unsupervised")
            }
    series = {name: numbers(official.statistics(values)) for name, values in cases.series().items()}
    return {"masks": against, "videos": videos, "mean_recall_decay": series}


def folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def labels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.array(picture)


def save(picture: NDArray[np.uint8], path: Path) -> None:
    image = Image.fromarray(picture)
    image.putpalette([shade for shade in range(256) for _ in "rgb"])
    image.save(path)


MAKERS: Mapping[str, Callable[[Official, Path], dict[str, Any]]] = {
    "cases": make_cases,
    "sav": make_sav,
    "fuzz": make_fuzz,
    "real_masks": make_real_masks,
}

if __name__ == "__main__":
    main()
