from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.sources.sam2_configs import check_sam2, config_beside, read_sam2_config, released_config
from salmacli.config.schema import Sam2Config
from salmacli.errors import CheckpointError, ConfigError, UsageError
from salmacli.models.grounding import build_grounding
from salmacli.models.sam2_package import NAMES, named_sam2_config

SMALL = Sam2Config(
    image_size=128, embed_dim=16, stages=(1, 2, 3, 1), global_attention=(4,), windows=(8, 4, 7, 4), width=64,
    memory_width=16, memory_layers=1, memory_feedforward=32, decoder_feedforward=32,
)  # fmt: skip


def outlines(config: Sam2Config) -> dict[str, LazyTensor]:
    with init_empty_weights():
        model = build_grounding(config)
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: torch.empty(0))
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_shapes_tell_size_and_version(name: str) -> None:
    tensors = outlines(named_sam2_config(name))
    assert released_config(tensors, name) == named_sam2_config(name)
    check_sam2(named_sam2_config(name), tensors, name)
    wrong = next(other for other in NAMES if other != name)
    with pytest.raises(CheckpointError, match="is not that of the SAM 2 in it"):
        check_sam2(named_sam2_config(wrong), tensors, "it")


def test_another_size_is_none_of_the_released() -> None:
    tensors = outlines(SMALL)
    assert released_config(tensors, "it") is None
    check_sam2(SMALL, tensors, "it")
    for field, value in {
        "embed_dim": 32,
        "stages": (1, 2, 2, 1),
        "width": 96,
        "memory_layers": 2,
        "version": "2.1",
    }.items():
        with pytest.raises(CheckpointError, match=field):
            check_sam2(SMALL.model_copy(update={field: value}), tensors, "it")


def test_an_incomplete_sam2_is_told() -> None:
    tensors = outlines(SMALL)
    del tensors["maskmem_tpos_enc"]
    with pytest.raises(CheckpointError, match="it lacks SAM 2's maskmem_tpos_enc"):
        released_config(tensors, "it")
    no_trunk = {name: tensor for name, tensor in outlines(SMALL).items() if ".blocks.6." not in name}
    with pytest.raises(CheckpointError, match="3 stages"):
        released_config(no_trunk, "it")


@pytest.mark.parametrize(
    "source", ["sam2.1_hiera_b+", "sam2.1_hiera_b+.yaml", "configs/sam2.1/sam2.1_hiera_b+.yaml", "package"]
)
def test_the_packages_own_files(source: str) -> None:
    if source == "package":
        import sam2

        source = str(Path(sam2.__file__).parent / "configs" / "sam2.1" / "sam2.1_hiera_b+.yaml")
    assert read_sam2_config(source) == named_sam2_config("sam2.1_hiera_b+")


def test_our_own_fields_and_sections_of_larger_files(tmp_path: Path) -> None:
    fields = SMALL.model_dump(mode="json")
    for content in (fields, {"sam2": fields}, {"model": {"sam2": fields, "mllm": {}}}):
        (tmp_path / "own.json").write_text(json.dumps(content))
        (tmp_path / "own.yaml").write_text(json.dumps(content))  # YAML holds JSON
        assert read_sam2_config(tmp_path / "own.json") == SMALL
        assert read_sam2_config(str(tmp_path / "own.yaml")) == SMALL


def test_a_released_one_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    like = {
        "like": "sam2_hiera_l.yaml, except",
        "image_size": 256,
        "trunk": {"embed_dim": 16, "num_heads": 1, "stages": [1, 2, 3, 1], "global_att_blocks": [4]},
        "trunk.window_spec": [8, 4, 7, 4],
        "neck.backbone_channel_list": [128, 64, 32, 16],
        "memory_attention": {"num_layers": 2},
        "rope feat_sizes": [32, 32],
    }
    path.write_text(json.dumps({"note": "beside a model", "sam2": like}))
    config = read_sam2_config(path)
    assert (config.image_size, config.embed_dim, config.heads, config.stages) == (256, 16, 1, (1, 2, 3, 1))
    assert (config.global_attention, config.windows, config.memory_layers) == ((4,), (8, 4, 7, 4), 2)
    assert config.width == named_sam2_config("sam2_hiera_l").width
    assert config_beside(tmp_path) == (config, path)
    path.write_text(json.dumps(like))
    assert read_sam2_config(path) == config
    assert config_beside(tmp_path) is None  # only what says so under the key sam2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sam2": {"like": "sam3"}}, "names none of the sam2 package's files"),
        ({"like": "sam2_hiera_l", "nobody.embed_dim": 16}, "nobody.embed_dim has 0 places"),
        ({"like": "sam2_hiera_l", "layer.dropout": 0.2}, "layer.dropout has 2 places"),
        ({"like": "sam2_hiera_l", "trunk.embed_dim": 16}, "backbone_channel_list"),
        ({"like": "sam2_hiera_l", "num_maskmem": 3}, "num_maskmem: 3, which SALMA does not build"),
        ({"embed_dims": 16}, "sam2.embed_dims: Extra inputs"),
        ([1], "holds no SAM 2 configuration"),
    ],
)
def test_what_cannot_be_meant_is_told(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_sam2_config(tmp_path / "it.json")


def test_a_missing_or_broken_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.yaml is missing"):
        read_sam2_config(tmp_path / "no.yaml")
    with pytest.raises(UsageError, match="no configuration 'sam2_hiera_xl'"):
        read_sam2_config("sam2_hiera_xl")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_sam2_config(tmp_path / "bad.yaml")


def test_a_yaml_that_holds_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text("like: sam2_hiera_l\ntrunk: &a\n  again: *a\n")
    with pytest.raises(ConfigError, match=r"loop\.yaml cannot be read as YAML"):
        read_sam2_config(tmp_path / "loop.yaml")
