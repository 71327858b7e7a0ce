"""Our configuration of SAM 2 ↔ the `sam2` package's own YAML files.

The package's file for Hiera-L gives every constant; our fields replace what the sizes and versions differ in. So a
model is what the package would build, and whatever our fields cannot say is told, not dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError
from sam2.modeling.backbones.hieradet import Hiera

from salmacli.config.schema import Sam2Config
from salmacli.errors import ConfigError, UsageError

SIZES = ("t", "s", "b+", "l")
VERSIONS = ("2", "2.1")
NAMES = tuple(f"sam{version}_hiera_{size}" for version in VERSIONS for size in SIZES)

_MEND = "see the sam2 package's configs/"
# Neither changes what is computed: RoPE follows the size of its input, compilation is decided where the model runs.
_WITHOUT_EFFECT = ("feat_sizes", "compile_image_encoder")
_TRUNK = {
    "embed_dim": "embed_dim",
    "num_heads": "heads",
    "stages": "stages",
    "global_att_blocks": "global_attention",
    "window_spec": "windows",
    "window_pos_embed_bkg_spatial_size": "background",
}


def package_yaml(name: str) -> dict[str, Any]:
    """The model section of one of the package's files, as plain data.

    Args:
        name: one of `NAMES`.

    Raises:
        UsageError: the package has no such file.
    """
    if name not in NAMES:
        raise UsageError(f"the sam2 package has no configuration {name!r}", f"take one of {', '.join(NAMES)}")
    folder = resources.files("sam2") / "configs" / name.partition("_")[0]
    text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    content: Any = OmegaConf.to_container(OmegaConf.create(text))  # PyYAML would read its 1e-6 as a text
    return dict(content["model"])


@cache
def named_sam2_config(name: str) -> Sam2Config:
    """Our configuration of one of the package's models, such as ``sam2_hiera_l`` or ``sam2.1_hiera_b+``.

    Raises:
        UsageError: the package has no such file.
    """
    return sam2_config_of(package_yaml(name))


def sam2_config_of(package: Mapping[str, Any]) -> Sam2Config:
    """Our configuration of a model section in the package's form.

    Raises:
        ConfigError: it lacks a part, or says something that our fields cannot; the key is named.
    """
    try:
        encoder, attention, memory = (package[key] for key in ("image_encoder", "memory_attention", "memory_encoder"))
        trunk = {**_trunk_defaults(), **encoder["trunk"]}
        config = Sam2Config(
            version="2.1" if package.get("add_tpos_enc_to_obj_ptrs") else "2",
            image_size=package["image_size"],
            width=encoder["neck"]["d_model"],
            memory_width=memory["out_dim"],
            memory_layers=attention["num_layers"],
            memory_feedforward=attention["layer"]["dim_feedforward"],
            object_scores=package["pred_obj_scores"],
            **{ours: trunk[theirs] for theirs, ours in _TRUNK.items()},
        )
    except KeyError as error:
        raise ConfigError(f"the SAM 2 configuration lacks {error.args[0]}", _MEND) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = f"{key}: {first['msg']}, not {str(first['input'])[:80]}" if key else first["msg"]
        raise ConfigError(f"the SAM 2 configuration is not valid ({what})", _MEND) from None
    except (TypeError, AttributeError) as error:  # a section that is none
        raise ConfigError(f"the SAM 2 configuration cannot be followed ({error})", _MEND) from None
    built = dict(flat(package_config(config)))
    for key, value in flat({**package, "image_encoder": {**encoder, "trunk": trunk}}):
        last = key.rpartition(".")[2]
        if last not in (*_WITHOUT_EFFECT, "_target_") and _plain(built.get(key)) != _plain(value):
            raise ConfigError(
                f"the SAM 2 configuration says {key}: {value}, which SALMA does not build",
                f"it builds {built.get(key)}",
            )
    return config


def package_config(config: Sam2Config) -> dict[str, Any]:
    """The model section, in the package's form, that our configuration stands for; it builds a plain SAM 2."""
    package = package_yaml(f"sam{config.version}_hiera_l")
    width, grid = config.width, config.image_size // 16
    package["image_size"] = config.image_size
    encoder = package["image_encoder"]
    encoder["trunk"].update({theirs: _plain(getattr(config, ours)) for theirs, ours in _TRUNK.items()})
    encoder["neck"]["d_model"] = encoder["neck"]["position_encoding"]["num_pos_feats"] = width
    encoder["neck"]["backbone_channel_list"] = [config.embed_dim * 2**stage for stage in (3, 2, 1, 0)]
    attention = package["memory_attention"]
    layer = attention["layer"]
    attention["d_model"] = layer["d_model"] = width
    attention["num_layers"], layer["dim_feedforward"] = config.memory_layers, config.memory_feedforward
    for kind in ("self_attention", "cross_attention"):
        layer[kind].update(embedding_dim=width, feat_sizes=[grid, grid])
    layer["cross_attention"]["kv_in_dim"] = config.memory_width
    memory = package["memory_encoder"]
    memory["out_dim"] = memory["position_encoding"]["num_pos_feats"] = config.memory_width
    memory["fuser"]["layer"]["dim"] = width
    if width != 256:  # the package's own widths, where its files leave them out
        memory["in_dim"] = memory["mask_downsampler"]["embed_dim"] = width
    if not config.object_scores:
        package.update(pred_obj_scores=False, pred_obj_scores_mlp=False, fixed_no_obj_ptr=False)
        package.pop("no_obj_embed_spatial", None)
    return package


def _trunk_defaults() -> dict[str, Any]:
    """What Hiera takes where a file says nothing."""
    parameters = inspect.signature(Hiera.__init__).parameters
    return {key: parameters[key].default for key in _TRUNK}


def flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested configuration by its dotted path."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _plain(value: Any) -> Any:
    """Lists for tuples."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
