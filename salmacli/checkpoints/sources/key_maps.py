"""Tensor names of published models ↔ SALMA's, each by an explicit rule; a name without a rule is an error.

Everything works on `LazyTensor`: nothing is read before it is needed. SALMA's names are those of transformers' own
classes behind ``mllm.model.``, those of the `sam2` package behind ``grounding.``, and ``text_hidden_fcs.…``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import first_few
from salmacli.checkpoints.sources.fused import Fusion, Heads, interleaved, stacked
from salmacli.errors import CheckpointError

Tensors = Mapping[str, LazyTensor]

MLLM, GROUNDING, SA2VA_SAM2 = "mllm.model.", "grounding.", "grounding_encoder.sam2_model."
EMBEDDING, HEAD = MLLM + "model.language_model.embed_tokens.weight", MLLM + "lm_head.weight"
VOCABULARY = (EMBEDDING, HEAD)  # tensors that get rows when tokens are added

# The only tensor that models have in their files and compute positions with; of them rounding takes whole degrees.
TABLES = (GROUNDING + "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",)

_VISION = "model.vision_tower.encoder.layer.{n}."
_LAYER = "model.language_model.layers.{n}."
# {n} is a number, {p} weight or bias, {q} q, k or v; {a} and {m} are members of a Llama-like attention and MLP.
_PLACEHOLDERS = {
    "n": r"\d+",
    "p": r"weight|bias",
    "q": r"[qkv]",
    "a": r"[qkvo]_proj\.(?:weight|bias)|[qk]_norm\.weight",
    "m": r"(?:gate|up|down)_proj\.(?:weight|bias)",
}
_VISION_NAMES = {
    "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": "model.vision_tower.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.{p}": "model.vision_tower.embeddings.patch_embeddings.projection.{p}",
    "vision_model.encoder.layers.{n}.attn.proj.{p}": _VISION + "attention.projection_layer.{p}",
    "vision_model.encoder.layers.{n}.attn.q_norm.weight": _VISION + "attention.q_norm.weight",
    "vision_model.encoder.layers.{n}.attn.k_norm.weight": _VISION + "attention.k_norm.weight",
    "vision_model.encoder.layers.{n}.norm1.{p}": _VISION + "layernorm_before.{p}",
    "vision_model.encoder.layers.{n}.norm2.{p}": _VISION + "layernorm_after.{p}",
    "vision_model.encoder.layers.{n}.ls1": _VISION + "lambda_1",
    "vision_model.encoder.layers.{n}.ls2": _VISION + "lambda_2",
    "vision_model.encoder.layers.{n}.mlp.fc1.{p}": _VISION + "mlp.fc1.{p}",
    "vision_model.encoder.layers.{n}.mlp.fc2.{p}": _VISION + "mlp.fc2.{p}",
    "mlp1.0.{p}": "model.multi_modal_projector.layer_norm.{p}",
    "mlp1.1.{p}": "model.multi_modal_projector.linear_1.{p}",
    "mlp1.3.{p}": "model.multi_modal_projector.linear_2.{p}",
}
_LLAMA_NAMES = {  # Qwen2, Qwen3 and Llama
    "language_model.model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "language_model.model.norm.weight": "model.language_model.norm.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "language_model.model.layers.{n}.input_layernorm.weight": _LAYER + "input_layernorm.weight",
    "language_model.model.layers.{n}.post_attention_layernorm.weight": _LAYER + "post_attention_layernorm.weight",
    "language_model.model.layers.{n}.self_attn.{a}": _LAYER + "self_attn.{a}",
    "language_model.model.layers.{n}.mlp.{m}": _LAYER + "mlp.{m}",
}
_INTERNLM2_NAMES = {
    "language_model.model.tok_embeddings.weight": "model.language_model.embed_tokens.weight",
    "language_model.model.norm.weight": "model.language_model.norm.weight",
    "language_model.output.weight": "lm_head.weight",
    "language_model.model.layers.{n}.attention_norm.weight": _LAYER + "input_layernorm.weight",
    "language_model.model.layers.{n}.ffn_norm.weight": _LAYER + "post_attention_layernorm.weight",
    "language_model.model.layers.{n}.attention.wo.{p}": _LAYER + "self_attn.o_proj.{p}",
    "language_model.model.layers.{n}.feed_forward.w1.{p}": _LAYER + "mlp.gate_proj.{p}",
    "language_model.model.layers.{n}.feed_forward.w2.{p}": _LAYER + "mlp.down_proj.{p}",
    "language_model.model.layers.{n}.feed_forward.w3.{p}": _LAYER + "mlp.up_proj.{p}",
}
_VISION_FUSED = ("vision_model.encoder.layers.{n}.attn.qkv.{p}", _VISION + "attention.{q}_proj.{p}")
_INTERNLM2_FUSED = ("language_model.model.layers.{n}.attention.wqkv.{p}", _LAYER + "self_attn.{q}_proj.{p}")
_SAM2_PARTS = re.compile(
    r"(image_encoder|memory_attention|memory_encoder|sam_prompt_encoder|sam_mask_decoder|mask_downsample|obj_ptr_proj|"
    r"obj_ptr_tpos_proj)\.|(maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
)
# Computed from the configuration when a model is built; old files hold copies.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
_TEXT_HIDDEN_FCS = re.compile(r"text_hidden_fcs\.[02]\.(weight|bias)")
_SCALE = re.compile(r"(memory_encoder\.fuser\.layers\.\d+)\.(gamma|g_weight)")


def internvl_to_native(tensors: Tensors, heads: Heads | None = None) -> dict[str, LazyTensor]:
    """InternVL's original names → those of transformers' ``InternVLForConditionalGeneration``.

    Args:
        tensors: by original name.
        heads: of the language model if it is an InternLM2, else None.

    Raises:
        CheckpointError: some names have no rule, two lead to the same one, or a matrix cannot be split.
    """
    names, fusions = _internvl(heads)
    found, rest = {}, dict(tensors)
    for fusion in fusions:
        pattern = _pattern(fusion.original)
        for name in [name for name in rest if pattern.fullmatch(name)]:
            here = pattern.fullmatch(name).groupdict()  # type: ignore[union-attr]
            for q, part in zip("qkv", fusion.split(rest.pop(name)), strict=True):
                found[fusion.native.format(**here, q=q)] = part
    return _merged(found, _renamed(rest, names, "InternVL's original layout"))


def native_to_internvl(tensors: Tensors, heads: Heads | None = None) -> dict[str, LazyTensor]:
    """The inverse of `internvl_to_native`.

    Raises:
        CheckpointError: some names have no rule, or of q, k and v not all three are there.
    """
    names, fusions = _internvl(heads)
    found, rest = {}, dict(tensors)
    for fusion in fusions:
        for original, three in _triples(rest, fusion).items():
            if len(three) < 3:
                raise CheckpointError(
                    f"of q, k and v only {', '.join(three.values())} is there", "the source is incomplete"
                )
            found[original] = fusion.join([rest.pop(three[q]) for q in "qkv"])
    back = {native: original for original, native in names.items()}
    return _merged(found, _renamed(rest, back, "transformers' InternVL"))


def older_native_to_native(tensors: Tensors) -> dict[str, LazyTensor]:
    """Names that transformers 4 gave InternVL and Qwen-VL → those of transformers 5, which stay.

    Raises:
        CheckpointError: two names lead to the same one.
    """
    older = (
        (re.compile(r"^language_model\.lm_head\."), "lm_head."),
        (re.compile(r"^language_model\.(model\.)?"), "model.language_model."),
        (re.compile(r"^(vision_tower|multi_modal_projector|visual)\."), r"model.\1."),
        (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"model.language_model.\1."),
    )
    return _merged(
        *(
            {next((rule.sub(new, name) for rule, new in older if rule.search(name)), name): tensor}
            for name, tensor in tensors.items()
            if not _COMPUTED.search(name)
        )
    )


def check_native_internvl(tensors: Tensors) -> None:
    """See that every name is one of transformers' InternVL.

    Raises:
        CheckpointError: some are not.
    """
    native = [*_VISION_NAMES.values(), _VISION_FUSED[1], *_LLAMA_NAMES.values()]
    _renamed(tensors, {name: name for name in native}, "transformers' InternVL")


def sam2_to_salma(tensors: Tensors) -> dict[str, LazyTensor]:
    """Names of an official SAM 2 → SALMA's.

    Raises:
        CheckpointError: some names are none of SAM 2's.
    """
    _no_leftovers([name for name in tensors if not _SAM2_PARTS.match(name) or name.endswith(".g_weight")], "SAM 2")
    return {GROUNDING + name: tensor for name, tensor in tensors.items()}


def sa2va_to_salma(tensors: Tensors, heads: Heads | None = None) -> dict[str, LazyTensor]:
    """Names of a released Sa2VA → SALMA's.

    Args:
        tensors: by released name, LoRA merged.
        heads: of the language model if it is an InternLM2, else None.

    Raises:
        CheckpointError: some names have no rule, or a matrix cannot be split.
    """
    sam2 = {name.removeprefix(SA2VA_SAM2): tensors[name] for name in tensors if name.startswith(SA2VA_SAM2)}
    if gammas := [name for name in sam2 if _SCALE.fullmatch(name) and name.endswith(".gamma")]:
        raise CheckpointError(
            f"a released Sa2VA says g_weight for {first_few(gammas)}",
            "something has renamed tensors of this file: download it again",
        )
    projector = {name: tensors[name] for name in tensors if _TEXT_HIDDEN_FCS.fullmatch(name)}
    mllm = {n: tensors[n] for n in tensors if n not in projector and not n.startswith(SA2VA_SAM2)}
    native = internvl_to_native(mllm, heads)
    return _merged(
        {MLLM + name: tensor for name, tensor in native.items()},
        sam2_to_salma({_SCALE.sub(r"\1.gamma", name): tensor for name, tensor in sam2.items()}),
        projector,
    )


def salma_to_sa2va(tensors: Tensors, heads: Heads | None = None) -> dict[str, LazyTensor]:
    """The inverse of `sa2va_to_salma`.

    Raises:
        CheckpointError: some tensors, such as those of the cross-modal attention, have no place in a released Sa2VA.
    """
    mllm = {name.removeprefix(MLLM): tensors[name] for name in tensors if name.startswith(MLLM)}
    sam2 = {name.removeprefix(GROUNDING): tensors[name] for name in tensors if name.startswith(GROUNDING)}
    projector = {name: tensors[name] for name in tensors if _TEXT_HIDDEN_FCS.fullmatch(name)}
    others = [name for name in tensors if not name.startswith((MLLM, GROUNDING, *projector))]
    others += [GROUNDING + name for name in sam2 if not _SAM2_PARTS.match(name)]
    _no_leftovers(others, "a released Sa2VA")
    return _merged(
        native_to_internvl(mllm, heads),
        {SA2VA_SAM2 + _SCALE.sub(r"\1.g_weight", name): tensor for name, tensor in sam2.items()},
        projector,
    )


def _internvl(heads: Heads | None) -> tuple[dict[str, str], list[Fusion]]:
    """Original → native names, and what is one there and three here."""
    vision = stacked(*_VISION_FUSED)
    if heads is None:
        return _VISION_NAMES | _LLAMA_NAMES, [vision]
    return _VISION_NAMES | _INTERNLM2_NAMES, [vision, interleaved(*_INTERNLM2_FUSED, heads)]


def _triples(tensors: Tensors, fusion: Fusion) -> dict[str, dict[str, str]]:
    """Fused name → q, k and v → the names of those that are there."""
    pattern = _pattern(fusion.native)
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := pattern.fullmatch(name):
            here = match.groupdict()
            q = here.pop("q")
            found.setdefault(fusion.original.format(**here), {})[q] = name
    return found


def _renamed(tensors: Tensors, names: Mapping[str, str], layout: str) -> dict[str, LazyTensor]:
    rules = [(_pattern(old), new) for old, new in names.items()]
    pairs, leftovers = [], []
    for name, tensor in tensors.items():
        matches = ((rule.fullmatch(name), new) for rule, new in rules)
        if new_name := next((new.format(**match.groupdict()) for match, new in matches if match), None):
            pairs.append({new_name: tensor})
        elif not _COMPUTED.search(name):
            leftovers.append(name)
    _no_leftovers(leftovers, layout)
    return _merged(*pairs)


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    for key, choices in _PLACEHOLDERS.items():
        text = text.replace(re.escape(f"{{{key}}}"), f"(?P<{key}>{choices})")
    return re.compile(text)


def _merged(*groups: Tensors) -> dict[str, LazyTensor]:
    """All groups in one; no name may come twice."""
    found: dict[str, LazyTensor] = {}
    for group in groups:
        for name, tensor in group.items():
            if name in found:
                raise CheckpointError(
                    f"two tensors would become {name}: {found[name].origin} and {tensor.origin}",
                    "the file mixes two models",
                )
            found[name] = tensor
    return found


def _no_leftovers(names: list[str], layout: str) -> None:
    if names:
        raise CheckpointError(
            f"{layout} has no place for {first_few(names)}", "the file is of another model, or renamed"
        )
