"""What `salma train` needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from huggingface_hub import constants

from salmacli.checkpoints.empty import empty_model
from salmacli.checkpoints.pretrained import SalmaModel
from salmacli.checkpoints.sources.opening import is_local, locate
from salmacli.config.schema import DatasetConfig, RunConfig
from salmacli.data.benchmarks import DEFAULT_SPLITS, MARKER
from salmacli.data.training.clips import BadClip
from salmacli.data.training.mix import TrainingMix
from salmacli.engine.doctor.checks import Check, Report, State, devices, examined, fault, made, memory, size, versions
from salmacli.engine.doctor.machine import Devices, free_disk
from salmacli.engine.estimate import Load, training_memory
from salmacli.engine.progress import Silent
from salmacli.engine.run_folder import RUNS
from salmacli.engine.sources import describe, open_mix, open_source, synthetic_root
from salmacli.engine.training.devices import check_devices, check_packages, precision_of
from salmacli.engine.training.optimizer import parts_table
from salmacli.errors import ConfigError
from salmacli.models.mllm import chat_of
from salmacli.models.salma import Salma
from salmacli.models.tokenizer import build_tokenizer
from salmacli.models.trained import prepare_training

_SMALLER = "train.gradient_checkpointing=true, a smaller train.batch_size with more train.accumulate, sharding"
_QUANT = 'pip install "salma[quant]"'
_REAL = "name data.root, or the set's own root"
_LONGER = "; dialogues of data.max_tokens, and captions of many phrases, take more"
_TRIED = 3  # samples of each set


def examine_training(config: RunConfig, processes: int) -> Report:
    """Everything that `salma train` with these settings needs.

    Args:
        config: the whole run.
        processes: that it is to have, one per device.
    """
    here, bf16 = Devices.here(), precision_of(config.train.precision) == "bf16"
    checks = [versions(), devices(here, processes, config.train.precision), *_packages(config)]
    if config.train.sharding != "none":
        checks.append(examined("sharding", lambda: _sharding(config, processes)))
    sets = [made(f"data: {one.set}", partial(_set, config, one)) for one in config.data.train]
    mixes = [mix for _, mix in sets if mix is not None]
    checks += [check for check, _ in sets]
    if config.train.validation.every is not None:
        checks.append(examined("validation", lambda: _validation(config)))
    bases = list(_bases(config))
    checks += bases
    if any(check.state == "fault" for check in bases):
        return Report(tuple(checks))
    texts = sorted({text for mix in mixes for text in mix.texts()} if config.model.mllm.base is None else ())
    check, model = made("model", lambda: _model(config, texts, bf16))
    checks.append(check)
    if model is None:
        return Report(tuple(checks))
    load = Load.usual(config, model)
    need = training_memory(model, config, load, bf16=bf16, devices=processes, cpu=here.cpu)
    # Processes on CPUs share the memory of the machine.
    fits = memory(need.peak * (processes if here.cpu else 1), here, _SMALLER)
    checks.append(replace(fits, found=f"usual samples: {fits.found}{_LONGER if _long(config) else ''}"))
    checks += [_disk(model, config), _epochs(config, mixes, processes)]
    return Report(tuple(checks), tuple(parts_table(model, config)), need)


def _set(config: RunConfig, one: DatasetConfig) -> tuple[Check, TrainingMix | None]:
    state: State
    name, alone = f"data: {one.set}", config.data.model_copy(update={"train": (one,), "group_lengths": False})
    synthetic = one.root is None and config.data.root is None
    # A pretrained model is not meant for it.
    state, mend = ("warning", _REAL) if synthetic and config.model.mllm.base is not None else ("ok", "")
    if synthetic and one.set in DEFAULT_SPLITS and not (synthetic_root() / MARKER).is_file():
        return Check(name, state, f"the synthetic benchmark, which will be made in {synthetic_root()}", mend), None
    mix = open_mix(alone, config.model, config.seed, Silent())
    describe(mix.sources)  # as training does before it begins
    visits = sorted({0, len(mix) // 2, len(mix) - 1})[:_TRIED]
    bad = [clip for visit in visits if isinstance(clip := mix[0, visit], BadClip)]
    found = f"{mix.sets()[0].root}, split {one.split}: {len(mix):,} samples an epoch"
    if bad:
        told = f"{found}; {len(bad)} of {len(visits)} tried cannot be read: {bad[0].name}: {bad[0].reason}"
        every, look = len(bad) == len(visits), f"salma data verify {one.set}"
        return Check(name, "fault", told, look, 4) if every else Check(name, "warning", told, look), mix
    return Check(name, state, found + (", synthetic" if synthetic else ""), mend), mix


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
            yield examined(f"base: {section}", partial(_base, base, section))


def _base(base: str, section: str) -> Check:
    if not is_local(base) and not constants.HF_HUB_OFFLINE and base.count("/") == 1:
        mend = f"fetch it now: hf download {base}"
        return Check(f"base: {section}", "warning", f"{base} is not here and will be fetched from the hub", mend)
    return Check(f"base: {section}", "ok", f"{base}: {locate(base)}")


def _model(config: RunConfig, texts: Sequence[str], bf16: bool) -> tuple[Check, Salma | None]:
    """Make the model of shapes alone, and freeze what the recipe freezes."""
    name, bases = "model", [base for base in (config.model.mllm.base, config.model.sam2.base) if base is not None]
    if all(is_local(base) for base in bases):
        model: Salma = SalmaModel.outline(config.model, texts)
    elif config.model.mllm.native:
        mllm = config.model.mllm
        model = empty_model(config.model, build_tokenizer(texts, mllm.vocabulary, chat_of(mllm)))
    else:
        unknown = "its size is not known before its base is here"
        return Check(name, "warning", unknown, f"hf download {bases[0]}"), None
    # Quantised layers cannot be made without weights; their package is checked by itself.
    plain = config.model_copy(update={"train": config.train.model_copy(update={"quantize": None})})
    prepare_training(model, plain, bf16=bf16)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = f"{total:,} parameters, {trained:,} of them train (recipe {config.train.recipe})"
    return Check(name, "ok", found), model


def _packages(config: RunConfig) -> Iterator[Check]:
    """Optional packages that settings ask for."""
    yield examined("packages", lambda: _trackers(config))
    if config.train.quantize is not None and find_spec("bitsandbytes") is None:
        error = ConfigError(f"train.quantize = {config.train.quantize}, but bitsandbytes is not installed", _QUANT)
        yield fault("packages", error)


def _trackers(config: RunConfig) -> Check:
    check_packages(config.train)
    return Check("packages", "ok", "all that the settings ask for are installed")


def _long(config: RunConfig) -> bool:
    """Whether some set has samples whose length, or number of masks, the settings do not tell."""
    return any(one.set.startswith(("llava", "chatunivi", "osprey", "gcg-")) for one in config.data.train)


def _sharding(config: RunConfig, processes: int) -> Check:
    check_devices(config.train, processes)
    return Check("sharding", "ok", f"{config.train.sharding} between {processes} devices")


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
