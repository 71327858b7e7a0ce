"""Published models, and SALMA's own → parts of a model in SALMA's names, whatever layout they come in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from transformers import PreTrainedTokenizerFast

from salmacli.checkpoints.files.hub import is_here, resolve
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.pickles import lazy_state_dict, open_bins, open_pickle
from salmacli.checkpoints.files.tensors import open_safetensors
from salmacli.checkpoints.layouts import CONFIG, Layout, detect, refuse_wrapped, weights_in
from salmacli.checkpoints.load import read_contents
from salmacli.checkpoints.sources.fused import Heads
from salmacli.checkpoints.sources.key_maps import (
    EMBEDDING,
    GROUNDING,
    HEAD,
    MLLM,
    check_native_internvl,
    internvl_to_native,
    older_native_to_native,
    sa2va_to_salma,
    sam2_to_salma,
)
from salmacli.checkpoints.sources.mllm_configs import native_of_internvl, native_of_transformers, says_tied
from salmacli.checkpoints.sources.parts import Parts
from salmacli.checkpoints.sources.sa2va import PREDICTION, released_rotary
from salmacli.checkpoints.sources.sam2_configs import (
    Given,
    check_sam2,
    config_beside,
    read_sam2_config,
    released_config,
    sam2_config_from,
)
from salmacli.checkpoints.sources.tokenizers import (
    FILES,
    add_sa2va_tokens,
    check_vocabulary,
    open_tokenizer,
    tokenizer_files,
)
from salmacli.config.files import read_json
from salmacli.config.schema import Sam2Config
from salmacli.data.templates import SEG
from salmacli.errors import CheckpointError, ConfigError, DataError

# What is fetched from the hub: weights, configuration and tokenizer, and no code.
_WANTED = (CONFIG, *FILES, "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json")
_ORIGINAL = (Layout.SA2VA, Layout.INTERNVL)
_MLLM = (*_ORIGINAL, Layout.INTERNVL_NATIVE, Layout.QWEN_VL)
_TEMPLATES = ("qwen_chat", "internlm2_chat")  # two names for the same turns


def locate(name_or_path: str | Path) -> Path:
    """The folder or file that a user names, on this machine; what a hub id names is fetched unless it is here already.

    Raises:
        CheckpointError: There is no such thing.
    """
    place = resolve(name_or_path, _files_of(name_or_path))
    return _sam2_file(place) or place


def is_local(name_or_path: str | Path) -> bool:
    """Whether `locate` would find it without a download."""
    return is_here(name_or_path, _files_of(name_or_path))


def _files_of(name_or_path: str | Path) -> list[str]:
    """What of a model on the hub is fetched."""
    _, released = HF_MODEL_ID_TO_FILENAMES.get(str(name_or_path), (None, None))
    return [released] if released else list(_WANTED)


def open_source(name_or_path: str | Path, *, sam2_config: Given | None = None) -> Parts:
    """Find a model, tell its layout, and map every tensor of it.

    Args:
        name_or_path: A hub id, a folder or a file: a released Sa2VA, an InternVL (original or native), Qwen2.5-VL or
            Qwen3-VL, a SAM 2, or a SALMA checkpoint.
        sam2_config: What `read_sam2_config` takes, for a SAM 2 of no released size; None tells it from the tensors.

    Raises:
        CheckpointError: It is missing, broken, unsafe or incomplete, no model of these, or tensors are left over.
        UsageError, ConfigError: `sam2_config` cannot be read.
    """
    name, place = str(name_or_path), locate(name_or_path)
    layout = detect(place)
    if layout.is_salma or layout is Layout.SALMA_ADAPTER:
        place, layout, contents = read_contents(place)
        files = _weight_files(place)
        return Parts(name, place, layout, files, contents.model, contents.tokenizer, contents.tensors)
    if layout not in (*_MLLM, Layout.SAM2):
        raise CheckpointError(
            f"{place} is a {layout.value}, not a model to start from",
            "name a released Sa2VA, an InternVL, a Qwen-VL, a SAM 2 or a SALMA checkpoint",
        )
    try:
        tensors, left_out = _weights(place)
        found = _Found(name, place, layout, tensors)
        parts = _sam2(found, sam2_config) if layout is Layout.SAM2 else _mllm(found, sam2_config)
    except (DataError, CheckpointError) as error:
        told = any(re.search(rf"(?<![\w.-]){re.escape(one)}(?![\w-])", str(error)) for one in (name, str(place)))
        raise CheckpointError(str(error) if told else f"{name}: {error}") from error
    return replace(parts, notes=(*parts.notes, *(f"{key} beside it was left out" for key in left_out)))


@dataclass(frozen=True)
class _Found:
    """A source before anything is mapped."""

    name: str
    place: Path
    layout: Layout
    tensors: Mapping[str, LazyTensor]

    @property
    def folder(self) -> Path:
        return self.place if self.place.is_dir() else self.place.parent

    def parts(self, tensors: Mapping[str, LazyTensor], model: Mapping[str, Any]) -> Parts:
        return Parts(self.name, self.place, self.layout, _weight_files(self.place), model, {}, tensors)


def _mllm(found: _Found, sam2_config: Given | None) -> Parts:
    """A multimodal LLM, with all that a released Sa2VA adds to it."""
    where = str(found.folder / CONFIG)
    config = read_json(found.folder / CONFIG)
    if not isinstance(config, dict):
        raise CheckpointError(f"{where} is no mapping", "download it again")
    notes: list[str] = []
    sections: dict[str, Any] = {}
    if found.layout in _ORIGINAL:
        native = native_of_internvl(config, where)
        heads = Heads.of(native)
        tied_by_default = False
        if found.layout is Layout.SA2VA:
            tensors = sa2va_to_salma(found.tensors, heads)
            sections, notes = _sa2va_sections(found, tensors, config, native, sam2_config)
        else:
            tensors = {MLLM + name: tensor for name, tensor in internvl_to_native(found.tensors, heads).items()}
    else:
        native = native_of_transformers(config, where)
        tied_by_default = bool(native.get("tie_word_embeddings"))
        natives = older_native_to_native(found.tensors)
        if found.layout is Layout.INTERNVL_NATIVE:
            check_native_internvl(natives)
        tensors = {MLLM + name: tensor for name, tensor in natives.items()}
    tensors = _head(tensors, native, config, tied_by_default, where)
    tokenizer = open_tokenizer(found.folder)
    check_vocabulary(tokenizer, tensors[EMBEDDING].shape[0], str(found.place))
    notes += _special_tokens(found, tokenizer)
    mllm = {"native": native, **sections.pop("mllm", {})}
    parts = found.parts(tensors, {"mllm": mllm, **sections})
    return replace(parts, tokenizer=tokenizer_files(tokenizer), notes=tuple(notes))


def _sa2va_sections(
    found: _Found,
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, Any],
    native: Mapping[str, Any],
    sam2_config: Given | None,
) -> tuple[dict[str, Any], list[str]]:
    """What a released Sa2VA says beyond its MLLM: a SAM 2, and how it predicts."""
    sam2 = {name.removeprefix(GROUNDING): tensors[name] for name in tensors if name.startswith(GROUNDING)}
    kept = (
        config["salma"] if isinstance(config.get("salma"), Mapping) else {}
    )  # of a model that SALMA wrote in this layout
    chosen, notes = _sam2_config(sam2, found, sam2_config, kept.get("sam2"))
    template = str(config.get("template") or _TEMPLATES[0]).replace("-", "_")
    if template not in _TEMPLATES:
        notes.append(f"it was trained in the turns of {template}, and SALMA speaks to it in those of {_TEMPLATES[0]}")
    sections = {
        "mllm": {"rotary": kept.get("rotary") or released_rotary(tensors, native)},
        "sam2": chosen.model_dump(mode="json"),
        **{key: kept.get(key, value) for key, value in PREDICTION.items()},
    }
    return sections, notes


def _sam2(found: _Found, sam2_config: Given | None) -> Parts:
    tensors = sam2_to_salma(found.tensors)
    chosen, notes = _sam2_config(found.tensors, found, sam2_config, None)
    return replace(found.parts(tensors, {"sam2": chosen.model_dump(mode="json")}), notes=tuple(notes))


def _sam2_config(
    tensors: Mapping[str, LazyTensor], found: _Found, given: Given | None, kept: Mapping[str, Any] | None
) -> tuple[Sam2Config, list[str]]:
    """The SAM 2's configuration: as given, as kept in config.json, as released, or as a file beside it says."""
    where, notes = str(found.place), []
    try:
        if given is not None:
            config = read_sam2_config(given)
        elif kept is not None:
            config = sam2_config_from(kept, str(found.folder / CONFIG))
        elif (known := released_config(tensors, where)) is not None:
            return known, []
        elif (beside := config_beside(found.folder)) is not None:
            config = beside[0]
            notes.append(f"its SAM 2 is of no released size; {beside[1].name} beside it says which")
        else:
            raise CheckpointError(f"{where}: its SAM 2 is of no released size", "say which with --sam2-config FILE")
    except ConfigError as error:
        if given is not None:
            raise
        raise CheckpointError(str(error)) from error  # it came with the model
    check_sam2(config, tensors, where)
    return config.model_copy(update={"base": None, "two_decoders": False}), notes  # of a file with one decoder


def _head(
    tensors: dict[str, LazyTensor], native: dict[str, Any], config: Mapping[str, Any], tied_by_default: bool, where: str
) -> dict[str, LazyTensor]:
    """Decide whether the language head is the embedding, and write that and the vocabulary's size into `native`.

    transformers ties an InternVL's head unless it is told not to, and drops what the file says.
    """
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{where}: the weights beside it hold no token embedding", "download the whole model")
    embedding, head, said = tensors[EMBEDDING], tensors.get(HEAD), says_tied(config)
    original = "llm_config" in config
    tied = head is None
    if head is None:
        if not (tied_by_default if said is None else said):
            raise CheckpointError(
                f"{where}: the weights beside it lack the language head {HEAD.removeprefix(MLLM)}, and it does not say "
                "that the head is the embedding", "download the whole model",
            )  # fmt: skip
    # The original's own code never ties by llm_config; old copies of Qwen's configuration say it there all the same.
    elif config.get("tie_word_embeddings") if original else said:
        tied = embedding.shape == head.shape and torch.equal(embedding.read(), head.read())
        if not tied:
            raise CheckpointError(
                f"{where} says that the language head is the token embedding, but the weights beside it hold a head of "
                "its own", "set tie_word_embeddings to what is meant",
            )  # fmt: skip
    rows = {tensor.shape[0] for tensor in (embedding, head) if tensor is not None}
    text = native["text_config"]
    if rows != {text["vocab_size"]}:
        raise CheckpointError(
            f"{where} says a vocabulary of {text['vocab_size']}, the weights beside it have {sorted(rows)} rows",
            "they are not of one model",
        )
    native["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
    return {name: tensor for name, tensor in tensors.items() if not (tied and name == HEAD)}


def _special_tokens(found: _Found, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Add Sa2VA's tokens to an MLLM that knows nothing of segmentation."""
    if found.layout is Layout.SA2VA and SEG not in tokenizer.get_vocab():
        raise CheckpointError(f"{found.place}: its tokenizer has no {SEG}", "download the tokenizer of this very model")
    added = add_sa2va_tokens(tokenizer)
    return [f"its tokenizer gets {' '.join(added)}"] if added else []


def _sam2_file(place: Path) -> Path | None:
    """The official ``.pt`` in a folder, beside which newer downloads hold the same weights by other names."""
    files = sorted(place.glob("sam2*.pt")) if place.is_dir() else []
    if len(files) > 1:
        raise CheckpointError(f"{place} holds {len(files)} SAM 2, such as {files[0].name}", "name one")
    return files[0] if files else None


def _weights(place: Path) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """The model's tensors, and the keys of other sets of them in the same file."""
    left_out: tuple[str, ...] = ()
    if place.is_dir():
        tensors = open_safetensors(place) if any(place.glob("*.safetensors*")) else open_bins(place)
    elif place.suffix == ".safetensors":
        tensors = open_safetensors(place)
    else:
        weights, left_out = weights_in(open_pickle(place), place)
        tensors = lazy_state_dict(weights, place)
    refuse_wrapped(tensors, str(place))
    return tensors, left_out


def _weight_files(place: Path) -> tuple[Path, ...]:
    if not place.is_dir():
        return (place,)
    return tuple(sorted(place.glob("*.safetensors"))) or tuple(sorted(place.glob("pytorch_model*.bin")))
