"""Which SAM 2 it is: told by a name, a file, or the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.config.files import read_json
from salmacli.config.loading import first_fault
from salmacli.config.schema import Sam2Config
from salmacli.errors import CheckpointError, ConfigError, UsageError
from salmacli.models.sam2_package import NAMES, flat, named_sam2_config, package_yaml, sam2_config_of

_NAME = re.compile("|".join(re.escape(name) for name in sorted(NAMES, key=len, reverse=True)))
Given = str | Path | Mapping[str, Any]  # what `read_sam2_config` takes
_FORMS = "the sam2 package's form, SALMA's own fields, or {like: sam2_hiera_l, …}"


def read_sam2_config(source: Given) -> Sam2Config:
    """A SAM 2's configuration.

    Args:
        source: One of the package's names (``sam2.1_hiera_b+``, with or without ``configs/…`` and ``.yaml``), or a
            YAML or JSON file in the package's form, in the form of our own ``sam2`` section, or one that names a
            package's file as ``like`` and says what differs; or what such a file holds.

    Raises:
        UsageError: It is no file and the package has none of that name.
        ConfigError: The file cannot be read, or says something that SALMA does not build.
    """
    if isinstance(source, Mapping):
        return sam2_config_from(source, "the given configuration")
    path = Path(source)
    if path.is_file():
        return sam2_config_from(_read(path), str(path))
    name = path.name.removesuffix(".yaml")
    if name not in NAMES and path.suffix in (".yaml", ".yml", ".json"):
        raise UsageError(f"{path} is missing", f"name a file, or one of {', '.join(NAMES)}")
    return named_sam2_config(name)


def sam2_config_from(content: Any, where: str) -> Sam2Config:
    """A SAM 2's configuration from plain data in one of the forms of `read_sam2_config`.

    Raises:
        ConfigError: It has none of these forms, or says something that SALMA does not build.
    """
    for key in ("model", "sam2"):  # a section of a larger file
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} holds no SAM 2 configuration", f"write it in {_FORMS}")
    if "like" in content:
        return _like(content, where)
    if "image_encoder" in content:
        return sam2_config_of(content)
    try:
        return Sam2Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_fault(error, 'sam2')}", f"write it in {_FORMS}") from None


def config_beside(folder: Path) -> tuple[Sam2Config, Path] | None:
    """The configuration that a ``*.json`` of a folder gives in its ``sam2: {like: …}``, and that file."""
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        section = content.get("sam2") if isinstance(content, Mapping) else None
        if isinstance(section, Mapping) and "like" in section:
            return sam2_config_from(content, str(path)), path
    return None


def released_config(tensors: Mapping[str, LazyTensor], where: str) -> Sam2Config | None:
    """The released SAM 2 that has tensors of these shapes, if there is one.

    Args:
        tensors: By official name.
        where: The file, for messages.

    Raises:
        CheckpointError: The tensors are not those of any SAM 2.
    """
    outline = _outline(tensors, where)
    for name in NAMES:
        config = named_sam2_config(name)
        if all(getattr(config, key) == value for key, value in outline.items() if key != "first_window"):
            return config
    return None


def check_sam2(config: Sam2Config, tensors: Mapping[str, LazyTensor], where: str) -> None:
    """See that a configuration is of these tensors, as far as their shapes show it.

    Raises:
        CheckpointError: It is of others; what differs is named.
    """
    said = {**config.model_dump(), "first_window": config.windows[0]}
    found = _outline(tensors, where).items()
    if differing := [f"{key} {said[key]} instead of {value}" for key, value in found if said[key] != value]:
        raise CheckpointError(
            f"the configuration is not that of the SAM 2 in {where}: it says {', '.join(differing)}",
            "name the right one with --sam2-config",
        )


def _outline(tensors: Mapping[str, LazyTensor], where: str) -> dict[str, Any]:
    """Fields of `Sam2Config` that shapes show."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"{where} lacks SAM 2's {name}", "it is incomplete: download it again")
        return tensors[name].shape

    trunk, memory = "image_encoder.trunk.", "memory_attention.layers.{}.linear1.weight"
    blocks = _counted(tensors, trunk + "blocks.{}.attn.proj.weight")
    stages = tuple(len(list(group)) for _, group in groupby(blocks))
    if len(stages) != 4:
        raise CheckpointError(f"{where}: SAM 2's image encoder has {len(stages)} stages, not four", "it is incomplete")
    return {
        "version": "2.1" if "obj_ptr_tpos_proj.weight" in tensors else "2",
        "embed_dim": shape(trunk + "patch_embed.proj.weight")[0],
        "stages": stages,
        "background": shape(trunk + "pos_embed")[2:],
        "first_window": shape(trunk + "pos_embed_window")[2],
        "width": shape("no_mem_embed")[2],
        "memory_width": shape("maskmem_tpos_enc")[3],
        "memory_layers": len(_counted(tensors, memory)),
        "memory_feedforward": shape(memory.format(0))[0],
        "decoder_feedforward": shape("sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight")[0],
        "object_scores": "sam_mask_decoder.obj_score_token.weight" in tensors,
    }


def _counted(tensors: Mapping[str, LazyTensor], template: str) -> list[int]:
    """First sizes of the tensors that are numbered from 0."""
    sizes: list[int] = []
    while (name := template.format(len(sizes))) in tensors:
        sizes.append(tensors[name].shape[0])
    return sizes


def _like(content: Mapping[str, Any], where: str) -> Sam2Config:
    """``{"like": "sam2_hiera_l.yaml, except", "trunk": {…}, "neck.backbone_channel_list": […], …}``."""
    base = _NAME.search(str(content["like"]))
    if base is None:
        raise ConfigError(
            f"{where}: sam2.like names none of the sam2 package's files", f"name one of {', '.join(NAMES)}"
        )
    package = package_yaml(base.group())
    for key, value in flat({key: value for key, value in content.items() if key != "like"}):
        *parents, last = re.split(r"[. ]", key)
        if last == "feat_sizes":
            continue  # RoPE follows the size of its input
        places = list(_sections(package, tuple(parents)))
        if len(places) != 1:
            raise ConfigError(
                f"{where}: sam2.{key} has {len(places)} places in {base.group()}.yaml", "write its whole path"
            )
        places[0][last] = value
    return sam2_config_of(package)


def _sections(node: dict[str, Any], end: tuple[str, ...], path: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """All sections whose path ends so; the root for an empty end."""
    if path[len(path) - len(end) :] == end if end else not path:
        yield node
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _sections(value, end, (*path, key))


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        return read_json(path)
    try:  # PyYAML itself would read the package's 1e-6 as a text
        return OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error})", f"write it in {_FORMS}") from error
