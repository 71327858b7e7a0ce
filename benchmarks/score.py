"""How fast J and F are, in the same run as the official code and as vos-benchmark, on the same masks.

    python benchmarks/score.py --davis2017 CHECKOUT --vos-benchmark CHECKOUT

Checkouts of davis2017-evaluation and vos-benchmark (with OpenCV, scikit-image and tqdm installed); without them their
rows are left out. What is measured, in one thread, without what is compiled at the first call:

    arrays    boolean arrays in memory to J and F, packing included; the official functions get all frames of an object
              at once, as in the official tool, and once more frame by frame
    rle       COCO run-length strings to J and F
    floor     reading the bytes of the arrays once from memory, which no scoring from arrays can undercut

and, as whole processes from the start of Python to its end, on folders of label PNGs:

    process   `salma eval davis --scoring semi-supervised` (cold: with nothing compiled before), evaluation_method.py
              and vos-benchmark's benchmark.py: wall and CPU seconds and peak resident memory

Repetitions are interleaved and medians are given; ratios in memory are medians of the ratios within a
repetition, those of processes ratios of medians. Scores are
compared: J and F of every object-frame bit for bit, the means of the processes to the official tool's three digits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _measuring import machine, measure
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
REAL_MASKS = HERE.parents[1] / "shared" / "data" / "real_masks"
Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask]  # prediction, truth
Scores = Callable[[Mask, Mask], NDArray[np.float64]]  # of prediction and truth: J and F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis2017", type=Path, help="checkout of davis2017-evaluation")
    parser.add_argument("--vos-benchmark", type=Path, help="checkout of vos-benchmark")
    parser.add_argument(
        "--masks",
        type=Path,
        nargs=2,
        metavar=("TRUTH", "PREDICTIONS"),
        default=[REAL_MASKS / "osvos", REAL_MASKS / "rvos"],
        help="two folders <sequence>/<frame>.png of object numbers",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="cores of the processes; the rest is always in one thread"
    )
    parser.add_argument("--repeats", type=int, default=5, help="in memory")
    parser.add_argument("--process-repeats", type=int, default=1, help="of the processes")
    parser.add_argument("--object-frames", type=int, default=480, help="in memory")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "score.json")
    options = parser.parse_args()
    truth, predictions = options.masks
    if not truth.is_dir() or not predictions.is_dir():
        say(f"skipped: {truth} and {predictions} are needed; --masks names others")
        return
    for name, folder in (("davis2017", options.davis2017), ("vos-benchmark", options.vos_benchmark)):
        if folder is None:
            say(f"without {name}: --{name} CHECKOUT compares with it")
    objects = objects_of(truth, predictions, options.object_frames)
    official = official_scores(options.davis2017) if options.davis2017 else None
    results = {
        "machine": machine(),
        "masks": dict(zip(("height", "width"), objects[0][0].shape[1:], strict=True)),
        "in_memory": in_memory(objects, official, options.repeats),
        **({"processes": processes(truth, predictions, options)} if options.process_repeats else {}),
    }
    text = json.dumps(results, indent=2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    print(text)
    say(f"written: {options.out}")


# In memory.


def objects_of(truth: Path, predictions: Path, number: int) -> list[Pair]:
    """(prediction, truth) of objects, (frames, H, W), of the commonest size, spread over all sequences."""
    found: list[Pair] = []
    sequences = folders(truth)
    for sequence in sequences:
        frames = sorted((truth / sequence).glob("*.png"))[1:-1]
        objects = int(labels(frames[0]).max())
        wanted = max(1, round(number / len(sequences) / max(objects, 1)))
        chosen = frames[:: max(1, len(frames) // wanted)][:wanted]
        true = np.stack([labels(frame) for frame in chosen])
        predicted = np.stack([labels(predictions / sequence / frame.name) for frame in chosen])
        found += [(predicted == label, true == label) for label in range(1, objects + 1)]
    shapes = [pair[0].shape[1:] for pair in found]
    commonest = max(set(shapes), key=shapes.count)
    return [pair for pair in found if pair[0].shape[1:] == commonest]


def official_scores(checkout: Path) -> Scores:
    """J and F of (prediction, truth) by the official functions in one thread."""
    sys.path.insert(0, str(checkout.resolve()))
    import_module("cv2").setNumThreads(1)
    metrics = import_module("davis2017.metrics")
    warnings.simplefilter("ignore", RuntimeWarning)
    return lambda prediction, truth: np.array(
        [metrics.db_eval_iou(truth, prediction), metrics.db_eval_boundary(truth, prediction)], dtype=np.float64
    )


def in_memory(objects: list[Pair], official: Scores | None, repeats: int) -> dict[str, Any]:
    """Rows ``arrays``, ``rle`` and ``floor``: milliseconds per object-frame."""
    from pycocotools import mask as coco

    from salmacli.data import rle
    from salmacli.metrics.contour import contour_accuracy
    from salmacli.metrics.counts import count
    from salmacli.metrics.region import region_similarity

    pairs = [pair for stacks in objects for pair in zip(*stacks, strict=True)]
    strings = [[[rle.encode(mask) for mask in stack] for stack in stacks] for stacks in objects]

    def ours(counts: Iterable[NDArray[np.int64]]) -> NDArray[np.float64]:
        rows = np.stack(list(counts))
        return np.stack([region_similarity(rows), contour_accuracy(rows)])

    def decoded(of_object: list[dict[str, Any]]) -> Mask:
        return np.stack([coco.decode(one) for one in of_object]) > 0

    works: dict[str, Callable[[], Any]] = {
        "floor": lambda: [np.bitwise_or.reduce(words(mask)) for pair in pairs for mask in pair],
        "arrays": lambda: ours(count(prediction, truth) for prediction, truth in pairs),
        "rle": lambda: ours(
            count(rle.bits(prediction), rle.bits(truth))
            for stacks in strings
            for prediction, truth in zip(*stacks, strict=True)
        ),
    }
    if official is not None:
        # The official tool hands over all frames of an object at once.
        works["official arrays"] = lambda: np.hstack([official(*stacks) for stacks in objects])
        works["official arrays, frame by frame"] = lambda: np.array([official(*pair) for pair in pairs]).T
        works["official rle"] = lambda: np.hstack([official(*map(decoded, stacks)) for stacks in strings])
    works["arrays"](), works["rle"]()  # compiles
    taken, scores = interleaved(works, repeats)
    found: dict[str, Any] = {name: {"ms": round(1000 * median(times) / len(pairs), 4)} for name, times in taken.items()}
    found["arrays"]["above_floor"] = ratio(taken["arrays"], taken["floor"])
    for name in works.keys() - {"floor", "arrays", "rle"}:
        mine = name.removeprefix("official ").partition(",")[0]
        found[name]["times_slower"] = ratio(taken[name], taken[mine])
        found[name]["equal"] = bool(np.array_equal(scores[mine], scores[name]))
        if not found[name]["equal"]:
            raise SystemExit(f"{name}: J or F differs from the official functions")
    return {"object_frames": len(pairs), **found}


def interleaved(works: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every repetition, one work after the other in each, and the last results."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    results = {}
    for _ in range(repeats):
        for name, work in works.items():
            begin = time.perf_counter()
            results[name] = work()
            taken[name].append(time.perf_counter() - begin)
    return taken, results


def ratio(slow: list[float], fast: list[float]) -> float:
    return round(median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def words(mask: Mask) -> NDArray[np.uint64]:
    return mask.reshape(-1)[: mask.size // 8 * 8].view(np.uint64)


# As whole processes.


def processes(truth: Path, predictions: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Wall and CPU seconds and peak memory of every tool on the same pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        counted = lay_out(truth, predictions, folder)
        tools: dict[str, tuple[list[str], Path]] = {}
        salma = [sys.executable, "-m", "salmacli", "eval", "davis", "--truth", str(folder / "truth"), "--predictions"]
        salma += [str(folder / "predictions"), "--scoring", "semi-supervised", "--json"]
        tools["salma, cold"] = tools["salma"] = (salma, folder)
        if options.davis2017:
            official = ["evaluation_method.py", "--davis_path", scratch, "--task", "semi-supervised"]
            official += ["--results_path", str(folder / "official")]
            tools["official"] = ([sys.executable, *official], options.davis2017)
        if options.vos_benchmark:
            vos = ["benchmark.py", "-g", str(folder / "truth"), "-m", str(folder / "vos"), "-n"]
            for number in sorted({1, options.threads}):
                called = f"vos-benchmark, {number} processes" if number > 1 else "vos-benchmark, 1 process"
                tools[called] = ([sys.executable, *vos, str(number)], options.vos_benchmark)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in tools}
        said = {}
        for _ in range(options.process_repeats):
            for name, (command, where) in tools.items():
                if name == "salma, cold":
                    shutil.rmtree(folder / "numba", ignore_errors=True)
                if name == "official":
                    for csv in (folder / "official").glob("*.csv"):
                        csv.unlink()  # with them it would compute nothing
                say(f"process: {name}")
                measured, said[name] = measure(command, where, folder, options.threads)
                runs[name].append(measured)
        found: dict[str, dict[str, Any]] = {
            name: {key: round(median(run[key] for run in of_tool), 2) for key in of_tool[0]}
            for name, of_tool in runs.items()
        }
        for name in found.keys() - {"salma"}:
            found[name]["times_slower"] = {
                key: round(found[name][key] / max(found["salma"][key], 0.01), 2) for key in ("wall_s", "cpu_s")
            }
        return {**counted, "threads": options.threads, "tools": found, "scores": compare(said, folder)}


def lay_out(truth: Path, predictions: Path, folder: Path) -> dict[str, int]:
    """The same pictures as every tool wants them; labels above the number of true objects stop the official tool."""
    counted = {"sequences": 0, "frames": 0, "object_frames": 0}
    (folder / "ImageSets" / "2017").mkdir(parents=True)
    (folder / "ImageSets" / "2017" / "val.txt").write_text("".join(f"{name}\n" for name in folders(truth)))
    for sequence in folders(truth):
        places = [folder / name / sequence for name in ("truth", "predictions", "official", "vos", "JPEGImages/480p")]
        for place in places:
            place.mkdir(parents=True)
        frames = sorted((truth / sequence).glob("*.png"))
        objects = int(labels(frames[0]).max())
        for frame in frames:
            shutil.copyfile(frame, places[0] / frame.name)
            picture = labels(predictions / sequence / frame.name)
            picture[picture > objects] = 0
            indexed = Image.fromarray(picture)
            indexed.putpalette([shade for shade in range(256) for _ in "rgb"])
            indexed.save(places[1] / frame.name)
            for place in places[2:4]:
                (place / frame.name).symlink_to(places[1] / frame.name)
            (places[4] / f"{frame.stem}.jpg").touch()
        counted["sequences"] += 1
        counted["frames"] += len(frames)
        counted["object_frames"] += objects * (len(frames) - 2)
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "480p").symlink_to(folder / "truth")
    return counted


def compare(said: dict[str, str], folder: Path) -> dict[str, Any]:
    """What every tool found; the official tool writes three digits."""
    ours = json.loads(said["salma"])["scores"]
    found: dict[str, Any] = {"salma": {name: ours[name] for name in ("J", "F")}}
    if "official" in said:
        names, values = (folder / "official" / "global_results-val.csv").read_text().split()
        means = dict(zip(names.split(","), map(float, values.split(",")), strict=True))
        found["official"] = {name: means[f"{name}-Mean"] for name in ("J", "F")}
        if any(f"{found['salma'][name]:.3f}" != f"{found['official'][name]:.3f}" for name in ("J", "F")):
            raise SystemExit(f"the means differ: {found}")
    if any(name.startswith("vos") for name in said):  # percent with one digit
        row = (folder / "vos" / "results.csv").read_text().splitlines()[1].split(",")
        found["vos-benchmark"] = {"J": float(row[3]), "F": float(row[4])}
    return found


def folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def labels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.array(picture, dtype=np.uint8)


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
