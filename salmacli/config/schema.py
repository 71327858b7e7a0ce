"""Every setting of a run. The descriptions here are the only documentation of a field.

Numbers are read laxly: PyYAML hands ``1e-4`` over as a string, and pydantic turns it into a float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MllmConfig(Settings):
    """The multimodal LLM."""

    base: str | None = Field(
        None, description="pretrained weights to start from: a hub id or a folder; null starts from fresh ones"
    )
    native: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of transformers' own configuration: model_type (internvl if not given, qwen2_5_vl, "
        "qwen3_vl), vision_config, text_config, …; the image token follows from the tokenizer, and so does the "
        "vocabulary's size where it is not given; a base brings its own, and what is said here must agree",
    )
    rotary: Literal["exact", "rounded-frequencies", "rounded-tables"] = Field(
        "exact",
        description="what is left of the LLM's rotary embedding: the released Sa2VA is moved to bfloat16 whole, and "
        "with it the frequencies (Qwen), or the tables of cosines and sines (InternLM2)",
    )
    vocabulary: int = Field(
        1024, ge=300, description="size of the tokenizer that is built when there is no pretrained one"
    )

    @model_validator(mode="after")
    def _known(self) -> MllmConfig:
        if self.base is None and not self.native:
            raise ValueError("native is missing, and no base is named that would bring it")
        return self


class Sam2Config(Settings):
    """SAM 2, built from the `sam2` package's own modules. Defaults are those of its Hiera-tiny."""

    base: str | None = Field(
        None, description="pretrained weights to start from: a hub id or an official .pt; null starts from fresh ones"
    )
    version: Literal["2", "2.1"] = Field(
        "2", description="2.1 encodes the order of object pointers and the absence of an object in the memory"
    )
    image_size: int = Field(1024, ge=64, le=4096, description="side of the square that frames are resized to, pixels")
    embed_dim: int = Field(96, ge=1, description="width of the first Hiera stage; each later stage doubles it")
    heads: int = Field(1, ge=1, description="attention heads of the first Hiera stage")
    stages: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (1, 2, 7, 2), description="Hiera blocks per stage"
    )
    global_attention: tuple[NonNegativeInt, ...] = Field(
        (5, 7, 9), description="indices of blocks with global attention"
    )
    windows: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (8, 4, 14, 7), description="attention window per stage"
    )
    background: tuple[PositiveInt, PositiveInt] = Field(
        (7, 7), description="size of Hiera's background position embedding"
    )
    width: int = Field(256, ge=1, description="C, channels of the FPN, the prompts and the mask decoder")
    memory_width: int = Field(64, ge=1, description="channels of one memory")
    memory_layers: int = Field(4, ge=1, description="layers of the memory attention")
    memory_feedforward: int = Field(2048, ge=1, description="hidden width of the memory attention's MLP")
    decoder_feedforward: int = Field(2048, ge=1, description="hidden width of the mask decoder's MLPs")
    two_decoders: bool = Field(
        False,
        description="a second mask decoder, SAM 2's original, carries masks through the memory in mode consistent; the"
        " first is trained with language",
    )
    object_scores: bool = Field(
        True, description="predict whether the object is in the frame (used by the memory only)"
    )

    @model_validator(mode="after")
    def _sizes(self) -> Sam2Config:
        if self.image_size % 64:
            raise ValueError(f"image_size must be a multiple of 64, not {self.image_size}")
        if self.width % 32:
            raise ValueError(
                f"width must be a multiple of 32 (8 heads of the mask decoder, half width), not {self.width}"
            )
        return self


class CmaConfig(Settings):
    """Mask-biased cross-modal attention (MBA)."""

    enabled: bool = Field(False, description="attend from the image features to the expression before the mask decoder")
    topk: int | None = Field(
        2, ge=1, description="how many language tokens the router keeps; null keeps all. Pooling mean and cls have none"
    )
    mba: Literal["gate", "bias", "off"] = Field(
        "gate",
        description="how the class-agnostic prior acts: gates what is attended, biases attention to the text, or not",
    )
    tau: float = Field(1.0, gt=0, description="temperature of the prior: sigmoid(prior / tau)")
    heads: int = Field(8, ge=1, description="attention heads")
    pooling: Literal["tokens", "mean", "cls", "attention"] = Field(
        "tokens",
        description="what the pixels attend to: the expression's tokens and [SEG]; or one vector, for ablation: their"
        " mean, the state at [SEG] alone, or their sum weighted by learned attention",
    )
    layers: int = Field(1, ge=1, le=3, description="times that the attention is applied, with the same weights")
    levels: tuple[Literal[4, 8, 16], ...] = Field(
        (16,), min_length=1, description="strides of the features that attend; levels beside 16 have a gate per channel"
    )
    adaptive_gate: bool = Field(
        False, description="scale the attention by 1 − 0.5 · area of the prior: large objects need less help"
    )
    film: bool = Field(False, description="scale and shift each channel by the mean of the language tokens, too")
    decoder_fusion: bool = Field(
        False, description="let the mask decoder's mask features attend to the language through a learned gate, too"
    )
    warmup_fraction: float = Field(0.10, ge=0, le=1, description="share of the steps over which the attention ramps up")

    @model_validator(mode="after")
    def _levels(self) -> CmaConfig:
        if len(set(self.levels)) != len(self.levels) or 16 not in self.levels:
            raise ValueError(f"levels must be 16, and 8 or 4 beside it, each once, not {list(self.levels)}")
        return self


class ModelConfig(Settings):
    """What computes."""

    mllm: MllmConfig
    sam2: Sam2Config = Sam2Config()
    cma: CmaConfig = CmaConfig()
    mask_token: Literal["single", "best-of-three"] = Field(
        "best-of-three",
        description="which mask the decoder gives: its single-mask token, or the best of three by predicted IoU",
    )
    clip_frames: int = Field(5, ge=1, description="K, frames the MLLM reads of each video")
    tiles: int = Field(
        1,
        ge=1,
        description="at most so many tiles of a picture, and then the whole of it, are shown to an MLLM whose family"
        " reads tiles (InternVL); 1: the whole of it alone",
    )
    inference_mode: Literal["frames", "consistent", "sa2va"] = Field(
        "consistent", description="how a video is predicted unless --mode says otherwise"
    )

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.sam2.width % self.cma.heads:
            raise ValueError(f"cma.heads = {self.cma.heads} does not divide sam2.width = {self.sam2.width}")
        return self


EvaluationSet = Literal["mevis", "revos", "davis", "refytvos", "refcoco", "refcoco+", "refcocog", "grefcoco", "own"]
TrainingSet = Literal[
    "mevis",
    "revos",
    "davis",
    "refytvos",
    "refcoco",
    "refcoco+",
    "refcocog",
    "grefcoco",
    "own",
    "refsav",
    "gcg-grandf",
    "gcg-refcocog",
    "gcg-flickr30k",
    "gcg-openpsg",
    "llava",
    "chatunivi",
    "osprey",
]


class DatasetConfig(Settings):
    """One member of the training mix."""

    set: TrainingSet = Field(description="the layout on disk")
    root: Path | None = Field(
        None,
        description="its folder; null means its usual place below data.root, and where that is null, too, the synthetic"
        " benchmark in that layout",
    )
    split: str = Field("train", description="which split")
    repeats: int = Field(1, ge=1, description="visits of each sample per epoch")


class DataConfig(Settings):
    """What is read."""

    train: tuple[DatasetConfig, ...] = Field(min_length=1, description="the training mix")
    root: Path | None = Field(
        None, description="folder that holds the sets in the predecessor's layout (video_datas/, ref_seg/, …)"
    )
    expressions: int = Field(5, ge=1, description="at most so many expressions of one video per sample")
    decoded_frames: int = Field(
        5, ge=1, description="frames of each sample that are segmented; not necessarily those the MLLM reads"
    )
    prompted_frames: int = Field(
        1,
        ge=1,
        description="of those, the first ones that language prompts where train.memory carries on to the others",
    )
    choice: Literal["random", "consecutive"] = Field(
        "random", description="which frames those are: any, in their order, or some that follow each other"
    )
    max_tokens: int = Field(
        8192, ge=64, description="a conversation that is longer is cut, never in front of a [SEG] that is trained on"
    )
    group_lengths: bool = Field(True, description="batch conversations of like length: less padding")
    workers: int = Field(0, ge=0, description="processes that read ahead")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="share of unreadable samples above which the run stops"
    )


class LossConfig(Settings):
    """Weights of the losses."""

    bce: float = Field(2.0, ge=0, description="binary cross-entropy on mask logits")
    dice: float = Field(0.5, ge=0, description="Dice with a smoothing of 1")
    points: int = Field(12_544, ge=16, description="points per mask at which BCE and Dice compare it")
    lm: float = Field(1.0, ge=0, description="cross-entropy of the answer's tokens")
    tmc: float = Field(
        0.1,
        ge=0,
        description="contrast between what is said of an object and the image features under its mask",
    )
    tmc_rivals: Literal["batch", "video"] = Field(
        "batch",
        description="what the contrast tells apart: all objects of a batch, or only those of the same video. A model "
        "from scratch learns to tell videos by their backgrounds first, and nothing about the objects",
    )
    boundary: float = Field(
        0.05, ge=0, description="difference of the Sobel magnitudes of the probabilities and of the true mask"
    )
    ramp: float = Field(
        0.20, ge=0, le=1, description="share of the steps over which tmc and boundary grow to their weights"
    )
    iou: float = Field(1.0, ge=0, description="regression of the predicted IoU on the mask's true IoU")
    presence: float = Field(
        1.0, ge=0, description="whether the object is in the frame; only with train.memory, which needs to know"
    )
    prior: float = Field(
        0.0,
        ge=0,
        description="binary cross-entropy of the visual pre-pass on the union of all that a video's expressions mean;"
        " for models whose SAM 2 is not pretrained and would gate by noise",
    )


class LoraConfig(Settings):
    """Low-rank adapters of the LLM, by peft."""

    rank: int = Field(128, ge=1, description="r")
    alpha: float = Field(256.0, gt=0, description="α; the update is scaled by α / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="of what the adapters read")
    modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="linear layers of the LLM that get them",
    )


class ValidationConfig(Settings):
    """A look at J&F while training goes on."""

    every: int | None = Field(None, ge=1, description="steps between two looks; null: never")
    set: EvaluationSet = Field("mevis", description="the benchmark")
    root: Path | None = Field(None, description="as of data.train")
    split: str | None = Field(None, description="null: the one that people report")
    videos: int = Field(8, ge=1, description="how many of its videos, evenly spread")
    patience: int | None = Field(
        None, ge=1, description="stop when so many looks in a row were no better than the best; null: never"
    )


class TrainConfig(Settings):
    """How the optimiser runs, and on what."""

    recipe: Literal["lora", "full", "decoder-only", "cma-only"] = Field(
        "lora",
        description="what trains. lora: adapters in the LLM, its embedding and head, both projectors, the mask decoder"
        " and the attention; full: the whole LLM instead of adapters, and encoders that did not come pretrained;"
        " decoder-only: all but the MLLM; cma-only: the attention alone",
    )
    lora: LoraConfig = LoraConfig()
    vocabulary: Literal["all", "new", "none"] = Field(
        "all", description="rows of embedding and head that train with lora: all, those of SALMA's own tokens, or none"
    )
    quantize: Literal["8bit", "4bit"] | None = Field(
        None, description="load the frozen LLM in so many bits, with bitsandbytes; only with lora"
    )
    memory: bool = Field(
        False,
        description="unroll SAM 2's memory over the frames of a sample, with gradients, and train it, too; language"
        " prompts only the first data.prompted_frames",
    )
    true_prompts: float = Field(
        0.0,
        ge=0,
        le=1,
        description="with memory: share of the masks entering it from prompted frames that are the true ones, not those"
        " that language made; a memory from scratch hardly learns to carry what is mostly wrong",
    )

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="samples per device and forward pass")
    accumulate: int = Field(1, ge=1, description="forward passes per optimiser step")
    learning_rate: float = Field(4e-5, gt=0, description="peak of the schedule")
    gamma_rate: float = Field(
        1.0, gt=0, description="factor on the learning rate of the CMA's gamma, which starts at 0 and has far to go"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate per layer of the LLM, from the last one down"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not on norms, biases, embeddings and scalars")
    warmup_fraction: float = Field(
        0.05, ge=0, le=1, description="share of the steps with a linear warm-up; then cosine to 0"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the device has it, fp32 on the CPU"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations of the LLM, and of the memory, twice instead of keeping them"
    )
    sharding: Literal["none", "fsdp2", "zero2", "zero3"] = Field(
        "none", description="how several devices share one model's state: PyTorch's FSDP2, or DeepSpeed's ZeRO"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is then what is saved and validated",
    )
    validation: ValidationConfig = ValidationConfig()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="where metrics go beside metrics.jsonl; each is an extra of the package"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of one operation; null leaves it to torch. Small models are no faster with two",
    )
    log_every: int = Field(10, ge=1, description="steps per line of metrics.jsonl")
    save_every: int = Field(500, ge=1, description="steps per checkpoint")
    keep: int = Field(2, ge=1, description="newest checkpoints that stay")


class AttentionInPrediction(Settings):
    """Where the cross-modal attention acts beyond what training does."""

    frames: Literal["conditioning", "all"] = Field(
        "conditioning",
        description="frames that attend to the words: those decoded with language, or propagated ones, too",
    )
    temporal_prior: bool = Field(
        False,
        description="the prior is the mean of the pre-pass and of the object's mask in the frame before, where that is"
        " known",
    )


class PredictConfig(Settings):
    """How videos are predicted. What is null is the mode's or the model's own."""

    mode: Literal["frames", "consistent", "sa2va"] | None = Field(None, description="null: the model's inference_mode")
    key_frames: int | None = Field(
        None, ge=1, description="K, frames of each window that the MLLM reads; null: the model's clip_frames"
    )
    choice: Literal["uniform", "first", "diverse"] | None = Field(
        None,
        description="which frames those are: evenly spread, the first ones, or those whose features differ most; null:"
        " uniform, in mode sa2va first",
    )
    window: int | None = Field(
        None, ge=2, description="frames that one answer is for; longer videos are cut into such windows; null: no cuts"
    )
    overlap: int | None = Field(
        None,
        ge=0,
        description="frames that two windows share, where their masks fade into each other; null: a quarter of a"
        " window, at most 8",
    )
    memories: int | None = Field(
        None, ge=1, description="recent frames that SAM 2 remembers; null: all that it was trained with (6)"
    )
    conditioning: int | None = Field(
        None, ge=1, description="conditioning frames that SAM 2 looks back to, the nearest in time; null: all K"
    )
    fallback: Literal["none", "previous", "prior", "force-seg"] = Field(
        "none",
        description="instead of an empty mask or an answer without [SEG]: nothing, the mask of the frame before, the"
        " visual pre-pass, or the mask of an answer that is forced to hold [SEG]",
    )
    cma: AttentionInPrediction = AttentionInPrediction()
    max_new_tokens: int = Field(64, ge=1, description="an answer that is longer is cut")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the weights; auto: bf16 where the device computes in it, fp32 on the CPU"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="kernels of the MLLM's attention, as transformers names them"
    )
    compile: bool = Field(False, description="torch.compile the encoders and the mask decoder; the first video is slow")
    frames_at_once: int = Field(8, ge=1, description="frames per encoder pass; halved when memory runs out")
    expressions_at_once: int = Field(
        32, ge=1, description="expressions per pass of the MLLM and the memory; halved when memory runs out"
    )
    cached_frames: int = Field(64, ge=1, description="frames that `diverse` chooses from, and that stay encoded for it")
    readers: int = Field(4, ge=1, description="threads that read frames ahead")

    @model_validator(mode="after")
    def _fits(self) -> PredictConfig:
        if self.window is not None and self.overlap is not None and self.overlap >= self.window:
            raise ValueError(f"overlap = {self.overlap} is not below window = {self.window}")
        if self.mode == "sa2va" and self.choice not in (None, "first"):
            raise ValueError(f"choice = {self.choice}: mode sa2va shows the first frames, as the released Sa2VA does")
        return self


class RunConfig(Settings):
    """A whole run."""

    seed: int = Field(0, ge=0, description="of data order, initial weights and dropout")
    model: ModelConfig
    data: DataConfig
    losses: LossConfig = LossConfig()
    train: TrainConfig

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.train.recipe == "cma-only" and not self.model.cma.enabled:
            raise ValueError("train.recipe = 'cma-only' trains nothing without model.cma.enabled")
        if self.train.quantize and self.train.recipe != "lora":
            raise ValueError(f"train.quantize = {self.train.quantize!r} needs train.recipe = 'lora'")
        if self.train.quantize and self.train.sharding in ("fsdp2", "zero3"):
            raise ValueError(f"train.sharding = {self.train.sharding!r} cannot share out quantised weights")
        if self.train.sharding == "zero3":
            self._fits_zero3()
        if self.train.true_prompts and not self.train.memory:
            raise ValueError(f"train.true_prompts = {self.train.true_prompts} does nothing without train.memory")
        if self.train.validation.patience is not None and self.train.validation.every is None:
            raise ValueError("train.validation.patience does nothing without train.validation.every")
        if self.train.memory and self.data.decoded_frames <= self.data.prompted_frames:
            raise ValueError(
                f"train.memory needs more data.decoded_frames than data.prompted_frames = {self.data.prompted_frames}"
            )
        return self

    def _fits_zero3(self) -> None:
        """ZeRO-3 takes parameters away as soon as their module has run, on all devices at once."""
        quiet = [one.set for one in self.data.train if one.set in ("llava", "chatunivi", "osprey")]
        for wrong, what in (
            (self.train.ema is not None, "train.ema"),
            (self.train.validation.every is not None, "train.validation.every"),
            (bool(quiet), f"data.train with sets without masks ({', '.join(quiet)})"),
        ):
            if wrong:
                raise ValueError(f"train.sharding = 'zero3' does not go with {what}; fsdp2 does")
