from __future__ import annotations

from rich.console import Console

from salmacli.engine.progress import PartRow
from salmacli.report.parts import parts_table


def test_the_table_says_what_trains_how_much_of_it_and_how_fast():
    rows = [
        PartRow("vision tower", 304_012_288, 0, None),
        PartRow("LoRA of the LLM", 70_385_664, 70_385_664, (1e-5, 4e-5)),
        PartRow("SAM 2 mask decoder", 4_214_612, 999, (4e-5, 4e-5)),
    ]
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(parts_table(rows))
    lines = [line.strip("│ ").split("│") for line in capture.get().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells == [
        ["vision tower", "304.0 M", "frozen"],
        ["LoRA of the LLM", "70.4 M", "all", "1e-05 … 4e-05"],
        ["SAM 2 mask decoder", "4.2 M", "999", "4e-05"],
        ["all", "378.6 M", "70.4 M"],
    ]
