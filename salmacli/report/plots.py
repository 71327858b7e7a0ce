"""Curves as PNG: training and thresholds."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from salmacli.config.files import write_atomic
from salmacli.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Keys of metrics.jsonl that are no losses.
_NOT_LOSSES = {"step", "lr", "grad_norm", "seconds", "bad", "left_out"}


def training_curve(metrics: Path, out: Path) -> Path:
    """Draw the losses, and validation scores if there are any, of a run's ``metrics.jsonl``.

    Keys that start with ``validation`` are scores in 0..1 and get an axis of their own. Nothing is smoothed.

    Raises:
        DataError: The file is missing, broken or has no step.
    """
    curves = read_metrics(metrics)
    validation = {key: curve for key, curve in curves.items() if key.startswith("validation")}
    losses = {key: curve for key, curve in curves.items() if key not in _NOT_LOSSES and key not in validation}
    if not losses:
        raise DataError(f"{metrics} has no loss to draw", "train some steps first")
    figure, axes = _figure(rows=2 if validation else 1)
    for key, (steps, values) in losses.items():
        total = key == "loss"
        axes[0].plot(steps, values, label="total" if total else key, linewidth=2.2 if total else 1.3)
    if all(value > 0 for _, values in losses.values() for value in values):
        axes[0].set_yscale("log")
    axes[0].set_ylabel("loss")
    axes[0].legend(ncol=min(len(losses), 6), loc="upper right")
    if validation:
        for key, (steps, values) in validation.items():
            name = key.removeprefix("validation").strip("_/ ").replace("JF", "J&F") or "score"
            axes[1].plot(steps, [100 * value for value in values], marker="o", markersize=4, label=name)
        axes[1].set_ylabel("validation, %")
        axes[1].set_ylim(0, 100)
        axes[1].legend(loc="lower right")
    axes[-1].set_xlabel("step")
    axes[0].set_title(f"Training of {metrics.resolve().parent.name}", loc="left")
    return _save(figure, out)


def threshold_curve(record: Mapping[str, Any], out: Path) -> Path:
    """Draw IoU and Dice over the threshold, with the best ones and 0.5 marked.

    Args:
        record: The content of ``threshold_sweep.json``.
        out: The PNG.
    """
    figure, (axis,) = _figure(rows=1)
    thresholds = record["thresholds"]
    for metric, name in (("iou", "IoU (J)"), ("dice", "Dice")):
        values = [100 * value for value in record[metric]]
        best = record["best"][metric]["threshold"]
        top = values[thresholds.index(best)]
        (line,) = axis.plot(thresholds, values, linewidth=2, label=f"{name}, best {top:.1f} at {best:.4g}")
        axis.plot([best], [top], marker="o", color=line.get_color())
    axis.axvline(0.5, color="0.6", linewidth=1, linestyle="--", label="0.5")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 100)
    axis.set_xlabel("threshold on the mask's probability")
    axis.set_ylabel("mean over expressions, %")
    where = " ".join(str(record[key]) for key in ("run", "benchmark", "split", "mode") if record.get(key))
    axis.set_title(f"Thresholds: {where}" if where else "Thresholds", loc="left")
    figure.legend(loc="outside lower center", ncol=3, frameon=False)
    return _save(figure, out)


def scores_over_time(frames: pd.DataFrame, case: str, folder: Path) -> Path:
    """Draw J and F of one expression or object, frame by frame; frames with a problem are marked.

    Args:
        frames: The content of ``per_frame``.
        case: ``<video>/<expression>``, or ``<sequence>/<object>``.
        folder: Gets ``over_time/<video>/<expression>.png``.

    Raises:
        UsageError: There is no such case.
    """
    outer, inner = ("video", "expression") if "video" in frames else ("sequence", "object")
    video, _, name = case.rpartition("/")
    shown = frames[(frames[outer].astype(str) == video) & (frames[inner].astype(str) == name)]
    if shown.empty:
        some = frames[[outer, inner]].astype(str).drop_duplicates().agg("/".join, axis=1).head(3)
        raise UsageError(f"--plot: there is no {outer}/{inner} {case!r}", f"one of {', '.join(some)}, …")
    figure, (axis,) = _figure(rows=1)
    places = range(len(shown))
    for metric, what in (("J", "J (region)"), ("F", "F (contour)")):
        values = 100 * shown[metric].to_numpy(dtype=float)
        known = values[~np.isnan(values)]
        mean = f", mean {known.mean():.1f}" if known.size else ""
        axis.plot(places, values, linewidth=1.8, marker="o", markersize=3, label=f"{what}{mean}")
    for problem, rows in shown.assign(place=places).groupby("problem"):
        axis.plot(rows["place"], [0] * len(rows), "x", color="0.3", label=f"{problem}: {len(rows)} frames")
    axis.set_ylim(-2, 102)
    axis.set_ylabel("%")
    axis.set_xlabel("frame")
    step = max(1, len(shown) // 10)
    # Names are no formulas.
    axis.set_xticks(list(places)[::step], [str(frame) for frame in shown["frame"]][::step], parse_math=False)
    axis.set_title(f"J and F over time: {case}", loc="left", parse_math=False)
    figure.legend(loc="outside lower center", ncol=3, frameon=False)
    return _save(figure, folder / "over_time" / video / f"{name}.png")


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every key of a ``metrics.jsonl``; what is not a finite number is left out.

    A last line cut off by a crash is left out; a resumed run that logs a step again replaces the first.

    Raises:
        DataError: The file is missing, or another line is broken.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "train first: salma train") from None
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            logged = json.loads(line)
            step = int(logged["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise DataError(f"{path} is broken at line {number}", "remove that line") from None
        for key, value in logged.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(key, {})[step] = float(value)
    return {key: (sorted(of), [of[step] for step in sorted(of)]) for key, of in found.items()}


def _figure(rows: int) -> tuple[Figure, list[Axes]]:
    # Figures are made without pyplot, which would look for a display and keep them for ever.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5 if rows == 1 else 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [1] if rows == 1 else [3, 2]
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0])
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, out: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(out, buffer.getvalue())
    return out
