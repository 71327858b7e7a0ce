"""Prediction: expressions per second, where the time goes, and memory over the length of the video.

    python benchmarks/predict.py                                  # tiny; a few minutes on two cores
    python benchmarks/predict.py --size mid --modes consistent    # real proportions at 256 pixels
    python benchmarks/predict.py --size real                      # Hiera-L at 1024 pixels, InternVL2.5-1B; CUDA, bf16
    python benchmarks/predict.py --size mid --public FOLDER --public-python PYTHON

Weights are random and the answer is forced, so that nothing is downloaded. Measured are, in this order:

    speed     one call with all expressions (`shared`) against one call per expression (`naive`), in one process by
              turns, and, in mode sa2va, against the public Sa2VA code with the same weights (`public`): FOLDER has
              its `modeling_sa2va_chat.py`, PYTHON has the packages that it needs. Seconds are from frames in memory
              to masks of the frames' size; medians of the repeats. A way without sharing takes the same time for
              each expression, so that it may be given fewer of them.
    shares    seconds of every part in the shared way, and its share beside that of the FLOP table
    memory    peak of a whole process that predicts 50, 500 and 2,000 frames from the disk, always at tiny size
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _measuring import machine, measure
from _prediction import ANSWER, MODES, PICTURES, TEXTS, Public, build, config_of, video
from _shares import shares, shares_table
from PIL import Image

from salmacli.config.loading import load_predict
from salmacli.data import rle
from salmacli.data.frames import arrays, frames_of
from salmacli.engine.prediction.predictor import Predictor

HERE = Path(__file__).resolve().parent
MEMORY_SIZE = (240, 320)
# Name → settings, and whether the frames come from one video file.
MEMORY: dict[str, tuple[dict[str, Any], bool]] = {
    "frames": ({"mode": "frames"}, False),
    "consistent": ({"mode": "consistent"}, False),
    "consistent, window=64": ({"mode": "consistent", "window": 64}, False),
    "consistent, mp4": ({"mode": "consistent"}, True),
}
Way = Callable[[], list[np.ndarray]]


def main() -> None:
    options = parse()
    if options.one:
        predict_one(options.one)
        return
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.size == "real" and torch.cuda.is_available() else "cpu")
    if options.size == "real" and device.type == "cpu":
        raise SystemExit("--size real needs a GPU")
    results: dict[str, Any] = {
        "machine": machine() | {"torch": torch.__version__, "threads": options.threads},
        "size": options.size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": "bfloat16" if device.type == "cuda" else "float32",
        "frames": options.frames,
        "picture": PICTURES[options.size],
        "expressions": options.expressions,
        "settings": options.set,
    }
    frames = video(options.frames, PICTURES[options.size])
    texts = TEXTS[: options.expressions]
    for what, section in (("speed", speed), ("shares", where_time_goes)):
        if what in options.what:
            results[what] = {mode: section(mode, frames, texts, device, options) for mode in options.modes}
    if "memory" in options.what:
        results["memory"] = memory(options)
    out = options.out or HERE / "results" / f"predict-{options.size}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    say(f"written: {out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=PICTURES, default="tiny")
    parser.add_argument(
        "--what", nargs="+", choices=("speed", "shares", "memory"), default=["speed", "shares", "memory"]
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--expressions", type=int, default=16, help=f"at most {len(TEXTS)}")
    parser.add_argument("--unshared", type=int, help="expressions of naive and public; all, and 2 where not tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of prediction")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 500, 2000], help="frames, for memory")
    parser.add_argument("--public", type=Path, help="folder of the public code")
    parser.add_argument("--public-python", default=sys.executable, help="interpreter that runs it")
    parser.add_argument("--out", type=Path, help="benchmarks/results/predict-SIZE.json")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.public and not (options.public / "modeling_sa2va_chat.py").exists():
        parser.error(
            f"{options.public} has no modeling_sa2va_chat.py; in a checkout it is projects/llava_sam2/hf/models"
        )
    options.unshared = min(
        options.unshared or (options.expressions if options.size == "tiny" else 2), options.expressions
    )
    return options


# Speed.


def speed(
    mode: str, frames: list[np.ndarray], texts: Sequence[str], device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds per expression of every way, their ratios, and how far the masks agree."""
    model = build(config_of(options.size, mode), device)
    predictor = Predictor(model, load_predict(options.set, mode=mode))
    few = texts[: options.unshared]

    def shared() -> list[np.ndarray]:
        return [track.masks() for track in predictor.video(arrays(frames), texts, answer=ANSWER)]

    def naive() -> list[np.ndarray]:
        return [predictor.video(arrays(frames), [text], answer=ANSWER)[0].masks() for text in few]

    predictor.video(arrays(frames[:8]), texts, answer=ANSWER)  # what is made once is made
    ways: dict[str, tuple[Way, int]] = {"shared": (shared, len(texts)), "naive": (naive, len(few))}
    if options.public is None or mode != "sa2va" or options.size == "tiny":
        return compared(ways, options.repeats, mode)
    with tempfile.TemporaryDirectory() as scratch, Public(model, frames, Path(scratch), options) as public:
        public.masks(texts[:1])
        return compared({**ways, "public": (lambda: public.masks(few), len(few))}, options.repeats, mode)


def compared(ways: dict[str, tuple[Way, int]], repeats: int, mode: str) -> dict[str, Any]:
    """Every way by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    masks: dict[str, list[np.ndarray]] = {}
    for number in range(repeats):
        for name, (way, count) in ways.items():
            say(f"speed: {mode}, {name}, {number + 1} of {repeats}")
            begin = time.perf_counter()
            masks[name] = way()
            seconds[name].append((time.perf_counter() - begin) / count)
    found: dict[str, Any] = {}
    for name, (_, count) in ways.items():
        middle = median(seconds[name])
        agreement = [float((ours == theirs).mean()) for ours, theirs in zip(masks["shared"], masks[name], strict=False)]
        found[name] = {
            "expressions": count,
            "seconds_per_expression": round(middle, 4),
            "expressions_per_second": round(1 / middle, 4),
            "times_slower": round(median(a / b for a, b in zip(seconds[name], seconds["shared"], strict=True)), 2),
            "pixels_as_shared": min(agreement),
            "all_seconds": [round(one, 4) for one in seconds[name]],
        }
    found["foreground"] = round(float(np.mean([one.mean() for one in masks["shared"]])), 4)
    return found


def where_time_goes(
    mode: str, frames: list[np.ndarray], texts: Sequence[str], device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds and FLOPs of the parts, in the shared way."""
    config = config_of(options.size, mode)
    predictor = Predictor(build(config, device), load_predict(options.set, mode=mode))
    predictor.video(arrays(frames[:8]), texts, answer=ANSWER)
    say(f"shares: {mode}")
    return shares(predictor, config, frames, texts)


# Memory.


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak MiB of a whole process by the length of its video."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lay_out(folder, options.lengths)
        for name, (settings, one_file) in MEMORY.items():
            rows = {}
            for length in options.lengths:
                say(f"memory: {name}, {length} frames")
                job = {"video": str(folder / (f"{length}.mp4" if one_file else str(length))), "settings": settings}
                command = [sys.executable, str(HERE / "predict.py"), "--one", json.dumps(job)]
                rows[str(length)] = measure(command, HERE, folder, options.threads)[0]
            peaks = [row["peak_mib"] for row in rows.values()]
            found[name] = {"frames": rows, "largest_of_smallest": round(max(peaks) / min(peaks), 3)}
    return found


def lay_out(folder: Path, lengths: Sequence[int]) -> None:
    """Each video as a folder of pictures and as one file; all show the same hundred frames over and over."""
    import av

    few = video(100, MEMORY_SIZE)
    (folder / "pictures").mkdir()
    for number, frame in enumerate(few):
        Image.fromarray(frame).save(folder / "pictures" / f"{number}.jpg")
    for length in lengths:
        (folder / str(length)).mkdir()
        with av.open(str(folder / f"{length}.mp4"), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=24)
            stream.height, stream.width = MEMORY_SIZE
            for number in range(length):
                (folder / str(length) / f"{number:05d}.jpg").symlink_to(folder / "pictures" / f"{number % 100}.jpg")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(few[number % 100], format="rgb24")))
            container.mux(stream.encode(None))


def predict_one(job: dict[str, Any]) -> None:
    """What the measured process does."""
    settings = load_predict(**job["settings"])
    model = build(config_of("tiny", str(settings.mode)), torch.device("cpu"))
    tracks = Predictor(model, settings).video(frames_of(job["video"]), TEXTS[:4], answer=ANSWER)
    print(sum(len(rle.decode({"size": tracks[0].size, "counts": track.counts[-1]})) for track in tracks))


# Tables.


def table(results: dict[str, Any]) -> str:
    lines = [f"{results['size']}: {results['frames']} frames, {results['expressions']} expressions"]
    lines[0] += f", {results['device']}, {results['dtype']}, {results['machine']['threads']} threads"
    if "speed" in results:
        lines += ["", f"{'':22}{'expressions/s':>14}{'s/expression':>14}{'× slower':>10}{'pixels as shared':>18}"]
        for mode, ways in results["speed"].items():
            for name, row in ways.items():
                if name != "foreground":
                    values = f"{row['expressions_per_second']:>14.3f}{row['seconds_per_expression']:>14.3f}"
                    values += f"{row['times_slower']:>10.2f}{row['pixels_as_shared']:>18.4%}"
                    lines.append(f"{mode + ', ' + name:22}{values}")
    for mode, parts in results.get("shares", {}).items():
        lines += ["", f"{mode}:", *shares_table(parts)]
    if "memory" in results:
        lines += ["", "peak MiB, by frames"]
        for name, row in results["memory"].items():
            peaks = "".join(f"{length:>8}:{one['peak_mib']:>6}" for length, one in row["frames"].items())
            lines.append(f"{name:24}{peaks}   largest/smallest {row['largest_of_smallest']}")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
