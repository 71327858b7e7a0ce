"""The cross-modal attention that some trainings added to Sa2VA v1 → SALMA's own.

The weights carry over one to one; what is computed with them does not. Theirs attends to the one vector at [SEG],
scales by a stored warm-up and normalises the residual; SALMA computes the corrected form (`salmacli.models.cma`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import first_few
from salmacli.config.schema import CmaConfig
from salmacli.errors import CheckpointError

# The module's parts lie in the grounding encoder, its scalars there, in the module or at the top, by version.
_OURS = re.compile(
    r"^(?:grounding_encoder\.cma\.(?P<part>(?:attn|ln|proj|token_gate)\..+)"
    r"|(?:grounding_encoder\.)?(?:cma\.)?(?P<single>gamma_attn|gamma|_gamma_scale|gamma_film|film_mlp\..+))$"
)
_NEEDED = (
    *(f"attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
    *(f"{part}.{name}" for part in ("ln", "proj", "token_gate") for name in ("weight", "bias")),
)
_DIFFERENCE = (
    "the cross-modal attention's weights are taken over, but SALMA computes its corrected form (keys are the words and "
    "[SEG], the residual is not normalised): its outputs differ from the training's, and want a short further training"
)
_UNSAID = (
    "the file does not say the number of heads nor top-k of its attention: "
    f"{CmaConfig().heads} and {CmaConfig().topk} are taken"
)


def split_extension(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The extension's tensors by their own names (``attn.in_proj_weight``, ``gamma_attn``, …), and all others.

    Raises:
        CheckpointError: one name is there twice, in different places.
    """
    extension: dict[str, LazyTensor] = {}
    others = {}
    for name, tensor in tensors.items():
        if found := _OURS.match(name):
            own = found["part"] or found["single"]
            if own in extension:
                raise CheckpointError(f"two tensors are the attention's {own}, one of them {name}", "drop one of them")
            extension[own] = tensor
        else:
            others[name] = tensor
    return extension, others


def extension_to_salma(
    extension: Mapping[str, LazyTensor], place: str
) -> tuple[dict[str, LazyTensor], dict[str, Any], list[str]]:
    """Map the extension.

    Args:
        extension: as `split_extension` gives it.
        place: the file, for messages.

    Returns:
        Tensors by SALMA's names, the config's ``cma`` section, and what the user should know.

    Raises:
        CheckpointError: parts are missing, unknown or of the wrong shape, the two gammas differ, or the feature-wise
            modulation (film) is at work, which SALMA has not.
    """
    given = dict(extension)
    notes = [_DIFFERENCE, _UNSAID]
    gamma = _gamma(given, place)
    notes += _film(given, place)
    if (scale := given.pop("_gamma_scale", None)) is not None and (value := scale.read().float().mean().item()) != 1:
        notes.append(f"the file was saved during the warm-up (scale {value:g}); SALMA does not store it and uses 1")
    if missing := [name for name in _NEEDED if name not in given]:
        raise CheckpointError(f"{place} lacks {first_few(missing)} of its cross-modal attention", "save it again")
    if strange := sorted(given.keys() - set(_NEEDED)):
        raise CheckpointError(
            f"{place} has {first_few(strange)} in its cross-modal attention, which SALMA does not know"
        )
    width = given["ln.weight"].shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.out_proj.weight": (width, width),
    }
    shapes |= {"attn.in_proj_bias": (3 * width,), "token_gate.weight": (1, width), "token_gate.bias": (1,)}
    for name, shape in shapes.items():
        if given[name].shape != shape:
            raise CheckpointError(f"{place}: {name} of the cross-modal attention is {given[name].shape}, not {shape}")
    found = {f"cma.norm.{p}": given[f"ln.{p}"] for p in ("weight", "bias")}
    found |= {f"cma.router.score.{p}": given[f"token_gate.{p}"] for p in ("weight", "bias")}
    for p in ("weight", "bias"):
        fused = given[f"attn.in_proj_{p}"]
        for third, name in enumerate(("query", "key", "value")):
            found[f"cma.{name}.{p}"] = _third(fused, third, width)
    found |= _one_projection(given, width, place)
    found["cma.gamma"] = gamma
    return found, {"enabled": True, "mba": "gate"}, notes


def _gamma(given: dict[str, LazyTensor], place: str) -> LazyTensor:
    """The scalar, once: a module that was given a second name stores it twice."""
    both = [given.pop(name) for name in ("gamma_attn", "gamma") if name in given]
    if not both:
        raise CheckpointError(f"{place} lacks gamma_attn, the strength of its cross-modal attention", "save it again")
    if any(one.read().numel() != 1 for one in both):
        raise CheckpointError(f"{place}: gamma_attn is {both[0].shape}, not one number")
    first, *others = (one.read().float().item() for one in both)
    if others and others[0] != first:
        raise CheckpointError(
            f"{place}: gamma_attn ({first:g}) and its alias gamma ({others[0]:g}) differ", "save the file again"
        )
    return both[0].then(lambda value: value.reshape(1), shape=(1,))


def _film(given: dict[str, LazyTensor], place: str) -> list[str]:
    names = sorted(name for name in given if name == "gamma_film" or name.startswith("film_mlp."))
    if not names:
        return []
    strength = given.get("gamma_film")
    if strength is None or bool((strength.read() != 0).any()):
        raise CheckpointError(
            f"{place} modulates features by the sentence ({first_few(names)}), which SALMA's attention does not",
            "convert a training without film",
        )
    for name in names:
        del given[name]
    return [f"left out {first_few(names)}: gamma_film is 0, so they did nothing"]


def _third(fused: LazyTensor, number: int, width: int) -> LazyTensor:
    rows = slice(number * width, (number + 1) * width)
    return fused.then(lambda tensor: tensor[rows], shape=(width, *fused.shape[1:]))


def _one_projection(given: Mapping[str, LazyTensor], width: int, place: str) -> dict[str, LazyTensor]:
    """Two linear maps after each other, the attention's own and `proj`, are one."""
    inner, inner_bias = given["attn.out_proj.weight"], given["attn.out_proj.bias"]
    outer, outer_bias = given["proj.weight"], given["proj.bias"]
    if outer.shape[:2] != (width, width) or any(side != 1 for side in outer.shape[2:]) or outer_bias.shape != (width,):
        raise CheckpointError(f"{place}: proj of the cross-modal attention is {outer.shape}, not {(width, width)}")

    def square() -> Tensor:
        return outer.read().reshape(width, width).double()

    def weight() -> Tensor:
        return (square() @ inner.read().double()).to(inner.dtype)

    def bias() -> Tensor:
        return (square() @ inner_bias.read().double() + outer_bias.read().double()).to(inner.dtype)

    return {
        "cma.out.weight": LazyTensor((width, width), inner.dtype, weight, inner.origin),
        "cma.out.bias": LazyTensor((width,), inner.dtype, bias, inner_bias.origin),
    }
