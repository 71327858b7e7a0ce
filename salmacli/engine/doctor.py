"""What would stop a training, a prediction or an evaluation later on, told in seconds and before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from salmacli.checkpoints.combine import fitted
from salmacli.checkpoints.empty import empty_model
from salmacli.checkpoints.load import build_model, read_contents
from salmacli.checkpoints.pretrained import SalmaModel
from salmacli.checkpoints.sources.opening import is_local, locate
from salmacli.config.schema import DatasetConfig, PredictConfig, RunConfig
from salmacli.data.benchmarks import DEFAULT_SPLITS, MARKER
from salmacli.data.frames import FrameSource, read_frame
from salmacli.data.training.clips import BadClip
from salmacli.data.training.mix import TrainingMix
from salmacli.engine.estimate import Load, Memory, prediction_memory, training_memory
from salmacli.engine.machine import Devices, free_disk, wrong_versions
from salmacli.engine.optimizer import PartRow, parts_table
from salmacli.engine.prediction.settings import resolved
from salmacli.engine.progress import Silent
from salmacli.engine.run_folder import RUNS
from salmacli.engine.sources import open_mix, open_source, synthetic_root
from salmacli.engine.training.devices import check_packages, precision_of
from salmacli.errors import ConfigError, SalmaError
from salmacli.models.mllm import chat_of
from salmacli.models.salma import Salma
from salmacli.models.tokenizer import build_tokenizer
from salmacli.models.trained import prepare_training

GIB = 2**30
OVERHEAD = GIB  # of a process beside its tensors: libraries, CUDA's context, what an allocator holds back
_NARROW = 0.9  # share of the memory above which it may run out all the same
_TRIED = 3  # samples of each set


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: whether it is as it must be.
        found: what was found.
        mend: what to do about it; empty where nothing is to be done.
        exit_code: of a fault: 3 for settings, 4 for data and checkpoints, else 1.
    """

    name: str
    state: Literal["ok", "warning", "fault"]
    found: str
    mend: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Report:
    """All of them.

    Attributes:
        checks: in the order in which they were made.
        parts: of a model to train, and what trains; empty where no model could be made.
        memory: what it takes at most; None where that is not known.
    """

    checks: tuple[Check, ...]
    parts: tuple[PartRow, ...] = ()
    memory: Memory | None = None

    @property
    def exit_code(self) -> int:
        """0 without a fault, else that of the first one."""
        return next((check.exit_code for check in self.checks if check.state == "fault"), 0)


def fault(name: str, error: SalmaError) -> Check:
    """What an error says."""
    found, _, mend = str(error).rpartition("; ")
    return Check(name, "fault", found or mend, mend if found else "", error.exit_code)


def examined(name: str, look: Callable[[], Check]) -> Check:
    """What a look says, be it by an error."""
    try:
        return look()
    except SalmaError as error:
        return fault(name, error)


# Training.


def examine_training(config: RunConfig, devices: int) -> Report:
    """Everything that `salma train` with these settings needs.

    Args:
        config: the whole run.
        devices: processes that it is to have, one per device.
    """
    here = Devices.here()
    checks = [_versions(), _devices(here, devices, config.train.precision), *_packages(config)]
    mixes, sets = _sets(config)
    checks += sets
    if config.train.validation.every is not None:
        checks.append(examined("validation", lambda: _validation(config)))
    bases = list(_bases(config))
    checks += bases
    model: list[Salma] = []
    bf16 = precision_of(config.train.precision) == "bf16"
    if not any(check.state == "fault" for check in bases):
        texts = sorted({text for mix in mixes for text in mix.texts()} if config.model.mllm.base is None else ())
        checks.append(examined("model", lambda: _model(model, config, texts, bf16)))
    if not model:
        return Report(tuple(checks))
    memory = training_memory(model[0], config, Load.most(config, model[0]), bf16=bf16, devices=devices, cpu=here.cpu)
    # On one machine, processes on CPUs share its memory.
    checks.append(_memory(memory.peak * (devices if here.cpu else 1), here, _SMALLER_TRAINING))
    checks += [_disk(model[0], config), _epochs(config, mixes, devices)]
    return Report(tuple(checks), tuple(parts_table(model[0], config)), memory)


_SMALLER_TRAINING = "train.gradient_checkpointing=true, a smaller train.batch_size with more train.accumulate, sharding"
_SMALLER_PREDICTION = "smaller frames_at_once and expressions_at_once, or --precision bf16"


def _sets(config: RunConfig) -> tuple[list[TrainingMix], list[Check]]:
    """Each member of the mix by itself, so that all faults are told."""
    mixes: list[TrainingMix] = []
    return mixes, [examined(f"data: {one.set}", lambda one=one: _set(mixes, config, one)) for one in config.data.train]


def _set(mixes: list[TrainingMix], config: RunConfig, one: DatasetConfig) -> Check:
    name, alone = f"data: {one.set}", config.data.model_copy(update={"train": (one,), "group_lengths": False})
    synthetic = one.root is None and config.data.root is None
    if synthetic and one.set in DEFAULT_SPLITS and not (synthetic_root() / MARKER).is_file():
        return Check(name, "ok", f"the synthetic benchmark, which will be made in {synthetic_root()}")
    mix = open_mix(alone, config.model, config.seed, Silent())
    mixes.append(mix)
    visits = sorted({0, len(mix) // 2, len(mix) - 1})[:_TRIED]
    bad = [clip for visit in visits if isinstance(clip := mix[0, visit], BadClip)]
    found = f"{mix.sets()[0].root}, split {one.split}: {len(mix):,} samples an epoch"
    if bad:
        told = f"{found}; {len(bad)} of {len(visits)} tried cannot be read: {bad[0].name}: {bad[0].reason}"
        state: Literal["warning", "fault"] = "fault" if len(bad) == len(visits) else "warning"
        return Check(name, state, told, f"salma data verify {one.set}", 4 if state == "fault" else 0)
    if synthetic and config.model.mllm.base is not None:
        return Check(name, "warning", f"{found}, of the synthetic benchmark", "name data.root, or the set's own root")
    return Check(name, "ok", found)


def _validation(config: RunConfig) -> Check:
    look = config.train.validation
    if look.root is None and not (synthetic_root() / MARKER).is_file():
        return Check("validation", "ok", f"{look.set} of the synthetic benchmark, which will be made")
    benchmark = open_source(look.set, look.root, look.split, Silent())
    found = f"{benchmark.root}, split {benchmark.split}: {min(look.videos, len(benchmark.videos))} videos"
    if not benchmark.public:
        raise ConfigError(f"{found}, whose truth is not public", "name another train.validation.split")
    return Check("validation", "ok", found)


def _bases(config: RunConfig) -> Iterator[Check]:
    for section in ("mllm", "sam2"):
        base = getattr(config.model, section).base
        if base is not None:
            yield examined(f"base: {section}", lambda base=base, section=section: _base(base, section))


def _base(base: str, section: str) -> Check:
    from huggingface_hub import constants

    if not is_local(base) and not constants.HF_HUB_OFFLINE and base.count("/") == 1:
        mend = f"fetch it now: hf download {base}"
        return Check(f"base: {section}", "warning", f"{base} is not here and will be fetched from the hub", mend)
    return Check(f"base: {section}", "ok", f"{base}: {locate(base)}")


def _model(made: list[Salma], config: RunConfig, texts: Sequence[str], bf16: bool) -> Check:
    """Make the model of shapes alone, and freeze what the recipe freezes."""
    name, bases = "model", [base for base in (config.model.mllm.base, config.model.sam2.base) if base is not None]
    if all(is_local(base) for base in bases):
        model: Salma = SalmaModel.outline(config.model, texts)
    elif config.model.mllm.native:
        mllm = config.model.mllm
        model = empty_model(config.model, build_tokenizer(texts, mllm.vocabulary, chat_of(mllm)))
    else:
        return Check(name, "warning", "its size is not known before its base is here", f"hf download {bases[0]}")
    # Quantised layers cannot be made without weights; their package is checked by itself.
    plain = config.model_copy(update={"train": config.train.model_copy(update={"quantize": None})})
    prepare_training(model, plain, bf16=bf16)
    made.append(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Check(name, "ok", f"{total:,} parameters, {trained:,} of them train (recipe {config.train.recipe})")


def _packages(config: RunConfig) -> Iterator[Check]:
    """Optional packages that settings ask for."""
    yield examined("packages", lambda: _trackers(config))
    if config.train.quantize is not None and find_spec("bitsandbytes") is None:
        error = ConfigError(f"train.quantize = {config.train.quantize}, but bitsandbytes is not installed", _QUANT)
        yield fault("packages", error)


_QUANT = 'pip install "salma[quant]"'


def _trackers(config: RunConfig) -> Check:
    check_packages(config.train)
    return Check("packages", "ok", "all that the settings ask for are installed")


def _disk(model: Salma, config: RunConfig) -> Check:
    """Checkpoints that stay, the best one, and one that is being written."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # AdamW's two moments, what trains as it is, and averages.
    one = weights + numbers * (8 + 4 + 4 * (config.train.ema is not None))
    count = config.train.keep + 1 + (config.train.validation.every is not None)
    need, free = one * count, free_disk(RUNS)
    found = f"{count} checkpoints of {size(one)} at once: {size(need)}; {size(free)} are free in {RUNS.resolve()}"
    if need > free:
        return Check("disk", "fault", found, "make room, or keep fewer: train.keep", 1)
    return Check("disk", "ok", found)


def _epochs(config: RunConfig, mixes: Sequence[TrainingMix], devices: int) -> Check:
    train = config.train
    samples = train.batch_size * train.accumulate * devices
    found = f"{train.batch_size} × {train.accumulate} × {devices} devices: {samples} samples a step"
    total = sum(len(mix) for mix in mixes)
    if len(mixes) == len(config.data.train):
        found += f"; {train.steps:,} steps are {train.steps * samples / total:.1f} epochs of {total:,} samples"
    return Check("schedule", "ok", f"{found}; learning rate {train.learning_rate:g} at its peak")


# Prediction.


def examine_prediction(checkpoint: Path, settings: PredictConfig, looks: Sequence[Check]) -> Report:
    """Everything that prediction with a checkpoint needs.

    Args:
        checkpoint: a folder, a file or a hub id.
        settings: as the user gave them.
        looks: what is known already of the frames or the benchmark.
    """
    here = Devices.here()
    checks = [_versions(), _devices(here, 1, settings.precision), *looks]
    if settings.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        checks.append(fault("packages", ConfigError("attention = flash_attention_2: it is not installed", _FLASH)))
    made: list[Salma] = []
    checks.append(examined("checkpoint", lambda: _checkpoint(made, checkpoint)))
    if not made:
        return Report(tuple(checks))
    try:
        how = resolved(settings, made[0].config)
    except SalmaError as error:
        return Report((*checks, fault("settings", error)))
    memory = prediction_memory(made[0], how, bf16=settings.precision == "bf16" or here.bf16)
    checks.append(_memory(memory.peak, here, _SMALLER_PREDICTION))
    return Report(tuple(checks), memory=memory)


_FLASH = "pip install flash-attn, or leave attention out"


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
    for video in {
        benchmark.videos[0].name: benchmark.videos[0],
        benchmark.videos[-1].name: benchmark.videos[-1],
    }.values():
        for frame in (video.frames[0], video.frames[-1]):
            read_frame(benchmark.frame_path(video, frame))
    expressions = sum(len(video.expressions) for video in benchmark.videos)
    truth = "" if benchmark.public else "; its truth is not public: salma eval writes a submission"
    found = f"{benchmark.root}, split {benchmark.split}: {len(benchmark.videos):,} videos, {expressions:,} expressions"
    return Check("data", "ok", found + truth)


def _checkpoint(made: list[Salma], path: Path) -> Check:
    """Its model, of shapes alone; every tensor has its place."""
    place, layout, contents = read_contents(path)
    model = build_model(contents, place)
    made.append(model)
    fitted(contents.tensors, model, str(place))
    total = sum(parameter.numel() for parameter in model.parameters())
    return Check("checkpoint", "ok", f"{place}: {layout.value}, step {contents.step}, {total:,} parameters")


# Both.


def _versions() -> Check:
    try:
        wrong = wrong_versions()
    except metadata.PackageNotFoundError:
        return Check("versions", "warning", "SALMA is not installed, so its packages are not checked", "pip install .")
    if wrong:
        return Check("versions", "fault", "; ".join(wrong), "install SALMA again, in an environment of its own", 1)
    return Check("versions", "ok", "all packages are in the ranges that SALMA is tested with")


def _devices(here: Devices, wanted: int, precision: str) -> Check:
    found = f"{here.count} × {here.name}, {size(here.total)}" if not here.cpu else f"{here.name}, {size(here.total)}"
    if wanted > here.count and not here.cpu:
        return Check("devices", "fault", f"{found}; {wanted} are asked for", "give a smaller --num-gpus", 1)
    if precision == "bf16" and not here.bf16:
        return Check("devices", "warning", f"{found}: bfloat16 is slow on it", "leave the precision to auto")
    return Check("devices", "ok", f"{found}; bfloat16: {'yes' if here.bf16 else 'no'}")


def _memory(peak: int, here: Devices, smaller: str) -> Check:
    need = peak + OVERHEAD
    found = f"about {size(need)} at most; {size(here.free)} of {size(here.total)} are free"
    if need > here.total:
        return Check("memory", "fault", found, f"try {smaller}", 1)
    if need > _NARROW * here.free:
        return Check("memory", "warning", found, f"if it runs out: {smaller}")
    return Check("memory", "ok", found)


def size(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
