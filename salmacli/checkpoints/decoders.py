"""Two mask decoders of one model: one is trained with language, SAM 2's original propagates in mode consistent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.layouts import Layout
from salmacli.checkpoints.sources.key_maps import GROUNDING
from salmacli.checkpoints.sources.parts import Parts
from salmacli.checkpoints.training.comparison import difference, module_of
from salmacli.errors import CheckpointError

TRAINED, ORIGINAL = GROUNDING + "sam_mask_decoder.", GROUNDING + "propagation_decoder."
# What a cast may take from a weight: half of bfloat16's last bit, or half of float16's smallest number.
_RELATIVE, _ABSOLUTE = 2.0**-8, 2.0**-25


def with_originals(parts: Sequence[Parts]) -> tuple[Parts, ...]:
    """Let every SAM 2 bring its mask decoder a second time, as the one that propagates.

    Of a SAM 2 that is named beside a whole model, this is all: the rest is in the model already, and must be the same.

    Args:
        parts: of one model, as they were opened.

    Raises:
        CheckpointError: the model was made of another SAM 2.
    """
    whole = next((part for part in parts if part.layout is not Layout.SAM2 and _has_sam2(part)), None)
    return tuple(_with_original(part, whole) if part.layout is Layout.SAM2 else part for part in parts)


def settle_decoders(
    sections: dict[str, Any], tensors: dict[str, LazyTensor], two: bool | None, stated: bool
) -> list[str]:
    """Keep SAM 2's original decoder or drop it, and say so in the model's config.

    Args:
        sections: of the model's config; ``sam2`` and ``inference_mode`` are set here.
        tensors: of the model; the original decoder's are dropped here where one is enough.
        two: whether there are to be two; None: as the base says, else where they differ.
        stated: whether the caller has named an ``inference_mode`` that stands.

    Returns:
        What the user should know.
    """
    second = {name: tensor for name, tensor in tensors.items() if name.startswith(ORIGINAL)}
    of_base = bool(sections["sam2"].get("two_decoders"))
    notes: list[str] = []
    if two is None and second and not of_base:
        two, notes = _compare({TRAINED + name.removeprefix(ORIGINAL): one for name, one in second.items()}, tensors)
    two = of_base if two is None else two
    sections["sam2"] = {**sections["sam2"], "two_decoders": two}
    if not two:
        for name in second:
            del tensors[name]
    elif not stated and sections.get("inference_mode", "consistent") != "consistent":
        notes.append(f"with it the model's own mode becomes consistent instead of {sections['inference_mode']}")
        sections["inference_mode"] = "consistent"
    return notes


def without_original(contents: Contents) -> tuple[Contents, tuple[str, ...]]:
    """A checkpoint with the trained decoder alone, for a layout that has place for one, and what is to be said."""
    if not contents.model["sam2"].get("two_decoders"):
        return contents, ()
    tensors = {name: tensor for name, tensor in contents.tensors.items() if not name.startswith(ORIGINAL)}
    mode = contents.model.get("inference_mode", "consistent")
    model = {
        **contents.model,
        "sam2": {**contents.model["sam2"], "two_decoders": False},
        "inference_mode": "sa2va" if mode == "consistent" else mode,
    }
    note = "the decoder that propagates is left out: the released Sa2VA layout has place for one, and its mode is sa2va"
    return replace(contents, tensors=tensors, model=model), (note,)


def _has_sam2(part: Parts) -> bool:
    return any(name.startswith(GROUNDING) for name in part.tensors)


def _with_original(sam2: Parts, whole: Parts | None) -> Parts:
    second = {
        ORIGINAL + name.removeprefix(TRAINED): tensor
        for name, tensor in sam2.tensors.items()
        if name.startswith(TRAINED)
    }
    if whole is None:
        return replace(sam2, tensors={**sam2.tensors, **second})
    _check_frozen(sam2, whole)
    note = f"all but its mask decoder is in {whole.name} already, rounding aside"
    return replace(sam2, tensors=second, model={}, notes=(*sam2.notes, note))


def _check_frozen(sam2: Parts, whole: Parts) -> None:
    """A training moves the mask decoder alone, so all else of the model's SAM 2 must be the original's."""
    ours, theirs = (
        {n: one for n, one in part.tensors.items() if n.startswith(GROUNDING) and not n.startswith(ORIGINAL)}
        for part in (whole, sam2)
    )

    def same(name: str) -> bool:
        old, new = theirs[name], ours[name]
        return old.shape == new.shape if name.startswith(TRAINED) else _same(old, new)

    differing = (ours.keys() ^ theirs.keys()) | {name for name in ours.keys() & theirs.keys() if not same(name)}
    if differing:
        raise CheckpointError(
            f"{sam2.name} is not the SAM 2 of {whole.name}: {len(differing)} tensors that no training "
            f"of the mask decoder moves differ, in {', '.join(sorted({module_of(name) for name in differing}))}",
            "name the SAM 2 that the model was trained on, such as facebook/sam2-hiera-large",
        )


def _compare(originals: Mapping[str, LazyTensor], tensors: Mapping[str, LazyTensor]) -> tuple[bool, list[str]]:
    """Whether a model's decoder differs from SAM 2's, and how far."""
    pairs = [(one, tensors[name]) for name, one in originals.items()]
    if all(old is new for old, new in pairs):
        return False, []  # the SAM 2 that the model is made of
    if all(_same(old, new) for old, new in pairs):
        return False, ["the model's mask decoder is still SAM 2's own, so it is kept once"]
    found = [difference(old.read(), new.read()) for old, new in pairs]
    sizes = [one.relative for one in found if one.changed]
    apart = f"‖Δ‖/‖original‖ {median(sizes):.1%} in the median, {max(sizes):.1%} at most"
    note = f"the trained mask decoder differs from SAM 2's own in {len(sizes)} of {len(pairs)} tensors ({apart})"
    return True, [f"{note}; both are kept, and SAM 2's own propagates"]


def _same(old: LazyTensor, new: LazyTensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    return old is new or (old.shape == new.shape and _close(old.read(), new.read()))


def _close(old: Tensor, new: Tensor) -> bool:
    return torch.allclose(new.float(), old.float(), rtol=_RELATIVE, atol=_ABSOLUTE)
