"""Any layout → SALMA, a released Sa2VA, one ``.pth`` or an adapter; compared with the base, and read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from salmacli.checkpoints.adapters import ADAPTER_CONFIG, contents_of_adapter, write_adapter
from salmacli.checkpoints.assemble import Assembled, Recipe, assemble
from salmacli.checkpoints.card import CARD
from salmacli.checkpoints.contents import Contents, digest, fingerprint_of
from salmacli.checkpoints.decoders import without_original
from salmacli.checkpoints.files.disk import replacing, room
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import WEIGHTS, read_as_announced, write_shards
from salmacli.checkpoints.layouts import CONFIG, Layout, detect
from salmacli.checkpoints.load import read_contents
from salmacli.checkpoints.processor import PROCESSOR
from salmacli.checkpoints.save import write_folder, write_pth
from salmacli.checkpoints.sources.key_maps import VOCABULARY
from salmacli.checkpoints.sources.opening import open_source
from salmacli.checkpoints.sources.sa2va import sa2va_folder
from salmacli.checkpoints.sources.tokenizers import FILES
from salmacli.checkpoints.training.comparison import Difference, ModuleRow, difference, finite, key_report, module_of
from salmacli.checkpoints.training.training_files import check_base
from salmacli.config.files import safe_name, sha256
from salmacli.errors import CheckpointError, UsageError

Form = Literal["folder", "pth", "sa2va", "adapter"]

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_LAYOUTS: dict[Form, Layout] = {
    "folder": Layout.SALMA_FOLDER,
    "pth": Layout.SALMA_PTH,
    "sa2va": Layout.SA2VA,
    "adapter": Layout.SALMA_ADAPTER,
}
# What we write into folders; whatever else lies there is somebody's.
_OURS = {CONFIG, CARD, PROCESSOR, ADAPTER_CONFIG, f"{WEIGHTS}.index.json", *FILES}


@dataclass(frozen=True)
class Conversion:
    """What a conversion found and made.

    Attributes:
        source: the folder or file that was read.
        layout: its layout.
        out: what was (or, in a dry run, would be) written.
        step: optimiser steps that led to the model, 0 where nobody says.
        fingerprint: SHA-256 over names and bytes of the tensors, the same before and after and in every form.
        modules: the report.
        notes: what the user should know.
        provenance: the model's: ``sources`` (or bases) and, for a training, what was ``trained``, each with the SHA-256
            of its files, and ``lora``.
        hashes: name of each written file with weights → its SHA-256; empty in a dry run.
        verified: read back and found identical; False in a dry run.
    """

    source: Path
    layout: Layout
    out: Path
    step: int
    fingerprint: str
    modules: list[ModuleRow]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    hashes: Mapping[str, str]
    verified: bool


def convert(
    file: str | Path,
    recipe: Recipe | None = None,
    to: Form = "folder",
    out: Path | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Conversion:
    """Convert a model or a training file, and compare the result with its base and with what came onto the disk.

    Args:
        file: of any layout that `layouts.detect` knows, or a hub id.
        recipe: what the file alone does not say.
        to: the form of the result.
        out: its place; by default beside the file, or in the working folder when that came from the hub.
        force: replace a result of the same form.
        dry_run: do everything but write.

    Raises:
        CheckpointError: something is missing, broken, unsafe, left over, of another model or base; a training changed
            nothing; or what was written came back changed.
        UsageError: the file needs a base or α, the form does not suit it, or ``out`` is taken.
    """
    recipe = recipe or Recipe()
    made = assemble(file, recipe)
    if to == "sa2va":
        alone, told = without_original(made.contents)
        made = replace(made, contents=alone, notes=(*made.notes, *told))
    _check_form(made, recipe, to)
    if out is None:
        out = default_out(made.source if Path(file).exists() else Path(Path(file).name), made.contents.step, to)
    _check_out(out, made, to, force)
    contents = made.contents
    found, differences = _examine(made)
    notes = (*made.notes, *_check_change(made, differences))
    hashes = {} if dry_run else _write(made, to, out, found)
    return Conversion(
        source=made.source,
        layout=made.layout,
        out=out,
        step=contents.step,
        fingerprint=found,
        modules=key_report(contents.tensors, made.base, differences),
        notes=notes,
        provenance=contents.provenance,
        hashes=hashes,
        verified=not dry_run,
    )


def default_out(source: Path, step: int, to: Form) -> Path:
    """``<run>-step-<N>-salma`` beside a run's checkpoint, ``<name>-salma`` beside others; or the form's own ending."""
    if source.parent.name == "checkpoints":
        stem = f"{source.resolve().parent.parent.name}-step-{step}"
    else:
        name = source.resolve().name
        # Names of models have dots of their own: Qwen2.5-VL-3B.
        stem = (source.stem if source.suffix in _SUFFIXES and not source.is_dir() else name).removesuffix("-salma")
    ending = {"folder": "-salma", "pth": "-salma.pth", "sa2va": "-sa2va", "adapter": "-adapter"}[to]
    beside = source if source.name not in ("", "..") else source.resolve()  # "." is inside of what it names
    return beside.parent / f"{stem}{ending}"


def _check_form(made: Assembled, recipe: Recipe, to: Form) -> None:
    if to == "adapter" and made.layout is Layout.SALMA_ADAPTER:
        raise UsageError(f"{made.source} is an adapter already", "copy it, or convert it without --adapter")
    if to == "adapter" and (made.training is None or made.lora is None):
        raise UsageError(f"{made.source} is a {made.layout.value} and holds no LoRA", "convert it without --adapter")
    if to == "adapter" and recipe.dtype is not None:
        raise UsageError("an adapter keeps the types that it was trained in", "leave --dtype out")
    if to == "sa2va":
        sa2va_folder(made.contents)  # says what that layout has no place for


def _check_out(out: Path, made: Assembled, to: Form, force: bool) -> None:
    place = out.resolve()
    for read in (made.source.resolve(), *(part.place.resolve() for part in made.parts)):
        if place == read:
            raise UsageError(f"{out} is the checkpoint itself", "give another place with --out")
        if place in read.parents and _layout_of(out) is not None:
            raise UsageError(f"{out} holds {read}, which is being read", "give another place with --out")
    if not out.exists() or (to != "pth" and out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UsageError(f"{out} is there already", "give another place with --out, or --force to replace it")
    if out.is_dir() != (to != "pth"):
        kind = "folder" if out.is_dir() else "file"
        raise UsageError(f"{out} is a {kind} and --force replaces only like by like", "give another place with --out")
    if _layout_of(out) is not _LAYOUTS[to]:
        raise UsageError(
            f"{out} is no {_LAYOUTS[to].value} and --force replaces only like by like", "give another place with --out"
        )
    inside = sorted(file.name for file in out.iterdir()) if out.is_dir() else []
    if foreign := [name for name in inside if name not in _OURS and not name.endswith(".safetensors")]:
        raise UsageError(
            f"{out} also holds {', '.join(foreign[:4])}, which --force would delete", "move that, or give another --out"
        )


def _layout_of(path: Path) -> Layout | None:
    try:
        return detect(path)
    except CheckpointError:
        return None


def _examine(made: Assembled) -> tuple[str, dict[str, Difference]]:
    """Read every tensor once: the fingerprint, and how far each is from the base's."""
    hasher, differences = hashlib.sha256(), {}
    trained = made.training.names if made.training is not None else set()
    for name in sorted(made.contents.tensors):
        lazy = made.contents.tensors[name]
        tensor = read_as_announced(name, lazy)
        digest(hasher, name, tensor)
        if not finite(tensor):
            mend = "the training has diverged" if name in trained else "copy or download it again"
            raise CheckpointError(f"{made.source}: {name} has numbers that are not finite", mend)
        old = None if made.base is None else made.base.get(name)
        if old is None or old is lazy:
            continue
        if old.shape != lazy.shape and not (name in VOCABULARY and old.shape[1:] == lazy.shape[1:]):
            raise CheckpointError(
                f"{made.source}: {name} is {lazy.shape}, in the base {old.shape}", "it is another model's base"
            )
        differences[name] = difference(old.read(), tensor)
    return hasher.hexdigest(), differences


def _check_change(made: Assembled, differences: Mapping[str, Difference]) -> list[str]:
    """Refuse a wrong base and a training that changed nothing; tell what it claims to have trained and did not."""
    if made.base is None:
        return []
    if made.training is not None:
        check_base(made.training, made.base, differences, str(made.source))
    changed = any(found.changed for found in differences.values())
    if not changed and not made.contents.tensors.keys() - made.base.keys():
        told = " + ".join(part.name for part in made.parts)
        raise CheckpointError(
            f"{made.source} changes nothing: all {len(made.contents.tensors)} tensors are those of {told}",
            "name the file that was trained",
        )
    still: dict[str, list[bool]] = {}
    for name in made.training.names & differences.keys() if made.training is not None else ():
        still.setdefault(module_of(name), []).append(differences[name].changed)
    return [
        f"the file names {len(moved)} tensors of {module}, but none of them differs from the base's"
        for module, moved in sorted(still.items())
        if not any(moved)
    ]


def _write(made: Assembled, to: Form, out: Path, found: str) -> dict[str, str]:
    contents = made.contents
    room(out, sum(tensor.bytes for tensor in contents.tensors.values()) if to != "adapter" else _adapter_bytes(made))
    check = partial(_verify, out, to, contents, found)  # before the result takes its place
    if to == "folder":
        write_folder(out, contents, check=check)
    elif to == "pth":
        write_pth(out, contents, check=check)
    elif to == "sa2va":
        _write_sa2va(out, contents, check)
    else:
        assert made.training is not None and made.lora is not None
        write_adapter(out, contents, made.training, made.lora, made.parts, check=check)
    weights = sorted(out.glob("*.safetensors")) if out.is_dir() else [out]
    return {file.name: sha256(file) for file in weights}


def _write_sa2va(folder: Path, contents: Contents, check: Callable[[Path], None]) -> None:
    config, tensors, tokenizer = sa2va_folder(contents)
    with replacing(folder) as part:
        write_shards(part, tensors)
        for name, data in tokenizer.items():
            (part / safe_name(name, "the tokenizer's files")).write_bytes(data)
        (part / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        check(part)


def _verify(out: Path, to: Form, contents: Contents, found: str, written: Path) -> None:
    """Read a result back, while it lies beside its place, and compare it with what it was made from."""
    back: Mapping[str, LazyTensor]
    told: dict[str, Any]
    if to == "sa2va":
        parts = open_source(written)
        back, told = parts.tensors, {"model": _released(parts.model)}
        meant = {"model": _released(contents.model)}
    else:
        read = contents_of_adapter(written) if to == "adapter" else read_contents(written)[2]
        names = ("step", "model", "provenance", *(() if to == "adapter" else ("run_config", "tokenizer")))
        back, told = read.tensors, {name: getattr(read, name) for name in names}
        meant = {name: getattr(contents, name) for name in names}
    for name in meant:
        if told[name] != meant[name]:
            raise CheckpointError(f"{out}: its {name} comes back changed, so it is not written", "please report this")
    if fingerprint_of(back) != found:
        raise CheckpointError(f"{out} came back changed from the disk", "check the disk and convert again")


def _released(model: Mapping[str, Any]) -> dict[str, Any]:
    """What the released layout keeps of a model's config, beside the MLLM's own."""
    kept = {key: model[key] for key in ("mask_token", "clip_frames", "inference_mode")}
    kept["tiles"] = model.get("tiles", 1)  # checkpoints from before there were tiles
    return {**kept, "sam2": {**model["sam2"], "base": None}, "rotary": model["mllm"].get("rotary", "exact")}


def _adapter_bytes(made: Assembled) -> int:
    assert made.training is not None
    pairs = made.training.pairs.values()
    return sum(one.bytes for one in made.training.tensors.values()) + sum(p.up.bytes + p.down.bytes for p in pairs)
