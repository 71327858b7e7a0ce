"""Only what was trained, beside a base that is named by id and hash: LoRA in peft's format, the rest as it is.

An adapter folder::

    config.json                 {"format": "salma-adapter", "bases": [{"name", "files": {file: sha256}}], "lora", …}
    adapter_config.json         peft's: `peft.PeftModel.from_pretrained(model.mllm.model, FOLDER)` reads these two
    adapter_model.safetensors   LoRA, and the MLLM's modules that were trained whole (projector, embedding, head)
    model.safetensors           what was trained beside the MLLM: mask decoder, text projector, attention
    tokenizer*.json …           as transformers writes them
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from salmacli import __version__
from salmacli.checkpoints.combine import combine, union
from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.decoders import with_originals
from salmacli.checkpoints.files.disk import replacing
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import open_safetensors, write_safetensors
from salmacli.checkpoints.layouts import ADAPTER_FORMAT, CONFIG, SCHEMA, WEIGHTS, check_schema, read_config
from salmacli.checkpoints.sources.key_maps import MLLM
from salmacli.checkpoints.sources.opening import open_source
from salmacli.checkpoints.sources.parts import Parts
from salmacli.checkpoints.sources.tokenizers import files_of
from salmacli.checkpoints.training.lora import LoraSettings, rank_of, split_pairs
from salmacli.checkpoints.training.training_files import Training, merge_training
from salmacli.config.files import safe_name
from salmacli.errors import CheckpointError

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT = "base_model.model."
# Trained whole, as peft's modules_to_save: the vision-language projector, the embedding and the head.
_WHOLE = re.compile(
    r"mllm\.model\.(lm_head|model\.language_model\.embed_tokens|model\.multi_modal_projector\.\w+)\.(weight|bias)"
)


def write_adapter(
    folder: Path,
    contents: Contents,
    training: Training,
    lora: LoraSettings,
    bases: Sequence[Parts],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write an adapter folder, whole or not at all.

    Args:
        folder: its place.
        contents: the merged model, for everything but its tensors.
        training: what was trained.
        lora: how LoRA is merged.
        bases: what it was trained on.
        check: gets the finished folder before it takes its place, and raises if it must not.

    Raises:
        CheckpointError: the disk lacks the room.
    """
    inside = {name: tensor for name, tensor in training.tensors.items() if _WHOLE.fullmatch(name)}
    outside = {name: tensor for name, tensor in training.tensors.items() if name not in inside}
    adapter = {_PEFT + name.removeprefix(MLLM): tensor for name, tensor in inside.items()}
    for name, pair in training.pairs.items():
        module = _PEFT + name.removeprefix(MLLM).removesuffix(".weight")
        adapter |= {f"{module}.lora_A.weight": pair.down, f"{module}.lora_B.weight": pair.up}
    with replacing(folder) as part:
        write_safetensors(part / ADAPTER, adapter)
        if outside:
            write_safetensors(part / WEIGHTS, outside)
        _write_json(part / ADAPTER_CONFIG, _peft_config(training, lora, inside, bases))
        _write_json(part / CONFIG, _header(contents, lora, bases))
        for name, data in contents.tokenizer.items():
            (part / safe_name(name, "the tokenizer's files")).write_bytes(data)
        if check is not None:
            check(part)


def contents_of_adapter(folder: Path, bases: Sequence[str | Path] = ()) -> Contents:
    """Merge an adapter folder into its base.

    Args:
        folder: as `write_adapter` made it.
        bases: where the bases lie now; none where they still go by the names that the folder has.

    Raises:
        CheckpointError: something is missing, broken, or another base than the one that was trained on.
    """
    header = _read_header(folder / CONFIG)
    names = [str(base) for base in bases] or [base["name"] for base in header["bases"]]
    model = header["model"]
    if gone := [name for name in names if Path(name).is_absolute() and not Path(name).exists()]:
        raise CheckpointError(
            f"{folder} was trained on {gone[0]}, which is missing",
            f"say where it is now: salma convert {folder} --base PLACE",
        )
    opened = [open_source(name, sam2_config=model["sam2"]) for name in names]
    found, wanted = [_hashes(part.provenance) for part in opened], [_hashes(base) for base in header["bases"]]
    if sorted(found) != sorted(wanted):
        raise CheckpointError(
            f"{folder} was made for another base than {' + '.join(names)}: the hashes of the files differ",
            f"name its true base ({', '.join(base['name'] for base in header['bases'])}) with salma convert --base",
        )
    parts = with_originals(opened)
    tensors = {MLLM + name.removeprefix(_PEFT): tensor for name, tensor in open_safetensors(folder / ADAPTER).items()}
    pairs, whole = split_pairs(tensors, str(folder / ADAPTER))
    if (folder / WEIGHTS).is_file():
        whole |= open_safetensors(folder / WEIGHTS)
    training = Training(whole, {f"{module}.weight": pair for module, pair in pairs.items()}, {}, model, ())
    lora = LoraSettings(header["lora"]["alpha"], header["lora"]["rank"], header["lora"]["root"])
    trained = merge_training(training, union(parts), lora, str(folder))
    contents = combine(parts, model, trained, two_decoders=bool(model["sam2"].get("two_decoders")))
    return replace(contents, step=header["step"], tokenizer=files_of(folder), provenance=header["provenance"])


def _peft_config(
    training: Training, lora: LoraSettings, inside: Mapping[str, LazyTensor], bases: Sequence[Parts]
) -> dict[str, Any]:
    """The fields that peft needs; every module by its full name, because the vision tower has a q_proj, too."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": next((part.name for part in bases if "mllm" in part.model), None),
        "r": rank_of(training.pairs, lora, "the training"),
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.root,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(_module(name) for name in training.pairs),
        "modules_to_save": sorted({_module(name) for name in inside}) or None,
        "task_type": None,
    }


def _header(contents: Contents, lora: LoraSettings, bases: Sequence[Parts]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "format": ADAPTER_FORMAT,
        "salma": __version__,
        "step": contents.step,
        "bases": [{**part.provenance, "name": _lasting(part)} for part in bases],
        "lora": {"alpha": lora.alpha, "rank": contents.provenance["lora"]["rank"], "root": lora.root},
        "model": dict(contents.model),
        "provenance": dict(contents.provenance),
    }


def _lasting(part: Parts) -> str:
    """A hub id, or a path that means the same from every working folder."""
    return str(Path(part.name).resolve()) if Path(part.name).exists() else part.name


def _read_header(path: Path) -> dict[str, Any]:
    header = read_config(path.parent)
    check_schema(header, path)
    try:
        for base in header["bases"]:
            _ = str(base["name"]), _hashes(base)
        _ = header["lora"]["alpha"] / header["lora"]["rank"], header["lora"]["root"], header["model"]["sam2"].keys()
        _ = header["step"], header["provenance"]
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} lacks bases, lora, model, step or provenance", "convert again") from error
    return dict(header)


def _hashes(record: Mapping[str, Any]) -> list[str]:
    return sorted(record["files"].values())


def _module(name: str) -> str:
    return name.removeprefix(MLLM).rpartition(".")[0]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
