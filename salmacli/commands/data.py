"""``salma data``: make the synthetic benchmark, look at it, and check the sets on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from salmacli.errors import DataError, UsageError

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark
    from salmacli.data.talks import TalkSet
    from salmacli.engine.progress import Progress

app = typer.Typer(help="Make the synthetic benchmark, and check data.", no_args_is_help=True)


@app.command()
def make(
    out: Annotated[
        Path, typer.Option(envvar="SALMA_SYNTHETIC", help="Folder to make; it must not hold anything else.")
    ] = Path("data/synthetic"),
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    train: Annotated[int, typer.Option(min=1, help="Training videos.")] = 700,
    valid: Annotated[int, typer.Option(min=1, help="Validation videos.")] = 40,
    held_out: Annotated[int, typer.Option(min=1, help="Videos with colours and shapes never paired in training.")] = 40,
    show: Annotated[bool, typer.Option("--show", help="Write a contact sheet beside the data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make small procedural videos with expressions and masks, in the official layouts of the real sets."""
    from salmacli.data.synthetic.make import check_synthetic
    from salmacli.data.synthetic.make import make as make_synthetic
    from salmacli.report.console import emit_json, result, say
    from salmacli.report.progress import TerminalProgress

    sizes = {"train": train, "valid": valid, "held_out": held_out}
    if _is_made(out, seed, sizes):
        say(f"{out} is there already, and as it was made")
    else:
        make_synthetic(out, seed, sizes, progress=TerminalProgress())
    marker = check_synthetic(out)
    sheets = _show(out) if show else []
    if as_json:
        summary: dict[str, Any] = {
            key: marker[key] for key in ("schema", "version", "seed", "videos", "frames", "size")
        }
        emit_json({"folder": str(out), **summary, "sheets": [str(sheet) for sheet in sheets]})
        return
    result(_table(out, marker))
    for sheet in sheets:
        say(f"wrote: {sheet}")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="SET", help="The layout: mevis, refcoco, llava, …")],
    data: Annotated[
        Path | None,
        typer.Option(help="The set's folder in its official layout; the synthetic benchmark if not given."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="The split; if not given the one that people report, of sets for training alone train."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Look for every file, but decode no picture.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look through a set on disk and tell all that is missing, broken or does not fit; exit code 4 if anything is.

    Nothing is changed. Training would drop and count what is told here.
    """
    from salmacli.data.readers.checks import tolerant
    from salmacli.engine.verify import verify as verify_set
    from salmacli.report.console import emit_json, result
    from salmacli.report.progress import TerminalProgress
    from salmacli.report.verified import summary, tables

    progress = TerminalProgress()
    with tolerant() as faults:
        found = _opened(name, data, split, progress)
    findings, left_out = verify_set(found, faults, quick, progress)
    told = summary(found, findings, left_out, quick)
    if as_json:
        emit_json(told)
    else:
        result(tables(told))
    if findings.faults:
        raise typer.Exit(DataError.exit_code)


def _opened(name: str, data: Path | None, split: str | None, progress: Progress) -> Benchmark | TalkSet:
    from salmacli.data.benchmarks import DEFAULT_SPLITS
    from salmacli.data.sets import NAMES, open_set
    from salmacli.engine.sources import open_source

    if name not in NAMES:
        raise UsageError(f"there is no set {name!r}", f"choose one of {', '.join(NAMES)}")
    split = split or DEFAULT_SPLITS.get(name, "train")
    if data is not None:
        return open_set(name, data, split)
    if name not in DEFAULT_SPLITS:
        raise UsageError(f"there is no synthetic {name}", "give its folder with --data")
    return open_source(name, None, split, progress)


def _is_made(out: Path, seed: int, sizes: dict[str, int]) -> bool:
    """Whether exactly this is there; the same seed and sizes would give the same bytes."""
    from salmacli.data.benchmarks import MARKER
    from salmacli.data.synthetic.make import check_synthetic

    if not (out / MARKER).is_file():
        return False
    marker = check_synthetic(out)
    return bool(marker.get("seed") == seed and marker.get("videos") == sizes)


def _show(out: Path) -> list[Path]:
    import io

    from salmacli.config.files import write_atomic
    from salmacli.data.synthetic.make import open_synthetic
    from salmacli.report.contact_sheet import contact_sheet

    sheets = []
    for name, split in (("mevis", "train"), ("mevis", "valid_u"), ("revos", "valid"), ("davis", "valid")):
        buffer = io.BytesIO()
        contact_sheet(open_synthetic(name, out, split)).save(buffer, "PNG")
        # Beside the folder's own files: its checksums cover only what a reader reads.
        sheets.append(out / f"contact-sheet-{name}-{split}.png")
        write_atomic(sheets[-1], buffer.getvalue())
    return sheets


def _table(out: Path, marker: dict[str, Any]) -> Any:
    from collections import Counter

    from rich.table import Table

    from salmacli.data.synthetic.make import open_synthetic

    table = Table(caption=f"{out}, seed {marker['seed']}", caption_justify="left")
    columns = ("layout", "split", "videos", "expressions", "with a salient distractor")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    rows = [
        ("mevis", "train"),
        ("mevis", "valid"),
        ("mevis", "valid_u"),
        ("revos", "train"),
        ("revos", "valid"),
    ]
    rows += [("davis", "valid"), ("refytvos", "train"), ("refytvos", "valid"), ("own", "train")]
    rows += [("refcoco", split) for split in ("train", "val", "testA", "testB")]
    rows += [("grefcoco", split) for split in ("train", "val")]
    for name, split in rows:
        benchmark = open_synthetic(name, out, split)
        tags = Counter(
            bool(expression.tags.get("distractor")) for video in benchmark.videos for expression in video.expressions
        )
        share = "–" if name == "own" else f"{tags[True] / max(tags.total(), 1):.0%}"
        table.add_row(name, split, str(len(benchmark.videos)), str(tags.total()), share)
    return table
