"""What converting a model of the real 1B size takes: seconds, and memory compared with the weights.

    python benchmarks/convert.py             # some 15 GB of scratch on the disk, a few minutes
    python benchmarks/convert.py --tiny      # the same with the tiny preset, to see that it runs

Random weights in the dimensions of the `salma-1b` preset (InternViT-300M, Qwen2.5-0.5B, SAM 2 Hiera-L) are made on
the spot in the released Sa2VA layout (bf16), and a v2 training file on top of them (LoRA r 128, float32). Each
conversion is a whole process from the start of Python to its end:

    released      the released model to SALMA's folder
    trained       the training file merged into it
    to bf16       the same, all stored in bf16
    to pth        the same, into one .pth
    adapter       only what was trained, in PEFT's format
    back          the converted model to the released layout

Peak memory is the kernel's count of the process's pages; pages of mapped files are among them, which the kernel may
drop whenever others need the room. What of it is the process's own is sampled every 5 ms and given beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measuring import machine, measure
from torch import Tensor

from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.empty import empty_model, untied
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import open_safetensors, write_shards
from salmacli.checkpoints.sources.sa2va import sa2va_folder
from salmacli.checkpoints.sources.tokenizers import tokenizer_files
from salmacli.config.loading import load_config
from salmacli.models.tokenizer import build_tokenizer

HERE = Path(__file__).resolve().parent
ADAPTED = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))

# Runs the command line and looks at its own memory all the while.
WATCHED = """
import json, sys, threading
out, *command = sys.argv[1:]
most, ended = {"RssAnon": 0, "RssFile": 0}, threading.Event()
def watch():
    while not ended.wait(0.005):
        with open("/proc/self/status") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name in most:
                    most[name] = max(most[name], int(value.split()[0]))
threading.Thread(target=watch, daemon=True).start()
from salmacli.cli import main
code = main(command)
ended.set()
with open(out, "w") as file:
    json.dump(most, file)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the tiny preset's dimensions")
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument(
        "--scratch", type=Path, help="where the files are made and removed again; the system's own place"
    )
    parser.add_argument("--out", type=Path, help="benchmarks/results/convert.json, with --tiny convert-tiny.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        results = {"machine": machine() | {"torch": torch.__version__}, "threads": options.threads}
        results |= conversions(Path(scratch), options.tiny, options.threads)
    out = options.out or HERE / "results" / ("convert-tiny.json" if options.tiny else "convert.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    say(f"written: {out}")


def conversions(folder: Path, tiny: bool, threads: int) -> dict[str, Any]:
    """Make the files, convert them in every way, measure each."""
    base, trained = folder / "released", folder / "trained.pth"
    rank = 8 if tiny else 128
    say("making the released model and its training file")
    parameters = make_released(base, tiny)
    torch.save(training_file(base, rank), trained)
    merge = [str(trained), "--base", str(base), "--lora-alpha", str(2 * rank), "--out"]
    whole = str(folder / "whole")
    commands = {
        "released": [str(base), "--out", str(folder / "salma")],
        "trained": [*merge, whole],
        "to bf16": [*merge, str(folder / "half"), "--dtype", "bf16"],
        "to pth": [*merge, str(folder / "one.pth"), "--to", "pth"],
        "adapter": [*merge, str(folder / "adapter"), "--adapter"],
        "back": [whole, "--to", "sa2va", "--out", str(folder / "back")],
    }
    rows = {}
    for name, arguments in commands.items():
        say(f"convert: {name}")
        rows[name] = one(arguments, folder, threads)
    weights = size(base)
    return {"parameters": parameters, "released_mib": weights, "training_file_mib": size(trained), "conversions": rows}


def one(arguments: list[str], folder: Path, threads: int) -> dict[str, Any]:
    """Seconds and memory of one conversion."""
    status = folder / "status.json"
    command = [sys.executable, "-c", WATCHED, str(status), "convert", *arguments, "--json"]
    measured, said = measure(command, folder, folder, threads)
    made = Path(json.loads(said)["out"])
    own = json.loads(status.read_text())
    weights = sum(row["bytes"] for row in json.loads(said)["modules"]) / 2**20
    return {
        "wall_s": measured["wall_s"],
        "cpu_s": measured["cpu_s"],
        "written_mib": size(made),
        "weights_mib": round(weights),
        "peak_mib": measured["peak_mib"],
        "peak_own_mib": round(own["RssAnon"] / 1024),
        "peak_of_weights": round(measured["peak_mib"] / weights, 2),
        "peak_own_of_weights": round(own["RssAnon"] / 1024 / weights, 2),
    }


def make_released(folder: Path, tiny: bool) -> int:
    """Write random weights of the real dimensions, one tensor at a time; the number of parameters."""
    config = load_config("tiny" if tiny else "salma-1b").model
    tokenizer = build_tokenizer(["the red circle"], config.mllm.vocabulary)
    names, _ = untied(empty_model(config, tokenizer))
    tensors = {name: random_tensor(name, tuple(tensor.shape)) for name, tensor in names.items()}
    plain = config.model_dump(mode="json") | {"inference_mode": "sa2va", "mask_token": "best-of-three"}
    header, released, files = sa2va_folder(Contents(0, plain, {}, tokenizer_files(tokenizer), tensors))
    folder.mkdir()
    write_shards(folder, released)
    (folder / "config.json").write_text(json.dumps(header))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return sum(tensor.numel() for tensor in names.values())


def random_tensor(name: str, shape: tuple[int, ...]) -> LazyTensor:
    def read() -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)

    return LazyTensor(shape, torch.bfloat16, read, name)


def training_file(base: Path, rank: int) -> dict[str, Any]:
    """What a v2 training writes: LoRA of the LLM, and whole what else it trains, in float32."""
    found: dict[str, Tensor] = {}
    peft = "mllm.model.language_model.base_model.model."

    def moved(tensor: LazyTensor) -> Tensor:
        return tensor.read().float() + torch.randn(tensor.shape) * 1e-3

    for name, tensor in open_safetensors(base).items():
        own = name.removeprefix("language_model.")
        if name.startswith("language_model.") and name.endswith(ADAPTED):
            found[f"{peft}{own.removesuffix('weight')}lora_A.default.weight"] = (
                torch.randn(rank, tensor.shape[1]) * 0.02
            )
            found[f"{peft}{own.removesuffix('weight')}lora_B.default.weight"] = (
                torch.randn(tensor.shape[0], rank) * 1e-3
            )
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            found[f"{peft}{own.removesuffix('weight')}modules_to_save.default.weight"] = moved(tensor)
        elif name.startswith("mlp1."):
            found[f"mllm.model.{name}"] = moved(tensor)
        elif name.startswith(("grounding_encoder.sam2_model.sam_mask_decoder.", "text_hidden_fcs.")):
            found[name] = moved(tensor)
    return {"state_dict": found, "meta": {"epoch": 1, "iter": 1000}, "param_schedulers": []}


def size(path: Path) -> int:
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in files) / 2**20)


def table(results: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], Any]] = {
        "wall s": lambda row: row["wall_s"],
        "CPU s": lambda row: row["cpu_s"],
        "written MiB": lambda row: row["written_mib"],
        "peak MiB": lambda row: row["peak_mib"],
        "/ weights": lambda row: row["peak_of_weights"],
        "own MiB": lambda row: row["peak_own_mib"],
        "own / weights": lambda row: row["peak_own_of_weights"],
    }
    lines = [
        f"{results['parameters']:,} parameters, {results['threads']} cores",
        f"released model {results['released_mib']:,} MiB, training file {results['training_file_mib']:,} MiB",
        "".join([f"{'':10}", *(f"{name:>15}" for name in columns)]),
    ]
    for name, row in results["conversions"].items():
        lines.append("".join([f"{name:10}", *(f"{value(row):>15,}" for value in columns.values())]))
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
