"""Training: seconds per step, tokens per second and peak memory, beside the public Sa2VA training code.

    python benchmarks/train.py                                    # tiny; on two cores
    python benchmarks/train.py --size mid                         # real proportions at 256 pixels
    python benchmarks/train.py --size real --device cuda          # Hiera-L at 1024 pixels, InternVL2.5-1B; bf16
    python benchmarks/train.py --public CHECKOUT --public-python PYTHON

Weights and pictures are random, so that nothing is downloaded. Each step has the same batch: `--samples` videos with
`--frames` frames, all shown and segmented, and `--expressions` each. LoRA on a frozen LLM, no cross-modal attention:
what Sa2VA trains. Measured are, in this order:

    steps     ours, ours with gradient checkpointing, `naive`: ours with what Sa2VA's training code does beside
              (see `_naive.py`), and `public`, that code itself, with the same weights and the same batch: CHECKOUT has
              its projects/llava_sam2, PYTHON has the packages that it needs. Medians over `--repeats`, after one step
              that is not counted; on the CPU seconds of the processor. Memory is the most bytes of tensors alive at
              once (weights, gradients, AdamW's state, activations); on a GPU what torch says it has allocated
    formula   the peak that `salma doctor train` tells, against whole steps on fake tensors
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _fake_step import ANSWER, EXPRESSION, batch_of, clips_of, load_of, measured_peak, model_of
from _live_bytes import LiveBytes
from _measuring import machine
from _naive import Naive
from _prediction import MID

from salmacli.checkpoints.files.tensors import write_shards
from salmacli.checkpoints.save import contents_of
from salmacli.checkpoints.sources.sa2va import sa2va_folder
from salmacli.config.loading import load_config
from salmacli.config.schema import ModelConfig, RunConfig
from salmacli.data.collate import MEAN, STD, Batch
from salmacli.engine.estimate import training_memory
from salmacli.engine.training.optimizer import adamw
from salmacli.engine.training.step import Step, counts_of
from salmacli.models.salma import Salma
from salmacli.models.sam2_package import flat, package_config
from salmacli.models.trained import prepare_training

HERE = Path(__file__).resolve().parent
GIB = 2**30
SIZES = ("tiny", "mid", "real")
PLAIN = {"boundary": 0, "tmc": 0, "iou": 0, "prior": 0}  # losses that Sa2VA has not


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    config = config_of(options)
    results: dict[str, Any] = {
        "machine": machine() | {"torch": torch.__version__, "threads": options.threads},
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "dtype": "bfloat16" if options.device == "cuda" else "float32",
        **{name: getattr(options, name) for name in ("size", "samples", "frames", "expressions", "rank")},
    }
    if "steps" in options.what:
        results["steps"] = steps(config, options)
    if "formula" in options.what:
        results["formula"] = formula(config, options)
    out = options.out or HERE / "results" / f"train-{options.size}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    say(f"written: {out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--what", nargs="+", choices=("steps", "formula"), default=["steps", "formula"])
    parser.add_argument("--samples", type=int, default=2, help="of one batch")
    parser.add_argument("--frames", type=int, default=5, help="of each video")
    parser.add_argument("--expressions", type=int, default=3, help="of each video; Sa2VA's code pads them to 5")
    parser.add_argument("--rank", type=int, help="of LoRA; 128, and 16 where tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--public", type=Path, help="checkout of the public code")
    parser.add_argument("--public-python", default=sys.executable, help="interpreter that runs it")
    parser.add_argument("--out", type=Path, help="benchmarks/results/train-SIZE.json")
    options = parser.parse_args()
    if options.public and not (options.public / "projects/llava_sam2/models/sam2_train.py").exists():
        parser.error(f"{options.public} has no projects/llava_sam2/models: name a checkout of Sa2VA's repository")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU")
    options.rank = options.rank or (16 if options.size == "tiny" else 128)
    return options


def config_of(options: argparse.Namespace) -> RunConfig:
    """A run of the size, which trains what Sa2VA trains."""
    sets = [
        "train.recipe=lora",
        f"train.lora.rank={options.rank}",
        f"train.lora.alpha={2 * options.rank}",
        f"train.batch_size={options.samples}",
        "train.learning_rate=4e-5",
        f"data.expressions={options.expressions}",
        f"data.decoded_frames={options.frames}",
        f"model.clip_frames={options.frames}",
        "model.mask_token=best-of-three",
        "model.inference_mode=sa2va",
        *(f"losses.{name}={weight}" for name, weight in PLAIN.items()),
    ]
    if options.size == "real":
        sets += ["model.mllm.base=null", "model.sam2.base=null", "model.sam2.two_decoders=false"]
    if options.size == "tiny":
        sets.append("model.sam2.decoder_feedforward=2048")  # the package's, which Sa2VA's code cannot change
    config = load_config("salma-1b" if options.size == "real" else "tiny", sets)
    if options.size == "mid":
        model = ModelConfig.model_validate(MID | {"clip_frames": options.frames, "inference_mode": "sa2va"})
        config = config.model_copy(update={"model": model})
    return config


# Steps.


def steps(config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Every way by itself."""
    torch.manual_seed(0)
    model = Salma.build(config.model, [EXPRESSION, ANSWER])
    batch = batch_of(model, clips_of(config, options.samples))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_released(model, folder / "weights")
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, checkpointing in (("ours", False), ("ours, checkpointing", True), ("naive", True)):
            say(f"steps: {name}")
            again = Salma.build(config.model, [EXPRESSION, ANSWER])
            again.load_state_dict(weights)
            found[name] = ours(again, config, batch, options, naive=name == "naive", checkpointing=checkpointing)
        if options.public:
            say("steps: public")
            found["public"] = public(config, batch, folder, options)
    for row in found.values():
        row["seconds_per_step"] = round(median(row["seconds"]), 4)
        row["tokens_per_second"] = round(int(batch.ids.numel()) / median(row["seconds"]), 1)
        row["times_slower"] = round(median(row["seconds"]) / median(found["ours"]["seconds"]), 2)
        row["times_memory"] = round(row["peak_bytes"] / found["ours"]["peak_bytes"], 2)
    return {"tokens": batch.ids.numel(), "masks": len(batch.frame_of), **found}


def ours(
    model: Salma, config: RunConfig, batch: Batch, options: argparse.Namespace, *, naive: bool, checkpointing: bool
) -> dict[str, Any]:
    """Seconds of our steps, their first losses, and the most that is alive in one."""
    device, bf16 = torch.device(options.device), options.device == "cuda"
    model.to(device)
    prepare_training(model, config, bf16=bf16 and not naive)
    if checkpointing:
        model.mllm.checkpoint_activations()
    model.train()
    forward: Any = Naive(model, config.losses) if naive else Step(model, config.losses, several=False)
    optimizer, batch = adamw(model, config), batch.to(device)
    first: dict[str, float] = {}

    def step() -> None:
        mixed = torch.autocast("cuda", torch.bfloat16) if bf16 else nullcontext()
        with mixed:
            loss, parts = forward(batch, counts_of(batch), 1.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        first.update({name: float(value) for name, value in parts.items()} if not first else {})

    step()
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    seconds = timed(step, options.repeats, device)
    return {"seconds": seconds, "first_losses": first, "trained": trained, "peak_bytes": peak(step, model, optimizer)}


def timed(step: Callable[[], None], count: int, device: torch.device) -> list[float]:
    # On the CPU the processor's own time: neighbours on the machine do not change it.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(count):
        begin = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
    return seconds


def peak(step: Callable[[], None], model: Salma, optimizer: torch.optim.Optimizer) -> int:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return int(torch.cuda.max_memory_allocated())
    with LiveBytes() as live:
        live.hold(
            [list(model.parameters()), list(model.buffers()), [list(s.values()) for s in optimizer.state.values()]]
        )
        step()
    return live.peak


def write_released(model: Salma, folder: Path) -> None:
    """The weights in the layout in which Sa2VA is released."""
    folder.mkdir()
    header, tensors, files = sa2va_folder(contents_of(model, config={}, step=0))
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(header))
    for name, data in files.items():
        (folder / name).write_bytes(data)


def public(config: RunConfig, batch: Batch, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the public code says of itself, in a process of its own."""
    torch.save(public_batch(batch, options), folder / "batch.pt")
    sam2 = [(name, value) for name, value in flat(package_config(config.model.sam2)) if value is not None]
    job = {
        "weights": str(folder / "weights"),
        "batch": str(folder / "batch.pt"),
        "sam2": [f"++model.{n}={str(v).replace(' ', '')}" for n, v in sam2 if not n.endswith("_target_")],
        "points": config.losses.points,
        "lora": {"r": options.rank, "lora_alpha": 2 * options.rank, "lora_dropout": config.train.lora.dropout},
        "steps": options.repeats,
        "threads": options.threads,
        "device": options.device,
        "dtype": "bfloat16" if options.device == "cuda" else "float32",
    }
    (folder / "job.json").write_text(json.dumps(job))
    driver = str(HERE / "_public_training.py")
    command = [options.public_python, driver, str(options.public.resolve()), str(folder / "job.json")]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    if ended.returncode:
        raise SystemExit(f"the public code ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return dict(json.loads(ended.stdout))


def public_batch(batch: Batch, options: argparse.Namespace) -> dict[str, Any]:
    """Our batch as the public collate function makes one: its questions follow each other and see each other."""
    samples, frames = options.samples, options.frames
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    positions = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    return {
        "input_ids": batch.ids,
        "attention_mask": torch.ones_like(batch.ids, dtype=torch.bool),
        "position_ids": positions.contiguous(),
        "labels": batch.labels,
        "pixel_values": list(batch.mllm_pixels.unflatten(0, (samples, frames))),
        "frames_per_batch": [frames] * samples,
        "g_pixel_values": [(frame * std + mean) * 255 for frame in batch.sam_pixels],
        "masks": list(batch.targets.unflatten(0, (samples, -1)).float()),
    }


# The formula of memory.


def formula(config: RunConfig, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the formula says, and what a step on fake tensors takes."""
    rows = []
    for bf16 in (False, True):
        for checkpointing in (False, True):
            say(f"formula: {'bf16' if bf16 else 'fp32'}, checkpointing {checkpointing}")
            train = config.train.model_copy(update={"gradient_checkpointing": checkpointing})
            run = config.model_copy(update={"train": train})
            model = model_of(run, bf16=bf16)
            batch = batch_of(model, clips_of(run, options.samples))
            told = training_memory(model, run, load_of(batch), bf16=bf16, cpu=True).peak
            measured = measured_peak(model, run, batch, bf16=bf16)
            rows.append(
                {
                    "precision": "bf16" if bf16 else "fp32",
                    "checkpointing": checkpointing,
                    "formula": told,
                    "measured": measured,
                    "ratio": round(told / measured, 3),
                }
            )
    return rows


# Tables.


def table(results: dict[str, Any]) -> str:
    lines = [f"{results['size']}: {results['samples']} videos of {results['frames']} frames"]
    lines[0] += f", {results['expressions']} expressions each, {results['device']}, {results['dtype']}"
    if "steps" in results:
        ways = {name: row for name, row in results["steps"].items() if isinstance(row, dict)}
        head = "".join(f"{name:>14}" for name in ("s/step", "tokens/s", "× slower", "peak MiB", "× memory"))
        lines += [
            f"{results['steps']['tokens']} tokens, {results['steps']['masks']} masks a step",
            "",
            f"{'':22}{head}",
        ]
        for name, row in ways.items():
            values = f"{row['seconds_per_step']:>14.3f}{row['tokens_per_second']:>14.1f}{row['times_slower']:>14.2f}"
            lines.append(f"{name:22}{values}{row['peak_bytes'] / 2**20:>14.1f}{row['times_memory']:>14.2f}")
    if "formula" in results:
        lines += ["", f"{'peak of a step, MiB':30}{'formula':>12}{'measured':>12}{'ratio':>8}"]
        for row in results["formula"]:
            name = f"{row['precision']}{', checkpointing' if row['checkpointing'] else ''}"
            values = "".join(f"{row[key] / 2**20:>12.1f}" for key in ("formula", "measured"))
            lines.append(f"{name:30}{values}{row['ratio']:>8.3f}")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
