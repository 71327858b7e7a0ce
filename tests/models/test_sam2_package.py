from __future__ import annotations

import pytest
from hydra.utils import instantiate
from pydantic import ValidationError

from salmacli.config.schema import Sam2Config
from salmacli.errors import ConfigError, UsageError
from salmacli.models.grounding import build_grounding
from salmacli.models.sam2_package import NAMES, named_sam2_config, package_config, package_yaml, sam2_config_of


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_of_the_package_is_told_by_our_fields(name):
    config = named_sam2_config(name)
    assert sam2_config_of(package_config(config)) == config
    assert config.image_size == 1024 and config.version == ("2.1" if "2.1" in name else "2")


def test_sizes_are_those_of_the_package():
    assert named_sam2_config("sam2_hiera_t") == Sam2Config()
    large, base = named_sam2_config("sam2_hiera_l"), named_sam2_config("sam2.1_hiera_b+")
    assert (large.embed_dim, large.heads, large.stages, large.windows) == (144, 2, (2, 6, 36, 4), (8, 4, 16, 8))
    assert (base.embed_dim, base.stages, base.background) == (112, (2, 3, 16, 3), (14, 14))


@pytest.mark.parametrize("name", ["sam2_hiera_t", "sam2.1_hiera_t"])
def test_what_we_build_is_what_the_package_builds(name):
    """Same tensors, same constants; only the class is our own."""
    ours, theirs = build_grounding(named_sam2_config(name)), instantiate(package_yaml(name), _recursive_=True)
    shapes = [{key: tuple(value.shape) for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    constants = [
        {key: value for key, value in vars(model).items() if isinstance(value, (int, float, bool, str))}
        for model in (ours, theirs)
    ]
    assert constants[0] == constants[1]


def test_what_our_fields_cannot_say_is_told():
    package = package_yaml("sam2_hiera_t")
    with pytest.raises(ConfigError, match="num_maskmem: 3"):
        sam2_config_of({**package, "num_maskmem": 3})
    package["memory_attention"]["layer"]["activation"] = "gelu"
    with pytest.raises(ConfigError, match=r"memory_attention\.layer\.activation: gelu"):
        sam2_config_of(package)
    with pytest.raises(ConfigError, match="lacks image_encoder"):
        sam2_config_of({})
    with pytest.raises(UsageError, match="sam2_hiera_x"):
        named_sam2_config("sam2_hiera_x")


@pytest.mark.parametrize("size", ["big", 257, -256, 0, 1_000_000_000, "${nobody}", None, [1]])
def test_sizes_that_no_model_has_are_told_in_one_line(size):
    with pytest.raises(ConfigError, match="image_size") as caught:
        sam2_config_of({**package_yaml("sam2_hiera_t"), "image_size": size})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("part", ["text", None, 3])
def test_sections_that_are_none_are_told(part):
    with pytest.raises(ConfigError, match="cannot be followed"):
        sam2_config_of({**package_yaml("sam2_hiera_t"), "image_encoder": part})


@pytest.mark.parametrize(
    "field", ["heads", "embed_dim", "width", "memory_width", "memory_layers", "memory_feedforward", "image_size"]
)
@pytest.mark.parametrize("value", [0, -32])
def test_our_own_sizes_are_positive(field, value):
    with pytest.raises(ValidationError, match=field):
        Sam2Config.model_validate({field: value})
