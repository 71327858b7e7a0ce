"""What `salma predict` and `salma eval` need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from salmacli.checkpoints.combine import fitted
from salmacli.checkpoints.load import build_model, read_contents
from salmacli.config.schema import PredictConfig
from salmacli.data.benchmarks import MARKER
from salmacli.data.frames import FrameSource, read_frame
from salmacli.engine.doctor.checks import Check, Report, devices, examined, fault, made, memory, versions
from salmacli.engine.doctor.machine import Devices
from salmacli.engine.estimate import prediction_memory
from salmacli.engine.prediction.settings import resolved
from salmacli.engine.progress import Silent
from salmacli.engine.sources import open_source, synthetic_root
from salmacli.errors import ConfigError, SalmaError
from salmacli.models.salma import Salma

_SMALLER = "smaller frames_at_once and expressions_at_once, or --precision bf16"
_FLASH = "pip install flash-attn, or leave attention out"


def examine_prediction(checkpoint: Path, settings: PredictConfig, looks: Sequence[Check]) -> Report:
    """Everything that prediction with a checkpoint needs.

    Args:
        checkpoint: a folder, a file or a hub id.
        settings: as the user gave them.
        looks: what is known already of the frames or the benchmark.
    """
    here = Devices.here()
    checks = [versions(), devices(here, 1, settings.precision), *looks]
    if settings.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        checks.append(fault("packages", ConfigError("attention = flash_attention_2: it is not installed", _FLASH)))
    check, model = made("checkpoint", lambda: _checkpoint(checkpoint))
    checks.append(check)
    if model is None:
        return Report(tuple(checks))
    try:
        how = resolved(settings, model.config)
    except SalmaError as error:
        return Report((*checks, fault("settings", error)))
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and here.bf16)
    need = prediction_memory(model, how, bf16=bf16)
    return Report((*checks, memory(need.peak, here, _SMALLER)), memory=need)


def examine_frames(opened: Callable[[], FrameSource]) -> Check:
    """Whether frames can be read."""

    def look() -> Check:
        source = opened()
        height, width = source.size
        return Check("frames", "ok", f"{len(source)} of {width} × {height} pixels")

    return examined("frames", look)


def examine_benchmark(name: str, root: Path | None, split: str | None) -> Check:
    """Whether a benchmark is there, and the first and last frames of it; arguments as of `open_source`."""
    return examined("data", lambda: _benchmark(name, root, split))


def _benchmark(name: str, root: Path | None, split: str | None) -> Check:
    if root is None and not (synthetic_root() / MARKER).is_file():
        return Check("data", "ok", f"the synthetic benchmark, which will be made in {synthetic_root()}")
    benchmark = open_source(name, root, split, Silent())
    for video in (benchmark.videos[0], benchmark.videos[-1]):
        for frame in (video.frames[0], video.frames[-1]):
            read_frame(benchmark.frame_path(video, frame))
    expressions = sum(len(video.expressions) for video in benchmark.videos)
    truth = "" if benchmark.public else "; its truth is not public: salma eval writes a submission"
    found = f"{benchmark.root}, split {benchmark.split}: {len(benchmark.videos):,} videos, {expressions:,} expressions"
    return Check("data", "ok", found + truth)


def _checkpoint(path: Path) -> tuple[Check, Salma]:
    """Its model, of shapes alone; every tensor has its place."""
    place, layout, contents = read_contents(path)
    model: Salma = build_model(contents, place)
    fitted(contents.tensors, model, str(place))
    total = sum(parameter.numel() for parameter in model.parameters())
    found = f"{place}: {layout.value}, step {contents.step}, {total:,} parameters"
    return Check("checkpoint", "ok", found), model
