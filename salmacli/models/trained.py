"""What trains: the model's parameters by part, and the parts of each recipe.

Every parameter is in one part, so that what is frozen is as plain as what is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import Parameter

from salmacli.config.schema import RunConfig
from salmacli.models.lora import NEW_ROWS, add_lora, add_new_rows
from salmacli.models.quantize import quantize
from salmacli.models.salma import Salma

Parts: TypeAlias = dict[str, dict[str, Parameter]]

LORA, NEW = "LoRA of the LLM", "rows of new tokens"
PROJECTOR, TOWER = "vision-language projector", "vision tower"
EMBEDDING, LLM, HEAD = "token embedding", "language model", "language head"
TEXT, CMA = "text projector", "cross-modal attention"
ENCODER, DECODER = "SAM 2 image encoder", "SAM 2 mask decoder"
MEMORY, PROPAGATION, PROMPTS = "SAM 2 memory", "SAM 2 propagation decoder", "SAM 2 prompts"

_OUTSIDE = (TEXT, DECODER, CMA)
_RECIPES: dict[str, tuple[str, ...]] = {
    "lora": (LORA, PROJECTOR, *_OUTSIDE),
    "full": (PROJECTOR, EMBEDDING, LLM, HEAD, *_OUTSIDE),
    "decoder-only": _OUTSIDE,
    "cma-only": (CMA,),
}
_VOCABULARY: dict[str, tuple[str, ...]] = {"all": (EMBEDDING, HEAD), "new": (NEW,), "none": ()}
_MEMORY_PARAMETERS = ("maskmem_tpos_enc", "no_obj_ptr", "no_obj_embed_spatial")


def prepare_training(model: Salma, config: RunConfig, *, bf16: bool) -> None:
    """Freeze what the recipe leaves alone, and give the LLM adapters where it asks for them; in place.

    Args:
        model: freshly built, on any device and not yet wrapped.
        config: the whole run.
        bf16: whether matrices are multiplied in bfloat16 (autocast).

    Raises:
        ConfigError: LoRA's modules are not in this LLM, or bitsandbytes is asked for and missing.
    """
    train = config.train
    if train.quantize is not None:
        quantize(model.mllm, train.quantize, torch.bfloat16 if bf16 else torch.float32)
    if train.recipe == "lora":
        add_lora(model.mllm, train.lora, config.seed)
        if train.vocabulary == "new":
            add_new_rows(model.mllm, model.tokenizer)
    model.requires_grad_(False)
    for part in trained_parts(model, config).values():
        for parameter in part.values():
            parameter.requires_grad_(True)
    if bf16:
        _round_frozen(model.mllm)


def trained_parts(model: Salma, config: RunConfig) -> Parts:
    """Parts by name that training must move, each with its parameters by name; a parameter is in one part only.

    Sharding replaces parameters, so ask again after it.
    """
    wanted, idle = _wanted(model, config), _without_gradient(model, config)
    found = {
        part: {name: parameter for name, parameter in parameters.items() if not name.startswith(idle)}
        for part, parameters in parts_of(model).items()
        if part in wanted
    }
    return {part: parameters for part, parameters in found.items() if parameters}


def parts_of(model: Salma) -> Parts:
    """All parameters, each in one part; of tied ones the first. Parts without any are left out."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts: Parts = {}
    for part, members in _members(model):
        mine = {names.pop(id(member)): member for member in members if id(member) in names}
        if mine:
            parts[part] = mine
    assert not names, f"no part has {', '.join(names.values())}"
    return parts


def _members(model: Salma) -> Iterable[tuple[str, Iterable[Parameter]]]:
    """Parts in the order in which they are told, and what they have unless a part before them has it."""
    mllm, sam2 = model.mllm.parts(), model.grounding
    llm = dict(model.mllm.model.named_parameters())
    memory = (sam2.memory_attention, sam2.memory_encoder, sam2.obj_ptr_proj, sam2.obj_ptr_tpos_proj)
    # A mask that is given becomes a pointer by way of these.
    given = (sam2.mask_downsample, sam2.sam_prompt_encoder.mask_downscaling)
    own = [getattr(sam2, name, None) for name in _MEMORY_PARAMETERS]
    yield PROJECTOR, mllm["vision-language projector"].parameters()  # some families have it inside the tower
    yield TOWER, mllm["vision tower"].parameters()
    yield LORA, [parameter for name, parameter in llm.items() if ".lora_" in name]
    yield NEW, [parameter for name, parameter in llm.items() if name.endswith(NEW_ROWS)]
    yield EMBEDDING, model.mllm.model.get_input_embeddings().parameters()
    yield LLM, mllm["language model"].parameters()
    yield HEAD, mllm["language head"].parameters()
    yield TEXT, model.text_hidden_fcs.parameters()
    yield CMA, _parameters(model.cma)
    yield DECODER, sam2.sam_mask_decoder.parameters()
    yield PROPAGATION, _parameters(sam2.propagation_decoder)
    yield MEMORY, [*_parameters(*memory, *given), *(one for one in own if one is not None)]
    yield ENCODER, sam2.image_encoder.parameters()
    yield PROMPTS, sam2.parameters()


def _parameters(*modules: nn.Module | None) -> list[Parameter]:
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def _wanted(model: Salma, config: RunConfig) -> set[str]:
    train = config.train
    wanted = {*_RECIPES[train.recipe]}
    if train.recipe == "lora":
        wanted |= {*_VOCABULARY[train.vocabulary]}
    # With any base the encoders are pretrained: a base that is no whole model needs the other one beside it.
    if train.recipe == "full" and model.config.mllm.base is None and model.config.sam2.base is None:
        wanted |= {TOWER, ENCODER}
    if train.memory and train.recipe != "cma-only":
        wanted |= {MEMORY, PROPAGATION}
    return wanted


def _without_gradient(model: Salma, config: RunConfig) -> tuple[str, ...]:
    """Beginnings of names inside parts that train, of what no loss reaches: weight decay would wear it down."""
    sam2, losses, memory = "grounding.", config.losses, config.train.memory
    followed = "propagation_decoder" if model.grounding.propagation_decoder is not None else "sam_mask_decoder"
    masks = {
        "sam_mask_decoder": {0} if model.config.mask_token == "single" else {1, 2, 3},
        "propagation_decoder": set(),
    }
    if memory:
        masks[followed] |= {1, 2, 3}  # as SAM 2 itself, which has three masks and takes the best while it follows
    idle = []
    for decoder, used in masks.items():
        idle += [f"{sam2}{decoder}.output_hypernetworks_mlps.{mask}." for mask in {0, 1, 2, 3} - used]
        if not losses.iou:
            idle.append(f"{sam2}{decoder}.iou_prediction_head.")
        if not (memory and losses.presence):
            idle.append(f"{sam2}{decoder}.pred_obj_score_head.")
    return tuple(idle)


def _round_frozen(mllm: nn.Module) -> None:
    """Keep frozen matrices of the MLLM as autocast would round them at every use; everything else stays exact.

    Released MLLMs are bfloat16, so nothing is lost. Embeddings, norms and scales are added or multiplied in float32.
    """
    inside: dict[int, Parameter] = {}
    outside: set[int] = set()
    for module in mllm.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                outside.add(id(parameter))  # a head may be the embedding, too
            elif parameter.is_floating_point() and not parameter.requires_grad:
                inside[id(parameter)] = parameter
    for key in inside.keys() - outside:
        inside[key].data = inside[key].data.to(torch.bfloat16)
