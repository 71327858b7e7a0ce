"""A file, and what it alone does not say → one whole model, and what it is to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from salmacli.checkpoints.adapters import contents_of_adapter
from salmacli.checkpoints.combine import combine, fitted, provenance, rounds_rotary, sections_of, union
from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.deepspeed import open_deepspeed
from salmacli.checkpoints.files import open_safetensors
from salmacli.checkpoints.layouts import Layout, detect
from salmacli.checkpoints.lazy import LazyTensor
from salmacli.checkpoints.load import build_model, read_contents
from salmacli.checkpoints.lora import LoraSettings
from salmacli.checkpoints.parts import Parts
from salmacli.checkpoints.pickles import lazy_state_dict, open_pickle
from salmacli.checkpoints.sources import open_source
from salmacli.checkpoints.training_config import read_lora_settings
from salmacli.checkpoints.training_files import Training, merge_training, read_training
from salmacli.errors import UsageError

_TRAINING = (Layout.TRAINING_V1, Layout.TRAINING_V2, Layout.TRAINING_CMA, Layout.DEEPSPEED)


@dataclass(frozen=True)
class Recipe:
    """What a file alone does not say.

    Attributes:
        bases: hub ids or paths of what it was trained on, or of the parts it lacks.
        lora_alpha: LoRA's α.
        config: the training's configuration, which states α and the rank.
        sam2_config: name or file of the SAM 2's configuration, where it has no released size.
        dtype: type that floating-point tensors are stored in; None leaves each as it is.
    """

    bases: Sequence[str | Path] = ()
    lora_alpha: float | None = None
    config: Path | None = None
    sam2_config: str | Path | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Assembled:
    """A whole model.

    Attributes:
        source: the folder or file that was named.
        layout: its layout.
        contents: the model.
        base: tensors to compare with, in the type the model has them in; None where nothing was named.
        training: what was trained, if the file is of a training.
        lora: how LoRA was merged, if it has any.
        parts: the bases, opened.
        notes: what the user should know.
    """

    source: Path
    layout: Layout
    contents: Contents
    base: Mapping[str, LazyTensor] | None = None
    training: Training | None = None
    lora: LoraSettings | None = None
    parts: tuple[Parts, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())


def assemble(file: Path, recipe: Recipe) -> Assembled:
    """Open everything, map every name, merge LoRA; nothing but LoRA's pairs and scalars is read yet.

    Raises:
        CheckpointError: something is missing, broken, unsafe, left over or of another model.
        UsageError: the file needs a base or α, and none is named.
    """
    layout = detect(file)
    if layout in _TRAINING:
        made = _of_training(file, layout, recipe)
    elif layout is Layout.SALMA_ADAPTER:
        made = Assembled(file, layout, contents_of_adapter(file, recipe.bases))
    else:
        made = _of_models(file, layout, recipe)
    return made if recipe.dtype is None else _cast(made, recipe.dtype)


def _of_training(file: Path, layout: Layout, recipe: Recipe) -> Assembled:
    if not recipe.bases:
        raise UsageError(
            f"{file} is a {layout.value}, so it needs its base",
            "name what it was trained on with --base: a released model, or once an InternVL and once a SAM 2",
        )
    parts = tuple(open_source(base, sam2_config=recipe.sam2_config) for base in recipe.bases)
    base = union(parts)
    native = sections_of(parts)["mllm"]["native"]
    tensors, step = _open_training(file, layout)
    training = read_training(tensors, native, str(file))
    lora = _settings(recipe) if training.pairs else None
    if training.pairs and lora is None:
        raise UsageError(
            f"{file} holds LoRA, whose α is not in it",
            "state it with --lora-alpha, or name the training's configuration with --config",
        )
    trained = merge_training(training, base, lora, str(file))
    contents = combine(parts, training.model, trained)
    record: dict[str, Any] = {"trained": _record(file, layout)}
    if lora is not None:
        rank = next(iter(training.pairs.values())).rank
        record["lora"] = {"rank": rank, "alpha": lora.alpha, "scale": lora.scale(rank), "weights": len(training.pairs)}
    notes = [*contents.provenance["notes"], *training.notes]
    contents = replace(contents, step=step, provenance={**record, **contents.provenance, "notes": notes})
    return Assembled(file, layout, contents, base, training, lora, parts, tuple(notes))


def _of_models(file: Path, layout: Layout, recipe: Recipe) -> Assembled:
    bases = tuple(open_source(base, sam2_config=recipe.sam2_config) for base in recipe.bases)
    notes = []
    if recipe.lora_alpha is not None or recipe.config is not None:
        notes.append(f"{file} holds no LoRA: --lora-alpha and --config have nothing to act on")
    if layout.is_salma:
        source, _, contents = read_contents(file)
        contents = replace(contents, tensors=fitted(contents.tensors, build_model(contents, source), str(source)))
        return Assembled(source, layout, contents, union(bases) if bases else None, parts=bases, notes=tuple(notes))
    first = open_source(file, sam2_config=recipe.sam2_config)
    whole = all(
        any(name.startswith(part) for name in first.tensors) for part in ("mllm.", "grounding.", "text_hidden_fcs.")
    )
    contents = combine([first] if whole else [first, *bases])
    notes = [*contents.provenance["notes"], *notes]
    return Assembled(file, layout, contents, union(bases) if whole and bases else None, parts=bases, notes=tuple(notes))


def _open_training(file: Path, layout: Layout) -> tuple[dict[str, LazyTensor], int]:
    """Its tensors by its own names, and how many steps led to it (0 where it does not say)."""
    if layout is Layout.DEEPSPEED:
        return open_deepspeed(file), 0
    if file.suffix == ".safetensors" or file.is_dir():
        return open_safetensors(file), 0
    content = open_pickle(file)
    meta = content.get("meta")
    step = meta.get("iter") if isinstance(meta, Mapping) else None
    weights = next((content[key] for key in ("state_dict", "model", "module") if key in content), content)
    return lazy_state_dict(weights, file), step if isinstance(step, int) and step > 0 else 0


def _settings(recipe: Recipe) -> LoraSettings | None:
    stated = read_lora_settings(recipe.config) if recipe.config is not None else None
    if recipe.lora_alpha is None:
        return stated
    if stated is not None and stated.alpha != recipe.lora_alpha:
        raise UsageError(
            f"--lora-alpha says {recipe.lora_alpha:g} and {recipe.config} {stated.alpha:g}", "give the true one only"
        )
    return stated or LoraSettings(recipe.lora_alpha)


def _record(file: Path, layout: Layout) -> dict[str, Any]:
    files = sorted(one for one in file.rglob("*.pt")) if file.is_dir() else [file]
    return provenance(Parts(str(file), file, layout, tuple(files), {}, {}, {}))


def _cast(made: Assembled, dtype: torch.dtype) -> Assembled:
    """Everything in another type; what was the base's own tensor stays it, so that it need not be compared."""
    done: dict[int, LazyTensor] = {}

    def cast(tensor: LazyTensor) -> LazyTensor:
        if not tensor.dtype.is_floating_point:
            return tensor
        return done.setdefault(id(tensor), tensor.then(lambda read: read.to(dtype), dtype=dtype))

    tensors = {name: cast(one) for name, one in made.contents.tensors.items()}
    model = dict(made.contents.model)
    if made.layout in (Layout.SA2VA, *_TRAINING):
        model["mllm"] = {**model["mllm"], "rounded_rotary": rounds_rotary(tensors)}
    contents = replace(made.contents, model=model, tensors=tensors)
    base = made.base if made.base is None else {name: cast(one) for name, one in made.base.items()}
    return replace(made, contents=contents, base=base)
