"""How much memory training on usual samples, and prediction at most, take, told from the settings alone.

What stays through a step is counted exactly: weights, gradients, AdamW's two moments, averages. What the backward pass
needs is counted by formulas: bytes per number of a layer's width, per token or per pixel. Their factors are counts of
what PyTorch's autograd keeps (`_Kinds`), checked against whole steps on fake tensors (tests/engine/test_estimate.py,
benchmarks/train.py): the peak is within 15 %. What an allocator holds back, CUDA's own context (about 0.5 GiB) and the
buffers of NCCL come on top.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from salmacli.config.schema import PredictConfig, RunConfig, TrainConfig
from salmacli.models.salma import Salma
from salmacli.models.trained import ENCODER, LLM, LORA, TOWER, parts_of, trained_parts

STILL_SETS = ("refcoco", "gref", "own", "gcg-", "llava", "osprey")  # how the names of sets of pictures begin
QUESTION_TOKENS = 64  # of one expression with its question and answer, generously
PICTURE_ENDS = 3  # tokens around a picture
_POSITIONS = 84  # bytes of float32 positions at strides 4, 8 and 16, per number of C and pixel at stride 16


@dataclass(frozen=True)
class Load:
    """What one forward pass holds on one device.

    Attributes:
        samples, tokens: conversations, and the length of the longest, which all are padded to.
        pictures: tiles and frames that the vision tower sees.
        frames, masks: frames to segment, and pairs of a frame and an object.
        answers: tokens that have labels.
    """

    samples: int
    tokens: int
    pictures: int
    frames: int
    masks: int
    answers: int

    @classmethod
    def usual(cls, config: RunConfig, model: Salma) -> Load:
        """A batch of sets of expressions, with as many as the settings allow.

        Not the most there may be: dialogues (LLaVA, Chat-UniVi, Osprey) run up to `data.max_tokens`, and a caption of
        GCG has a mask for each of its phrases, however many `data.expressions` are.
        """
        data, samples = config.data, config.train.batch_size
        still = any(one.set.startswith(STILL_SETS) for one in data.train)
        moving = any(not one.set.startswith(STILL_SETS) for one in data.train)
        tiles = model.tiles + (model.tiles > 1) if still else 0
        pictures = max(tiles, model.config.clip_frames if moving else 0)
        frames = data.decoded_frames if moving else 1
        said = data.expressions * QUESTION_TOKENS
        return cls(
            samples=samples,
            tokens=min(pictures * (model.mllm.tokens_per_frame + PICTURE_ENDS) + said, data.max_tokens),
            pictures=samples * pictures,
            frames=samples * frames,
            masks=samples * frames * data.expressions,
            answers=samples * said // 4,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: of the whole model.
        gradients, optimizer, average: of what trains.
        activations: by part, what the backward pass needs.
        passing: the most that comes and goes beside them.
        peak: the most at any time.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    activations: dict[str, int] = field(default_factory=dict)
    passing: int = 0
    peak: int = 0


@dataclass(frozen=True)
class _Kinds:
    """Bytes that a number takes.

    Attributes:
        half: where matrices are multiplied.
        noise: what dropout keeps of each number: the CPU its factors, a GPU one byte.
    """

    half: int
    noise: int

    @property
    def whole(self) -> bool:
        """Everything is float32."""
        return self.half == 4


def training_memory(
    model: Salma, config: RunConfig, load: Load, *, bf16: bool, devices: int = 1, cpu: bool = False
) -> Memory:
    """Peak of one step on one device.

    Args:
        model: prepared by `prepare_training`; it needs no weights.
        config: the whole run.
        load: of one forward pass.
        bf16: whether matrices are multiplied in bfloat16.
        devices: how many share the run.
        cpu: whether they are CPUs.
    """
    train, kinds = config.train, _Kinds(2 if bf16 else 4, 4 if cpu else 1)
    state = _state(model, config, devices)
    again = train.memory and train.gradient_checkpointing
    said = _said(config, load) if train.memory else load.masks  # masks that are decoded with language
    activations = {
        "vision tower": _tower(model, load, kinds),
        "language model": _language_model(model, train, load, kinds),
        "language head": _head(model, load, kinds),
        "SAM 2 image encoder": _encoder(model, load, kinds),
        "visual pre-pass": _decoder(model, load.frames, kinds) if model.cma is not None else 0,
        "cross-modal attention": _attention(model, said, kinds),
        "mask decoder": _decoder(model, said if again else load.masks, kinds),
        "SAM 2 memory": _memory(model, config, load, kinds) if train.memory else 0,
        "losses": _losses(model, config, load),
    }
    features = _features(model, load, kinds)
    kept = sum(activations.values())
    standing = state["weights"] + state["optimizer"] + state["average"] + _inputs(model, load)
    # Gradients come while activations go; those of earlier passes of the step are there from the beginning.
    early = state["gradients"] if train.accumulate > 1 else 0
    once_more = max(_layer_at_once(model, train, load, kinds), _memory_step(model, config, load, kinds) if again else 0)
    peak = standing + max(early + kept + max(features, once_more), state["gradients"] + once_more)
    return Memory(**state, activations=activations, passing=max(features, once_more), peak=peak)


def prediction_memory(model: Salma, settings: PredictConfig, *, bf16: bool) -> Memory:
    """Peak of predicting a video of any length: what is held of it does not grow.

    Args:
        model: it needs no weights.
        settings: resolved ones.
        bf16: whether the weights are bfloat16.
    """
    half = 2 if bf16 else 4
    weights = half * sum(parameter.numel() for parameter in model.parameters())
    text, pixels = model.mllm.model.config.text_config, model.config.sam2.width * _area(model)
    keys = settings.key_frames or model.config.clip_frames
    frames, expressions = settings.frames_at_once, settings.expressions_at_once
    tokens = keys * (model.mllm.tokens_per_frame + PICTURE_ENDS) + QUESTION_TOKENS
    memories = (settings.memories or model.grounding.num_maskmem - 1) + (settings.conditioning or keys)
    held = {
        "features of frames": (frames + keys) * 21 * half * pixels,
        "memories": expressions * memories * model.grounding.mem_dim * _area(model) * half,
        "conversation": 2 * text.num_hidden_layers * tokens * _key_width(text) * half,
    }
    attention = (30 if half == 4 else 20) + (13 if half == 4 else 15) * memories
    passing = {
        "encoder": frames * _encoder_passing(model, 0, half),
        "memory attention and mask decoder": expressions * pixels * (attention + 7 * half),
        "vision tower": keys * _tower_tokens(model) * model.mllm.model.config.vision_config.hidden_size * 6 * half,
        "language model": tokens * (3 * text.intermediate_size + 6 * text.hidden_size) * half,
    }
    most = max(passing.values())
    return Memory(weights=weights, activations=held, passing=most, peak=weights + sum(held.values()) + most)


def _state(model: Salma, config: RunConfig, devices: int) -> dict[str, int]:
    """Bytes of what stays through a step."""
    train = config.train
    trained = [p for part in trained_parts(model, config).values() for p in part.values()]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    weights += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    weights -= _saved_by_quantisation(model, train)
    numbers = sum(parameter.numel() for parameter in trained)
    average = 4 * numbers if train.ema is not None else 0
    own, shared = (devices, devices) if train.sharding in ("fsdp2", "zero3") else (1, devices)
    if train.sharding == "none":
        shared = 1
    return {
        "weights": weights // own,
        "gradients": 4 * numbers // shared,
        "optimizer": 8 * numbers // shared,
        "average": average // own,
    }


def _saved_by_quantisation(model: Salma, train: TrainConfig) -> int:
    """What the LLM's frozen matrices take less in 8 or 4 bits."""
    if train.quantize is None:
        return 0
    size = 1.0 if train.quantize == "8bit" else 0.5
    matrices = [p for p in parts_of(model)[LLM].values() if p.ndim == 2 and not p.requires_grad]
    return int(sum(p.numel() * (p.element_size() - size) for p in matrices))


def _inputs(model: Salma, load: Load) -> int:
    """The batch."""
    side, (height, width) = model.config.sam2.image_size, model.mllm.frame_size
    pictures = 12 * (load.frames * side**2 + load.pictures * height * width)
    masks = (load.frames + load.masks) * side**2 + load.samples * load.tokens**2
    return pictures + masks


# Parts. Each returns bytes that are kept for the backward pass.


def _language_model(model: Salma, train: TrainConfig, load: Load, kinds: _Kinds) -> int:
    if train.recipe in ("decoder-only", "cma-only"):
        return 0  # nothing below its end trains
    text, tokens = model.mllm.model.config.text_config, load.samples * load.tokens
    layer = 4 * text.hidden_size * tokens if train.gradient_checkpointing else _layer(model, train, load, kinds)
    casts = 0 if kinds.whole or train.gradient_checkpointing else 2 * _numbers(model, LORA, LLM)
    ends = 20 * text.hidden_size * tokens
    return text.num_hidden_layers * layer + casts + ends


def _layer(model: Salma, train: TrainConfig, load: Load, kinds: _Kinds) -> int:
    """One decoder layer of the LLM; the stream between layers is float32."""
    text = model.mllm.model.config.text_config
    width, inner, heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
    if train.recipe == "full":
        per_token = (40 if kinds.whole else 34) * width + (16 if kinds.whole else 8) * inner
    else:
        per_token = (24 if kinds.whole else 16) * width + (12 if kinds.whole else 6) * inner
        # An adapter keeps what it reads, dropout's noise, and its inner state.
        adapted = train.lora.modules
        reads = sum(inner if name == "down_proj" else width for name in adapted)
        per_token += reads * (kinds.half + kinds.noise)
        per_token += len(adapted) * train.lora.rank * kinds.half
    per_token += 4 * heads + 8 + (0 if kinds.whole else 6 * width // heads)
    return int(per_token * load.samples * load.tokens)


def _layer_at_once(model: Salma, train: TrainConfig, load: Load, kinds: _Kinds) -> int:
    """What is made again of the LLM's layer whose turn it is."""
    if not train.gradient_checkpointing or train.recipe in ("decoder-only", "cma-only"):
        return 0
    return _layer(model, train, load, kinds)


def _head(model: Salma, load: Load, kinds: _Kinds) -> int:
    """Logits of a few positions at a time: made, and made again."""
    text = model.mllm.model.config.text_config
    at_once = min(load.answers * text.vocab_size, 1 << 26)
    casts = 0 if kinds.whole else 2 * text.vocab_size * text.hidden_size
    return 12 * at_once + casts


def _decoder(model: Salma, rows: int, kinds: _Kinds) -> int:
    """The mask decoder on so many rows: attention both ways, and upscaling to stride 4."""
    trains = next(model.grounding.sam_mask_decoder.transformer.parameters()).requires_grad
    factor = (100 if trains else 68) if kinds.whole else (59 if trains else 40)
    return factor * model.config.sam2.width * _area(model) * rows


def _attention(model: Salma, rows: int, kinds: _Kinds) -> int:
    """The CMA on so many rows; finer levels have more pixels and fewer channels, 2 · C each."""
    if model.cma is None:
        return 0
    cma = model.config.cma
    levels = sum({16: 1, 8: 1, 4: 2}[stride] for stride in cma.levels) + 2 * cma.decoder_fusion
    factor = 29 if kinds.whole else 21
    return factor * levels * cma.layers * model.config.sam2.width * _area(model) * rows


def _encoder(model: Salma, load: Load, kinds: _Kinds) -> int:
    """SAM 2's image encoder where it trains, and what the decoder's own `conv_s0/s1` read of every frame."""
    area = _area(model)
    kept = (16 if kinds.whole else 50) * model.config.sam2.width * area * load.frames
    if _trains(model, ENCODER):
        sam2 = model.config.sam2
        # Tokens fall to a fourth from stage to stage, and widths double.
        numbers = sum(16 * area // 4**n * sam2.embed_dim * 2**n * blocks for n, blocks in enumerate(sam2.stages))
        kept += ((92 if kinds.whole else 48) * numbers + 84 * sam2.width * area) * load.frames
    return int(kept)


def _tower(model: Salma, load: Load, kinds: _Kinds) -> int:
    """The vision tower where it trains, and the projector."""
    vision = model.mllm.model.config.vision_config
    kept = 0
    if _trains(model, TOWER):
        layers = getattr(vision, "num_hidden_layers", getattr(vision, "depth", 0))
        width, inner = (44, 8) if kinds.whole else (26, 4)
        per_token = width * vision.hidden_size + inner * vision.intermediate_size
        kept = layers * per_token * _tower_tokens(model) * load.pictures
    width = model.mllm.model.config.text_config.hidden_size
    return int(kept + 6 * kinds.half * width * model.mllm.tokens_per_frame * load.pictures)


def _losses(model: Salma, config: RunConfig, load: Load) -> int:
    """Points, and maps at stride 4, in float32."""
    side = model.config.sam2.image_size // 4
    maps = (20 if config.losses.boundary else 4) * 4 * side * side
    return load.masks * (maps + 40 * config.losses.points)


def _features(model: Salma, load: Load, kinds: _Kinds) -> int:
    """Features of all frames, and the frames of every mask, until the masks are made."""
    width, area = model.config.sam2.width, _area(model)
    held = width * area * (84 * load.frames + (4 + 3 * kinds.half) * load.masks)
    return max(held, load.frames * _encoder_passing(model, 4, kinds.half))


def _said(config: RunConfig, load: Load) -> int:
    """Masks that are decoded with language where the memory carries on to the others."""
    return load.masks * config.data.prompted_frames // config.data.decoded_frames


def _memory(model: Salma, config: RunConfig, load: Load, kinds: _Kinds) -> int:
    """Every mask is written into the memory, and all but the first ones are read from it."""
    followed = load.masks - _said(config, load)
    if not config.train.gradient_checkpointing:
        return followed * _following(model, config, kinds) + load.masks * _remembering(model, kinds)
    # What goes into each step: features, and the memories that are looked back to.
    sam2, area = model.config.sam2, _area(model)
    read = 2 * _memories(model, config) * sam2.memory_width * 4
    return area * (load.masks * sam2.width * (4 + 3 * kinds.half) + followed * read)


def _memory_step(model: Salma, config: RunConfig, load: Load, kinds: _Kinds) -> int:
    """One step of the memory, made once more: every object in one frame."""
    objects = load.masks // config.data.decoded_frames
    return objects * (_following(model, config, kinds) + _remembering(model, kinds)) + _decoder(model, objects, kinds)


def _following(model: Salma, config: RunConfig, kinds: _Kinds) -> int:
    """Memory attention of one object in one frame."""
    sam2 = model.config.sam2
    number = (42 + 14 * _memories(model, config)) * sam2.width + 6 * sam2.memory_feedforward
    return sam2.memory_layers * _area(model) * number * (3 + kinds.half) // 7


def _remembering(model: Salma, kinds: _Kinds) -> int:
    """Memory encoder of one object in one frame; its first layers see the mask at full size."""
    sam2 = model.config.sam2
    return (110 * sam2.image_size**2 + 100 * sam2.width * _area(model)) * (3 + kinds.half) // 7


def _memories(model: Salma, config: RunConfig) -> int:
    """Frames that one looks back to, in the middle of a clip."""
    return min((config.data.prompted_frames + config.data.decoded_frames) // 2, model.grounding.num_maskmem)


def _encoder_passing(model: Salma, kept: int, half: int) -> int:
    """What SAM 2's encoder takes per frame, without gradients: its first stage, features and their positions.

    Args:
        model: its sizes.
        kept: bytes of a number of the features.
        half: of one inside.
    """
    sam2 = model.config.sam2
    return _area(model) * (16 * sam2.embed_dim * (20 if half == 4 else 13) + sam2.width * (21 * kept + _POSITIONS))


def _key_width(text: Any) -> int:
    """Width of all keys of a layer of the LLM."""
    return int(text.hidden_size * text.num_key_value_heads // text.num_attention_heads)


def _area(model: Salma) -> int:
    """Pixels at stride 16."""
    return (model.config.sam2.image_size // 16) ** 2


def _tower_tokens(model: Salma) -> int:
    """Patches of one picture."""
    height, width = model.mllm.frame_size
    patch: Any = model.mllm.model.config.vision_config.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return prod((height // rows, width // columns)) + 1


def _numbers(model: Salma, *parts: str) -> int:
    """How many of them train."""
    members = parts_of(model)
    return sum(p.numel() for part in parts for p in members.get(part, {}).values() if p.requires_grad)


def _trains(model: Salma, part: str) -> bool:
    return _numbers(model, part) > 0
