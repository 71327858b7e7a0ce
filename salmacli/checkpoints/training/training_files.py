"""Sa2VA's training files: they hold only what was trained, by the names that its wrappers gave.

What a name means is said once, here: wrappers are taken off, LoRA's halves are paired, and everything goes through the
same explicit map as a released Sa2VA (`key_maps`). What is left over is an error with its names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import first_few
from salmacli.checkpoints.layouts import refuse_wrapped
from salmacli.checkpoints.sources.fused import Heads
from salmacli.checkpoints.sources.key_maps import EMBEDDING, HEAD, VOCABULARY, sa2va_to_salma
from salmacli.checkpoints.sources.sa2va import PREDICTION
from salmacli.checkpoints.training.cma_extension import extension_to_salma, split_extension
from salmacli.checkpoints.training.comparison import Difference, difference, module_of
from salmacli.checkpoints.training.lora import LoraSettings, Pair, merge, rank_of, split_pairs
from salmacli.errors import CheckpointError

# What a training adds to an MLLM and a SAM 2 that know nothing of each other.
NEW = ("text_hidden_fcs.", "cma.")
# Parts that are trained whole or not at all.
_WHOLE = ("grounding.sam_mask_decoder.", "mllm.model.model.multi_modal_projector.", *NEW)
_VISION = ("mllm.model.model.vision_tower.", "mllm.model.model.visual.")
_LAYER = re.compile(r"\.(layers?|blocks)\.\d+\.")

_PEFT = re.compile(r"^(language_model|vision_model)\.base_model\.model\.")
_TRAINED_COPY = re.compile(r"\.modules_to_save\.\w+\.")
_FROZEN_COPY = re.compile(r"\.(original_module|base_layer)\.")
_SCALE = re.compile(r"(\.memory_encoder\.fuser\.layers\.\d+)\.gamma$")
# A training moves weights, yet they still point where they did (medians of 0.93 and more per module were seen); those
# of another model point anywhere, with cosines of about 0.
_RELATED = 0.3
_SAME = 0.99  # for copies that were never trained, rounding aside


@dataclass(frozen=True)
class Training:
    """What a training file says, in SALMA's names.

    Attributes:
        tensors: stored whole; they take the place of the base's.
        pairs: LoRA, by the weight that it is added to.
        frozen: untrained copies that were saved beside trained ones: what the true base has.
        model: sections of the model's config that follow from it.
        notes: what the user should know.
    """

    tensors: Mapping[str, LazyTensor]
    pairs: Mapping[str, Pair]
    frozen: Mapping[str, LazyTensor]
    model: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """Everything it claims to have trained."""
        return {*self.tensors, *self.pairs}


def read_training(tensors: Mapping[str, LazyTensor], native: Mapping[str, Any], place: str) -> Training:
    """Map every name of a training file.

    Args:
        tensors: by the file's own names.
        native: ``mllm.native`` of the base's model config.
        place: the file, for messages.

    Raises:
        CheckpointError: a name has no meaning or two have the same, or LoRA's halves do not fit.
    """
    refuse_wrapped(tensors, place)
    extension, others = split_extension(tensors)
    trained, frozen = _unwrapped(others, place)
    pairs, whole = split_pairs(trained, place)
    found, merged, copies = (_in_salma(part, native, place) for part in (whole, _weights(pairs), frozen))
    model: dict[str, Any] = dict(PREDICTION)
    notes: list[str] = []
    if extension:
        attention, model["cma"], notes = extension_to_salma(extension, place)
        found |= attention
    if not found and not merged:
        raise CheckpointError(f"{place} holds no weights", "name a file that a training wrote")
    down = {tensor.origin: pairs[module].down for module, tensor in _ups(pairs).items()}
    by_weight = {name: Pair(down[up.origin], up) for name, up in merged.items()}
    return Training(found, by_weight, copies, model, tuple(notes))


def merge_training(
    training: Training, base: Mapping[str, LazyTensor], settings: LoraSettings | None, place: str
) -> dict[str, LazyTensor]:
    """What the training changed, in SALMA's names, with LoRA merged into the base's weights.

    Raises:
        CheckpointError: the base lacks something, has other shapes, something that belongs to what was trained is
            missing, or LoRA has another rank or, in the vision tower, another α than stated.
    """
    wanted = {name: tensor.shape for name, tensor in training.tensors.items()}
    wanted |= {name: pair.shape for name, pair in training.pairs.items()}
    unknown = sorted(name for name in wanted if name not in base and name != HEAD and not name.startswith(NEW))
    if unknown:
        raise CheckpointError(f"{place} trained {first_few(unknown)} that the base does not have", _WRONG_BASE)
    misfits = [
        f"{name} {shape}, in the base {base[name].shape}"
        for name, shape in wanted.items()
        if name in base and not _fits(name, shape, base[name].shape)
    ]
    if misfits:
        raise CheckpointError(f"{place} has {first_few(misfits)} of other shapes than its base", _WRONG_BASE)
    if missing := _gaps(training, base):
        raise CheckpointError(
            f"{place} lacks {first_few(missing)}, though it trained others of the same part", "save it again, whole"
        )
    merged = dict(training.tensors)
    if training.pairs:
        rank = rank_of(training.pairs, settings, place)
        assert settings is not None  # the caller asks for α before it comes here
        _check_vision(training.pairs, settings, rank, place)
        for name, pair in training.pairs.items():
            weight = merged[name] if name in merged else _of_base(name, base)
            if weight is None or weight.shape != pair.shape:
                has = "is nowhere" if weight is None else f"is {weight.shape}"
                raise CheckpointError(
                    f"{place} has LoRA {pair.shape} for {name}, which {has} in the file and its base", _WRONG_BASE
                )
            merged[name] = merge(weight, pair, settings.scale(rank))
    return merged


def check_base(
    training: Training, base: Mapping[str, LazyTensor], differences: Mapping[str, Difference], place: str
) -> None:
    """Refuse a base of the right shapes that the training did not start from.

    Args:
        training: what the file says.
        base: the base's tensors.
        differences: between the base's tensors and what was trained, by name.
        place: the file, for messages.

    Raises:
        CheckpointError: the weights of some module point elsewhere, an untrained copy in the file is not the base's, or
            there are numbers that cannot be compared.
    """
    for name, copy in training.frozen.items():
        if not _is_copy(name, copy, _of_base(name, base)):
            raise CheckpointError(f"{place} keeps an untrained copy of {name} that is not the base's", _WRONG_BASE)
    if infinite := [name for name in training.names & differences.keys() if math.isnan(differences[name].cosine)]:
        raise CheckpointError(
            f"{place}: {first_few(infinite)} cannot be compared with the base's, for some numbers are not finite",
            "name a file from before the training diverged",
        )
    cosines: dict[str, list[float]] = {}
    for name, tensor in training.tensors.items():
        if name in base and len(tensor.shape) >= 2:  # scales and biases are alike in all models
            cosines.setdefault(module_of(name), []).append(differences[name].cosine)
    for module, values in cosines.items():
        if not median(values) >= _RELATED:
            raise CheckpointError(
                f"{place}: its {module} has nothing in common with the base's (median cosine {median(values):.2f})",
                _WRONG_BASE,
            )


_WRONG_BASE = "it was trained from another base: name that one with --base"


def _of_base(name: str, base: Mapping[str, LazyTensor]) -> LazyTensor | None:
    """A weight of the base, whose head may be its embedding."""
    return base.get(EMBEDDING if name == HEAD and HEAD not in base else name)


def _fits(name: str, shape: tuple[int, ...], old: tuple[int, ...]) -> bool:
    return shape == old or (name in VOCABULARY and shape[1:] == old[1:])


def _is_copy(name: str, copy: LazyTensor, old: LazyTensor | None) -> bool:
    if old is None or not _fits(name, copy.shape, old.shape):
        return False
    found = difference(old.read(), copy.read())
    return not found.changed or found.cosine >= _SAME  # NaN is no copy; zeros have no cosine, but may be equal


def _gaps(training: Training, base: Iterable[str]) -> list[str]:
    """What the base has of a part that the file brings in part only."""
    wholes = tuple(part for part in _WHOLE if any(name.startswith(part) for name in training.tensors))
    targets = {_in_any_layer(name) for name in training.pairs if _LAYER.search(name)}
    told = training.names | training.frozen.keys()
    missing = [name for name in base if name.startswith(wholes) and name not in told]
    return missing + [name for name in base if _in_any_layer(name) in targets and name not in training.names]


def _in_any_layer(name: str) -> str:
    return _LAYER.sub(r".\1.*.", name)


def _check_vision(pairs: Mapping[str, Pair], settings: LoraSettings, rank: int, place: str) -> None:
    """One α is merged; a vision tower with LoRA at another would get the wrong one."""
    own, adapted = settings.vision, [name for name in pairs if name.startswith(_VISION)]
    if own is None or not adapted:
        return
    if own.rank not in (None, rank) or own.scale(rank) != settings.scale(rank):
        raise CheckpointError(
            f"{place} has LoRA on {first_few(adapted)}, for which its configuration states α {own}, "
            f"and {replace(settings, vision=None)} for the language model",
            "merge the vision tower's where it was trained: one α is merged here",
        )


def _unwrapped(tensors: Mapping[str, LazyTensor], place: str) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Names of a released Sa2VA: what was trained, and untrained copies."""
    trained: dict[str, LazyTensor] = {}
    frozen: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        own = _PEFT.sub(r"\1.", name.removeprefix("mllm.model."))
        own = _SCALE.sub(r"\1.g_weight", _TRAINED_COPY.sub(".", own))
        into = frozen if _FROZEN_COPY.search(own) else trained
        own = _FROZEN_COPY.sub(".", own)
        if own in into:
            raise CheckpointError(f"{place}: two tensors are {own}, one of them {name}", "drop one of them")
        into[own] = tensor
    return trained, frozen


def _ups(pairs: Mapping[str, Pair]) -> dict[str, LazyTensor]:
    """B of every pair, with its module as origin: maps may split it, and A belongs to all that it becomes."""
    return {module: LazyTensor(p.up.shape, p.up.dtype, p.up.read, module) for module, p in pairs.items()}


def _weights(pairs: Mapping[str, Pair]) -> dict[str, LazyTensor]:
    return {f"{module}.weight": up for module, up in _ups(pairs).items()}


def _in_salma(tensors: Mapping[str, LazyTensor], native: Mapping[str, Any], place: str) -> dict[str, LazyTensor]:
    try:
        return sa2va_to_salma(tensors, Heads.of(native))
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
