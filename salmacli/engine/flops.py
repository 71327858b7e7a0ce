"""How much arithmetic each part of the model does: floating-point operations of one prediction.

A multiplication with its addition counts as 2. Matrix products, convolutions and attention are counted
(attention over the full square of positions), element-wise work such as norms and activations is not: torch's
counter does it so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from salmacli.config.schema import PredictConfig
from salmacli.data.conversation import branch, prefix
from salmacli.data.templates import ANSWERS, QUESTIONS
from salmacli.engine.prediction.settings import resolved
from salmacli.engine.prediction.windows import windows
from salmacli.models.grounding import Decodable, FrameFeatures, Grounding
from salmacli.models.salma import Language, Salma

EXPRESSION = "the red circle on the left"


@dataclass(frozen=True)
class Cost:
    """One part's share of a prediction.

    Attributes:
        part: Its name.
        unit: What one run of it serves: a frame, a video (all its expressions), an expression, or a frame of an
            expression.
        flops: Operations of one run.
        runs: Runs for one expression in the whole video.
    """

    part: str
    unit: str
    flops: int
    runs: int

    @property
    def total(self) -> int:
        """Operations for one expression in the whole video."""
        return self.flops * self.runs


def count(run: Callable[[], object]) -> int:
    """Floating-point operations of one call.

    Fused attention on the CPU is one operator that the counter does not know and would count as 0; the MATH
    backend takes it apart into matrix products.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


class _OnShapes(TorchFunctionMode):
    """Whatever meets a tensor without data loses its own; small tensors that steer the code keep theirs until then.

    Without data from the beginning, the code would stop at the first grid that a vision tower reads as numbers.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor:
            return func(*args, **{**kwargs, "device": "cpu"})
        if any(isinstance(one, Tensor) and one.is_meta for one in tree_flatten((args, kwargs))[0]):
            args, kwargs = tree_map_only((Tensor, torch.device), _without_data, (args, kwargs))
        return func(*args, **kwargs)


def _without_data(one: Tensor | torch.device) -> Tensor | torch.device:
    if isinstance(one, torch.device):
        return torch.device("meta")
    return one.to("meta") if one.ndim else one  # a number goes with every device


@dataclass(frozen=True)
class _Runs:
    """How often the parts run for one expression.

    Attributes:
        windows: Conversations with the LLM.
        frames: Frames of the video.
        shown: Pictures that the LLM sees.
        decoded: Frames that are decoded; those that windows share, several times.
        prompted: Those of them with language.
        attended: Those of them that attend to the words.
        memories: Frames that a frame without language looks back to; 0 where there is no memory.
        redecoded: Those with language that SAM 2's own way decodes again, from their masks.
    """

    windows: int
    frames: int
    shown: int
    decoded: int
    prompted: int
    attended: int
    memories: int
    redecoded: int

    @classmethod
    def of(cls, settings: PredictConfig, frames: int, recent: int) -> _Runs:
        """What resolved settings make of a video; `recent` is how many frames SAM 2 remembers."""
        lengths = [len(window) for window in windows(frames, settings.window, settings.overlap or 0)]
        keys, remembers = settings.key_frames or 1, settings.mode != "frames"
        key_frames = [min(keys, length) for length in lengths]
        decoded, prompted = sum(lengths), sum(key_frames if remembers else lengths)
        return cls(
            windows=len(lengths),
            frames=frames,
            shown=keys * len(lengths) if settings.choice == "uniform" else sum(key_frames),
            decoded=decoded,
            prompted=prompted,
            attended=decoded if settings.cma.frames == "all" else prompted,
            memories=(
                min(key_frames[0], settings.conditioning or keys) + min(settings.memories or recent, recent)
                if remembers
                else 0
            ),
            redecoded=prompted if settings.mode == "consistent" else 0,
        )


def measure(
    model: Salma, frames: int, expression: str = EXPRESSION, settings: PredictConfig | None = None
) -> list[Cost]:
    """Count every part for one expression in a video of ``frames`` frames.

    Nothing is computed: the parts run on shapes alone, so that any size takes seconds.

    Args:
        model: It loses its weights, if it has any.
        frames: Length of the video.
        expression: Its number of tokens matters.
        settings: How it is predicted; in the model's own way if not given. Fall-backs are not counted.

    Returns:
        The parts in the order in which they run.
    """
    model = model.eval().requires_grad_(False).to("meta")  # the counter trips over parameters that want gradients
    settings = resolved(settings or PredictConfig(), model.config)
    runs = _Runs.of(settings, frames, model.grounding.num_maskmem - 1)
    with _OnShapes():
        return [
            *_language(model, runs, expression),
            *_grounding(model, runs, expression),
            *_memory(model.grounding, runs),
        ]


def _language(model: Salma, runs: _Runs, expression: str) -> list[Cost]:
    mllm = model.mllm
    pixels = torch.zeros(1, 3, *mllm.frame_size)
    projector = mllm.parts()["vision-language projector"]
    tower, projected = _apart(lambda: mllm.encode_frames(pixels), projector)
    shown = runs.shown // runs.windows
    start = len(prefix(model.tokenizer, mllm.chat, [mllm.tokens_per_frame] * shown))
    asked = branch(model.tokenizer, mllm.chat, expression, QUESTIONS[0], ANSWERS[0])
    answered = int((asked.labels >= 0).sum())
    reading, answering = _llm(model, start, len(asked.ids))
    hidden = torch.empty(answered, mllm.width)
    states = torch.empty(int(asked.words.sum()) + 1, mllm.width)
    head = count(lambda: mllm.vocabulary_logits(hidden))
    return [
        Cost("vision tower", "frame", tower, runs.shown),
        Cost("vision-language projector", "frame", projected, runs.shown),
        Cost("LLM prefix", "video", reading, runs.windows),
        Cost("LLM answer", "expression", answering, runs.windows),
        Cost("language head", "expression", head, runs.windows),
        Cost("text projector", "expression", count(lambda: model.text_hidden_fcs(states)), runs.windows),
    ]


def _apart(run: Callable[[], object], part: nn.Module) -> tuple[int, int]:
    """Operations of one call outside of a part (or of the parts in a list) and inside."""
    inputs: list[tuple[nn.Module, Any]] = []
    parts = list(part) if isinstance(part, nn.ModuleList) else [part]
    hooks = [one.register_forward_pre_hook(lambda module, args: inputs.append((module, args))) for one in parts]
    whole = count(run)
    for hook in hooks:
        hook.remove()
    inside = sum(count(partial(module, *args)) for module, args in inputs)
    return whole - inside, inside


def _llm(model: Salma, start: int, branched: int) -> tuple[int, int]:
    """Operations of the language model: reading the frames, and a question with its answer that continue them."""
    language: Any = model.mllm.parts()["language model"]
    cache = DynamicCache(config=model.mllm.model.config.text_config)

    def read(before: int, length: int) -> None:
        embedded = torch.empty(1, length, model.mllm.width)
        mask = torch.empty(1, 1, length, before + length)
        places = torch.arange(before, before + length)[None]
        language(
            inputs_embeds=embedded, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )

    return count(partial(read, 0, start)), count(partial(read, start, branched))


def _grounding(model: Salma, runs: _Runs, expression: str) -> list[Cost]:
    grounding, side, channels = model.grounding, model.config.sam2.image_size, model.config.sam2.width
    best_of_three, each = model.config.mask_token == "best-of-three", "frame of expression"
    images = torch.empty(1, 3, side, side)
    features, seg = _features(side, channels), torch.empty(1, channels)
    image = torch.empty(1, channels, side // 16, side // 16)
    decoded = runs.decoded + runs.redecoded
    costs = [
        Cost("SAM 2 image encoder", "frame", count(lambda: grounding.encode(images)), runs.frames),
        Cost("decoder's fine levels", "frame", count(lambda: grounding.decodable(features)), decoded),
    ]
    sights = Decodable(
        image,
        (torch.empty(1, channels // 8, side // 4, side // 4), torch.empty(1, channels // 4, side // 8, side // 8)),
    )
    decoder = count(lambda: grounding.decode(sights, seg, best_of_three))
    if (cma := model.cma) is not None:
        tokens = int(branch(model.tokenizer, model.mllm.chat, expression, QUESTIONS[0], None).words.sum())
        language = Language(seg, torch.empty(1, tokens, channels), torch.ones(1, tokens, dtype=torch.bool))
        prior = torch.empty(1, side // 4, side // 4)
        attended = model.attend(sights, language, prior)
        costs += [
            Cost("visual pre-pass", "frame", count(lambda: model.prior(sights)), runs.attended),
            Cost("CMA", each, count(lambda: model.attend(sights, language, prior)), runs.attended),
        ]
        if cma.fusion is not None:
            fused = count(lambda: grounding.decode(attended, seg, best_of_three)) - decoder
            costs.append(Cost("CMA in the mask decoder", each, fused, runs.attended))
    return [*costs, Cost("mask decoder", each, decoder, decoded)]


def _memory(grounding: Grounding, runs: _Runs) -> list[Cost]:
    """SAM 2's memory: written for every frame, read (when full) for every frame that has no prompt."""
    side, channels, width = grounding.image_size, grounding.hidden_dim, grounding.mem_dim
    grid = side // 16
    image = torch.empty(1, channels, grid, grid)
    mask = torch.empty(1, 1, side, side)
    pointers = grounding.max_obj_ptrs_in_encoder * channels // width
    current = torch.empty(grid * grid, 1, channels)
    memory = torch.empty(max(runs.memories, 1) * grid * grid + pointers, 1, width)
    read = count(
        lambda: grounding.memory_attention(
            curr=[current], curr_pos=[current], memory=memory, memory_pos=memory, num_obj_ptr_tokens=pointers
        )
    )
    write = count(lambda: grounding.memory_encoder(image, mask, skip_mask_sigmoid=True))
    return [
        Cost("memory attention", "frame of expression", read, runs.decoded - runs.prompted if runs.memories else 0),
        Cost("memory encoder", "frame of expression", write, runs.decoded if runs.memories else 0),
    ]


def _features(side: int, channels: int) -> FrameFeatures:
    levels = [torch.empty(1, channels, side // stride, side // stride) for stride in (4, 8, 16)]
    return FrameFeatures(levels[0], levels[1], levels[2], torch.empty_like(levels[2]))
