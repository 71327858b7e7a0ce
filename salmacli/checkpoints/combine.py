"""Parts → one whole model: nothing twice, nothing missing, nothing left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.decoders import settle_decoders
from salmacli.checkpoints.empty import empty_model, read_tokenizer, untied
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import first_few
from salmacli.checkpoints.layouts import Layout
from salmacli.checkpoints.sources.key_maps import EMBEDDING, HEAD, VOCABULARY
from salmacli.checkpoints.sources.parts import Parts
from salmacli.checkpoints.sources.sa2va import released_rotary
from salmacli.checkpoints.training.training_files import NEW
from salmacli.config.loading import first_fault
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError
from salmacli.models.cma import CrossModalAttention2D
from salmacli.models.salma import Salma, text_projector

# Who knows nothing of segmentation by language; a model made of these alone gets a fresh text projector.
_PIECES = (Layout.INTERNVL, Layout.INTERNVL_NATIVE, Layout.QWEN_VL, Layout.SAM2)
_PROJECTOR, _ATTENTION = NEW
_ROWS = ("cma.gamma",)


def combine(
    parts: Sequence[Parts],
    model: Mapping[str, Any] | None = None,
    trained: Mapping[str, LazyTensor] | None = None,
    seed: int = 0,
    two_decoders: bool | None = None,
) -> Contents:
    """Make one model of several files'.

    Args:
        parts: e.g. a released model alone, or an InternVL and a SAM 2.
        model: sections of the model's config that stand above what the parts say, e.g. ``{"cma": {"enabled": True}}``.
        trained: tensors that take the place of the parts' or join them, by SALMA's names.
        seed: of what starts fresh.
        two_decoders: whether SAM 2's original mask decoder is kept beside the trained one; None: if they differ.

    Returns:
        The model; its provenance names the parts with the hashes of their files, and what the user should know.

    Raises:
        CheckpointError: two parts bring the same, tensors are missing, left over or of other shapes than the model's.
    """
    base, trained = union(parts), trained or {}
    place = " + ".join(part.name for part in parts)
    sections = {**sections_of(parts), **(model or {})}
    tensors = {**base, **trained}
    files = next(part.tokenizer for part in parts if part.tokenizer)
    tokenizer = read_tokenizer(files, place)
    notes = [f"{part.name}: {note}" for part in parts for note in part.notes]
    notes += _untie(sections, tensors, trained)
    notes += _fit_vocabulary(sections, tensors, base, trained, len(tokenizer), seed)
    # A whole config states its mode; that of a training file is the released Sa2VA's, which knows of one decoder.
    own = "inference_mode" in (model or {}) or bool(sections["sam2"].get("two_decoders"))
    stated = own and (not trained or "sam2" in (model or {}))
    notes += settle_decoders(sections, tensors, two_decoders, stated)
    if trained:
        sections["mllm"] = {**sections["mllm"], "rotary": released_rotary(tensors, sections["mllm"]["native"])}
    outline = empty_model(_config(sections, place), tokenizer)
    fresh = [_PROJECTOR] if not trained and all(part.layout in _PIECES for part in parts) else []
    if outline.config.cma.enabled and not trained and "cma" in (model or {}):
        fresh.append(_ATTENTION)
    for group in fresh:
        if not any(name.startswith(group) for name in tensors):
            tensors |= _fresh(outline, group, seed)
            notes.append(f"{group.rstrip('.')} starts fresh (seed {seed}): nothing brings it")
    record = {"sources": [part.provenance for part in parts], "notes": notes}
    config = outline.config.model_dump(mode="json")
    return Contents(0, config, {}, files, fitted(tensors, outline, place), record)


def fitted(tensors: Mapping[str, LazyTensor], model: nn.Module, place: str) -> dict[str, LazyTensor]:
    """The tensors in the model's order; of tied ones the first.

    Args:
        tensors: by SALMA's names.
        model: an outline, on the meta device.
        place: what the tensors come from, for messages.

    Raises:
        CheckpointError: some are missing, left over or of another shape, or differ although the model ties them.
    """
    wanted, aliases = untied(model)
    given = {name: _as_row(lazy) if name in _ROWS else lazy for name, lazy in tensors.items()}
    for alias, name in aliases.items():
        if alias in given and name in given and not torch.equal(given.pop(alias).read(), given[name].read()):
            raise CheckpointError(
                f"{place}: the config ties {alias} to {name}, but they differ", "set tie_word_embeddings to false in it"
            )
    faults = []
    if missing := wanted.keys() - given.keys():
        faults.append(f"lacks {first_few(missing)}")
    if leftover := given.keys() - wanted.keys():
        faults.append(f"has no place for {first_few(leftover)}")
    if shapes := [
        f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if tuple(wanted[name].shape) != tuple(given[name].shape)
    ]:
        faults.append(f"has other shapes than its config says: {first_few(shapes)}")
    if kinds := [
        f"{name} {given[name].dtype}"
        for name in wanted.keys() & given.keys()
        if wanted[name].dtype.is_floating_point != given[name].dtype.is_floating_point
    ]:
        faults.append(f"has other types than a model can have: {first_few(kinds)}")
    if faults:
        raise CheckpointError(
            f"the model of {place} {', and '.join(faults)}", "a file is incomplete or of another model"
        )
    return {name: given[name] for name in wanted}


def _as_row(number: LazyTensor) -> LazyTensor:
    """A single number as the row of one that FSDP2 asks for; earlier checkpoints hold it bare."""
    return number.then(lambda value: value.reshape(1), shape=(1,)) if number.shape == () else number


def sections_of(parts: Sequence[Parts]) -> dict[str, Any]:
    """What parts that make a whole model say about its config.

    Raises:
        CheckpointError: There is no multimodal LLM among them, or no SAM 2.
    """
    sections: dict[str, Any] = {}
    for part in parts:
        sections |= part.model
    place = " + ".join(part.name for part in parts)
    if not isinstance(sections.get("mllm"), Mapping) or not any(part.tokenizer for part in parts):
        raise CheckpointError(
            f"{place}: there is no multimodal LLM", "add it with --base, e.g. --base OpenGVLab/InternVL2_5-1B"
        )
    if not isinstance(sections.get("sam2"), Mapping):
        raise CheckpointError(
            f"{place}: there is no SAM 2", "add it with --base, e.g. --base facebook/sam2-hiera-large"
        )
    return sections


def union(parts: Sequence[Parts]) -> dict[str, LazyTensor]:
    """All parts' tensors.

    Raises:
        CheckpointError: Two parts bring the same one.
    """
    tensors: dict[str, LazyTensor] = {}
    for number, part in enumerate(parts):
        if both := tensors.keys() & part.tensors.keys():
            others = " and ".join(other.name for other in parts[:number])
            raise CheckpointError(f"both {others} and {part.name} bring {first_few(both)}", "name only one of them")
        tensors |= part.tensors
    return tensors


def _untie(sections: dict[str, Any], tensors: dict[str, LazyTensor], trained: Mapping[str, LazyTensor]) -> list[str]:
    """A training that gave the head weights of its own ends a tie that its base had."""
    native = dict((sections.get("mllm") or {}).get("native") or {})
    if HEAD not in trained or not native.get("tie_word_embeddings"):
        return []
    if tensors[HEAD].shape == tensors[EMBEDDING].shape and torch.equal(tensors[HEAD].read(), tensors[EMBEDDING].read()):
        del tensors[HEAD]
        return []
    native["tie_word_embeddings"] = False
    native["text_config"] = {**native["text_config"], "tie_word_embeddings": False}
    sections["mllm"] = {**sections["mllm"], "native": native}
    return ["the training gave the language head weights of its own; in the base it was the embedding"]


def _fit_vocabulary(
    sections: dict[str, Any],
    tensors: dict[str, LazyTensor],
    base: Mapping[str, LazyTensor],
    trained: Mapping[str, LazyTensor],
    tokens: int,
    seed: int,
) -> list[str]:
    """Embedding and head get a row for every token; what was trained must have them already."""
    notes = []
    for name in VOCABULARY:
        rows = tensors[name].shape[0] if name in tensors else tokens
        if name in trained and (rows < tokens or rows not in (tokens, base[name].shape[0] if name in base else tokens)):
            raise CheckpointError(
                f"the training's {name} has {rows} rows, but with the special tokens there are {tokens} tokens",
                "it was trained with another tokenizer: name the base that it was trained on",
            )
        if rows < tokens:
            tensors[name] = _with_rows(tensors[name], tokens, seed)
            notes.append(f"{name} gets {tokens - rows} fresh rows (seed {seed}), about the mean row, for new tokens")
    native = sections["mllm"]["native"]
    text = {**(native.get("text_config") or {}), "vocab_size": tensors[EMBEDDING].shape[0]}
    sections["mllm"] = {**sections["mllm"], "native": {**native, "text_config": text}}
    return notes


def _with_rows(tensor: LazyTensor, rows: int, seed: int) -> LazyTensor:
    def extend(old: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        mean, new = old.float().mean(0), (rows - old.shape[0], old.shape[1])
        # Apart from each other, so that they can be told apart from the first step on.
        return torch.cat([old, (mean + old.float().std() * 0.1 * torch.randn(new, generator=random)).to(old.dtype)])

    return tensor.then(extend, shape=(rows, *tensor.shape[1:]))


def _config(sections: Mapping[str, Any], place: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(sections)
    except ValidationError as error:
        told = first_fault(error, "model")
        raise CheckpointError(f"{place}: no model can be made of what it says ({told})") from error


def _fresh(outline: Salma, group: str, seed: int) -> dict[str, LazyTensor]:
    channels = outline.config.sam2.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if group == _PROJECTOR:
            module: nn.Module = text_projector(outline.mllm.width, channels)
        else:
            module = CrossModalAttention2D(channels, outline.config.cma)
    return {f"{group}{name}": LazyTensor.of(tensor.detach()) for name, tensor in module.state_dict().items()}
