"""A file, and what it alone does not say → one whole model, and what it is to be compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmacli.checkpoints.adapters import contents_of_adapter
from salmacli.checkpoints.combine import combine, fitted, sections_of, union
from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.decoders import with_originals
from salmacli.checkpoints.files.deepspeed import deepspeed_folder, deepspeed_meta, open_deepspeed
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.pickles import lazy_state_dict, open_pickle
from salmacli.checkpoints.files.tensors import open_safetensors
from salmacli.checkpoints.layouts import ADAPTER_FORMAT, Layout, detect, salma_folder, weights_in
from salmacli.checkpoints.load import build_model, read_contents
from salmacli.checkpoints.sources.key_maps import TABLES
from salmacli.checkpoints.sources.opening import locate, open_source
from salmacli.checkpoints.sources.parts import Parts
from salmacli.checkpoints.training.comparison import finite
from salmacli.checkpoints.training.lora import LoraSettings, agreed
from salmacli.checkpoints.training.training_config import lora_settings_in, read_lora_settings
from salmacli.checkpoints.training.training_files import Training, merge_training, read_training
from salmacli.errors import CheckpointError, UsageError

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


def assemble(name_or_path: str | Path, recipe: Recipe) -> Assembled:
    """Open everything, map every name, merge LoRA; only scalars and what tells one model from another are read yet.

    Raises:
        CheckpointError: something is missing, broken, unsafe, left over or of another model.
        UsageError: the file needs a base or α, and none is named.
    """
    file = locate(name_or_path)
    layout = detect(file)
    if layout in _TRAINING:
        made = _of_training(file, layout, recipe)
    elif layout is Layout.SALMA_ADAPTER:
        file = salma_folder(file, ADAPTER_FORMAT) or file
        contents = contents_of_adapter(file, recipe.bases)
        notes = [*contents.provenance.get("notes", ()), *_idle(recipe, file, "says itself how its LoRA is merged")]
        made = Assembled(file, layout, contents, notes=tuple(notes))
    else:
        made = _of_models(name_or_path, file, layout, recipe)
    return made if recipe.dtype is None else _cast(made, recipe.dtype)


def _of_training(file: Path, layout: Layout, recipe: Recipe) -> Assembled:
    if not recipe.bases:
        raise UsageError(
            f"{file} is a {layout.value}, so it needs its base",
            "name what it was trained on with --base: a released model, or once an InternVL and once a SAM 2",
        )
    parts = with_originals(_bases(recipe))
    base = union(parts)
    native = sections_of(parts)["mllm"]["native"]
    tensors, meta, left_out = _open_training(file, layout)
    training = read_training(tensors, native, str(file))
    lora = _lora_settings(file, meta, recipe) if training.pairs else None
    trained = merge_training(training, base, lora, str(file))
    contents = combine(parts, training.model, trained)
    record: dict[str, Any] = {"trained": _record(file, layout)}
    if lora is not None:
        rank = next(iter(training.pairs.values())).rank
        record["lora"] = {"rank": rank, "alpha": lora.alpha, "scale": lora.scale(rank), "weights": len(training.pairs)}
    notes = [*contents.provenance["notes"], *training.notes, *left_out]
    if not training.pairs:
        notes += _idle(recipe, file, "holds no LoRA")
    if not any(name in base and len(one.shape) > 1 for name, one in training.tensors.items()):
        notes.append(f"nothing in {file} shows which base it was trained on; it is taken at your word")
    step = meta.get("iter")
    step = step if isinstance(step, int) and step > 0 else 0
    contents = replace(contents, step=step, provenance={**record, **contents.provenance, "notes": notes})
    return Assembled(file, layout, contents, base, training, lora, parts, tuple(notes))


def _of_models(name_or_path: str | Path, file: Path, layout: Layout, recipe: Recipe) -> Assembled:
    bases = _bases(recipe)
    first = open_source(name_or_path, sam2_config=recipe.sam2_config)
    whole = all(
        any(name.startswith(part) for name in first.tensors) for part in ("mllm.", "grounding.", "text_hidden_fcs.")
    )
    # What is named beside a whole model is there to be compared with it; a SAM 2 also brings its own mask decoder.
    others = [base for base in bases if not whole or base.layout is Layout.SAM2]
    if layout.is_salma:
        file, _, contents = read_contents(file)
        contents = replace(contents, tensors=fitted(contents.tensors, build_model(contents, file), str(file)))
        told: list[str] = []
        if others and not contents.model["sam2"].get("two_decoders"):
            contents, told = _joined(contents, first, others)
    else:
        contents = combine(with_originals([first, *others]))
        told = contents.provenance["notes"]
    base = union(with_originals(bases)) if whole and bases else None
    notes = [*told, *_idle(recipe, file, "holds no LoRA")]
    return Assembled(file, layout, contents, base, parts=bases, notes=tuple(notes))


def _joined(contents: Contents, first: Parts, sam2: Sequence[Parts]) -> tuple[Contents, list[str]]:
    """SALMA's own checkpoint with SAM 2's original mask decoder; it stays the same run's."""
    both = combine(with_originals([first, *sam2]))
    told: list[str] = both.provenance["notes"]
    if not both.model["sam2"]["two_decoders"]:
        return contents, told
    kept = contents.provenance
    provenance = {
        **kept,
        "sources": [*(kept.get("sources") or [first.provenance]), *(part.provenance for part in sam2)],
        "notes": [*kept.get("notes", ()), *told],
    }
    return replace(contents, model=both.model, tensors=both.tensors, provenance=provenance), told


def _bases(recipe: Recipe) -> tuple[Parts, ...]:
    return tuple(open_source(base, sam2_config=recipe.sam2_config) for base in recipe.bases)


def _idle(recipe: Recipe, file: Path, why: str) -> list[str]:
    """Options that nothing reads are said, not swallowed."""
    told = recipe.lora_alpha is not None or recipe.config is not None
    return [f"{file} {why}: --lora-alpha and --config have nothing to act on"] if told else []


def _open_training(file: Path, layout: Layout) -> tuple[dict[str, LazyTensor], Mapping[str, Any], list[str]]:
    """Its tensors by its own names, what the trainer noted beside them, and what the user should know."""
    if layout is Layout.DEEPSPEED:
        return open_deepspeed(file), deepspeed_meta(file), []
    if file.suffix == ".safetensors" or file.is_dir():
        return open_safetensors(file), {}, []
    content = open_pickle(file)
    weights, meta = weights_in(content, file), content.get("meta")
    notes = [f"{file}: {key} beside the weights was left out" for key in weights.left_out]
    return lazy_state_dict(weights.tensors, file), meta if isinstance(meta, Mapping) else {}, notes


def _lora_settings(file: Path, meta: Mapping[str, Any], recipe: Recipe) -> LoraSettings:
    """α and rank from all who state them: the option, the configuration, and its copy that MMEngine puts into files."""
    stated: dict[str, LoraSettings] = {}
    if recipe.lora_alpha is not None:
        if not 0 < recipe.lora_alpha < math.inf:
            raise UsageError(f"--lora-alpha is {recipe.lora_alpha:g}, not a number above 0", "give the training's α")
        stated["--lora-alpha"] = LoraSettings(recipe.lora_alpha)
    if recipe.config is not None:
        stated[str(recipe.config)] = read_lora_settings(recipe.config)
    inside = lora_settings_in(str(meta.get("cfg", "")), str(file))
    if inside is not None:
        stated[f"the configuration inside {file.name}"] = inside
    if not stated:
        raise UsageError(
            f"{file} holds LoRA, whose α is not in it",
            "state it with --lora-alpha, or name the training's configuration with --config",
        )
    return agreed(stated)


def _record(file: Path, layout: Layout) -> dict[str, Any]:
    folder = deepspeed_folder(file) if layout is Layout.DEEPSPEED else None
    files = sorted(folder.glob("*.pt")) if folder else sorted(file.glob("*.safetensors")) if file.is_dir() else [file]
    return Parts(str(file), file, layout, tuple(files), {}, {}, {}).provenance


def _cast(made: Assembled, dtype: torch.dtype) -> Assembled:
    """Everything in another type; what was the base's own tensor stays it, so that it need not be compared.

    A table of positions may become wider and never narrower: a model that computes in bfloat16 keeps it in float32.
    """
    done: dict[int, LazyTensor] = {}

    def narrow(read: Tensor, dtype: torch.dtype) -> Tensor:
        narrowed = read.to(dtype)
        if finite(read) and not finite(narrowed):
            raise CheckpointError(
                f"{made.source}: {str(dtype).removeprefix('torch.')} cannot hold its largest weights",
                "take --dtype bf16, or leave --dtype out",
            )
        return narrowed

    def cast(name: str, tensor: LazyTensor) -> LazyTensor:
        if not tensor.dtype.is_floating_point:
            return tensor
        wanted = torch.promote_types(tensor.dtype, dtype) if name in TABLES else dtype
        return done.setdefault(id(tensor), tensor.then(partial(narrow, dtype=wanted), dtype=wanted))

    tensors = {name: cast(name, one) for name, one in made.contents.tensors.items()}
    contents = replace(made.contents, tensors=tensors)
    base = made.base if made.base is None else {name: cast(name, one) for name, one in made.base.items()}
    return replace(made, contents=contents, base=base)
