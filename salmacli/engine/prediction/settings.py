"""What the settings of prediction mean for a model, which of them change results, and what tells them apart on disk.

Imports no torch: commands that only look for predictions need it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salmacli.config.loading import validate
from salmacli.config.schema import AttentionInPrediction, ModelConfig, PredictConfig
from salmacli.errors import ConfigError

# They say how fast and in how much memory, not what comes out.
SPEED = ("attention", "compile", "frames_at_once", "expressions_at_once", "cached_frames", "readers")
RECENT = 6  # frames that every released SAM 2 was trained to remember


def resolved(settings: PredictConfig, model: ModelConfig | Mapping[str, Any]) -> PredictConfig:
    """The settings for one model: what is null becomes the mode's or the model's own.

    Args:
        settings: As the user gave them.
        model: The model's config, or the same as plain data.

    Returns:
        Settings whose `mode`, `key_frames` and `choice` are never None, and with a window `overlap` neither;
        `memories` and `conditioning` are None where they limit nothing.

    Raises:
        ConfigError: They contradict each other once the mode is known, or ask for what the model has not.
    """
    if settings.cma != AttentionInPrediction() and not _has_cma(model):
        raise ConfigError("cma.frames and cma.temporal_prior: the model has no cross-modal attention", "leave them out")
    if settings.overlap is not None and settings.window is None:
        raise ConfigError(f"overlap = {settings.overlap}: overlap needs a window", "set window, or leave it out")
    if settings.memories is not None and settings.memories > RECENT:
        raise ConfigError(f"memories = {settings.memories}: SAM 2 was trained with {RECENT}", f"set at most {RECENT}")
    mode = settings.mode or _of(model, "inference_mode")
    key_frames = settings.key_frames or _of(model, "clip_frames")
    remembers = mode != "frames"
    own = {
        "mode": mode,
        "key_frames": key_frames,
        "memories": settings.memories if remembers and settings.memories != RECENT else None,
        "conditioning": settings.conditioning if remembers and (settings.conditioning or 0) < key_frames else None,
        "choice": settings.choice or ("first" if mode == "sa2va" else "uniform"),
    }
    if settings.overlap is None and settings.window is not None:
        own["overlap"] = min(8, settings.window // 4)
    return validate({**settings.model_dump(), **own}, PredictConfig, "leave them to the mode, or give another --mode")


def changing(settings: PredictConfig) -> dict[str, Any]:
    """The resolved settings that change results, by their names in ``--set``."""
    without = set(SPEED)
    if settings.window is None:
        without.add("overlap")  # nothing overlaps where nothing is cut
    if settings.choice == "diverse":
        without.remove("cached_frames")  # they are what it chooses from
    return {name: value for name, value in _flat(settings.model_dump(mode="json")).items() if name not in without}


def speed(settings: PredictConfig) -> dict[str, Any]:
    """The other ones."""
    return settings.model_dump(mode="json", include=set(SPEED))


def changed(settings: PredictConfig, model: ModelConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Those that change results and differ from their default, in the order of their names; the mode is not one."""
    # How much windows overlap follows from how long they are.
    usual = resolved(PredictConfig(mode=settings.mode, window=settings.window), model)
    defaults = {**_flat(usual.model_dump(mode="json")), "window": None}
    ours = changing(resolved(settings, model))
    return {name: value for name, value in sorted(ours.items()) if value != defaults[name]}


def label(settings: PredictConfig, model: ModelConfig | Mapping[str, Any]) -> str:
    """One path component: the mode and what differs from its defaults, e.g. ``consistent+fallback=prior+window=64``."""
    return "+".join([str(resolved(settings, model).mode), *told(changed(settings, model))])


def assignments(settings: PredictConfig) -> list[str]:
    """What the user has set, as `load_predict` reads it."""
    return told(_flat(settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)))


def told(settings: Mapping[str, Any]) -> list[str]:
    """``name=value`` of each setting, as ``--set`` takes it."""
    return [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items()]


def _of(model: ModelConfig | Mapping[str, Any], name: str) -> Any:
    if isinstance(model, ModelConfig):
        return getattr(model, name)
    return model.get(name, ModelConfig.model_fields[name].default)


def _has_cma(model: ModelConfig | Mapping[str, Any]) -> bool:
    if isinstance(model, ModelConfig):
        return model.cma.enabled
    return bool(model.get("cma", {}).get("enabled"))


def _flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return flat
