"""The zip that the server of a benchmark takes: complete, read back, and the same bytes for the same predictions."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from PIL import Image

from salmacli.config.files import safe_name
from salmacli.engine.progress import Progress
from salmacli.engine.scoring.counting import check_asked, extra_masks
from salmacli.engine.scoring.evaluator import check_same, extra_videos
from salmacli.engine.scoring.predictions import Predictions, fitting_bits, open_predictions
from salmacli.engine.scoring.problems import Problem, ProblemError, refuse
from salmacli.engine.threads import stream_in_threads
from salmacli.errors import DataError, UsageError
from salmacli.metrics.bits import Mask

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark
    from salmacli.data.records import Video

# What stands above <video>/<expression>/<frame>.png in the zip.
TOPS: Mapping[str, str] = {"refytvos": "Annotations/", "mevis": ""}
# How many videos a server scores, where folders hold others, too.
VIDEOS: Mapping[tuple[str, str], int] = {("refytvos", "valid"): 202}
_MEND = "predict the masks that are missing: a server takes only complete submissions"


@dataclass
class _Encoded:
    """One video's pictures by their names in the zip, what is wrong, and how many masks nobody asked for."""

    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    problems: Counter[Problem] = field(default_factory=Counter)
    extra: int = 0


def write_submission(
    benchmark: Benchmark, predictions: Path, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write ``<video>/<expression>/<frame>.png``, mode L with 0 and 255, for every mask of a benchmark.

    Args:
        benchmark: Ref-YouTube-VOS or MeViS; says which masks the server wants, and their sizes.
        predictions: A folder or file in one of the forms of ``open_predictions``.
        out: The zip. It is there only once it is complete and read back.
        progress: Told of every video.

    Returns:
        What was written: path, benchmark, split, videos, expressions, masks, bytes, how many extra masks were not
        written, and notes for the person who submits.

    Raises:
        DataError: A mask is missing or does not fit, predictions are broken as a whole or of another benchmark, or
            the zip does not read back.
        UsageError: No server takes predictions of this benchmark.

    Source: the submission forms of Ref-YouTube-VOS and MeViS on CodaLab.
    """
    check_server(benchmark)
    found = open_predictions(predictions)
    check_same(benchmark, found)
    videos = sorted(benchmark.videos, key=lambda video: video.name)
    masks = sum(len(video.expressions) * len(video.frames) for video in videos)
    extra = sum(extra_videos(benchmark, found).values())
    problems: Counter[Problem] = Counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for encoded in stream_in_threads(
                    lambda video: _encode(benchmark, found, video),
                    videos,
                    f"writing the submission for {benchmark.name}",
                    progress,
                ):
                    extra += encoded.extra
                    problems += encoded.problems
                    # Once something is missing, what follows is read only to name all that is.
                    for name, picture in encoded.pictures if not problems else ():
                        archive.writestr(_entry(name), picture)
            file.flush()
            os.fsync(file.fileno())
        if problems:
            refuse(problems, masks, predictions, mend=_MEND)
        _check(part, masks)
        size = part.stat().st_size
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return {
        "path": str(out),
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "synthetic": benchmark.synthetic,
        "videos": len(videos),
        "expressions": sum(len(video.expressions) for video in videos),
        "masks": masks,
        "bytes": size,
        "extra": extra,
        "notes": _notes(benchmark),
    }


def check_server(benchmark: Benchmark) -> None:
    """Refuse a benchmark that no server takes predictions of.

    Raises:
        UsageError: It is one.
    """
    if benchmark.name not in TOPS:
        raise UsageError(f"there is no form of submission for {benchmark.name}", f"choose one of {', '.join(TOPS)}")


def encode_png(mask: Mask) -> bytes:
    """A mask as PNG of mode L with 0 and 255.

    Args:
        mask: (H, W) booleans.
    """
    buffer = io.BytesIO()
    # Runs are all there is to compress in a mask: it takes half the time of the default and less space.
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _encode(benchmark: Benchmark, found: Predictions, video: Video) -> _Encoded:
    """Read the predictions of one video and encode them."""
    predicted = found.read(video)
    encoded = _Encoded(extra=sum(extra_masks(predicted, video).values()) if predicted is not None else 0)
    size = benchmark.size(video)
    for expression in sorted(video.expressions, key=lambda expression: expression.id):
        if predicted is not None:
            check_asked(benchmark, predicted, expression)
        for frame in video.frames:
            parts = [safe_name(name, f"{benchmark.name}, video") for name in (video.name, expression.id, frame)]
            try:
                bits = fitting_bits(predicted, video.name, expression.id, frame, size, of="frame")
            except ProblemError as error:
                encoded.problems[error.problem] += 1
            else:
                encoded.pictures.append((TOPS[benchmark.name] + "/".join(parts) + ".png", encode_png(bits.to_mask())))
    return encoded


def _entry(name: str) -> zipfile.ZipInfo:
    """Name, date and rights of a file in the zip; none of them depends on when and where it is written."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    return entry


def _check(path: Path, masks: int) -> None:
    """Read the zip back.

    Raises:
        DataError: An entry is broken, or there are not as many as there should be.
    """
    with zipfile.ZipFile(path) as archive:
        broken, names = archive.testzip(), set(archive.namelist())
    if broken is not None or len(names) != masks:
        what = f"{broken} does not read back" if broken else f"it has {len(names)} pictures instead of {masks}"
        raise DataError(f"the submission is broken: {what}", "check the disk and write it again")


def _notes(benchmark: Benchmark) -> list[str]:
    wanted = VIDEOS.get((benchmark.name, benchmark.split))
    if wanted is None or benchmark.synthetic or wanted == len(benchmark.videos):
        return []
    note = (
        f"{benchmark.name} {benchmark.split}: the server scores {wanted} videos, {benchmark.root} lists"
        f" {len(benchmark.videos)}; wanted are those of meta_expressions/valid that are not in meta_expressions/test"
    )
    return [note]
