from __future__ import annotations

import json

from PIL import Image
from typer.testing import CliRunner

from salmacli.commands.data import app

SMALL = ["--train", "2", "--valid", "1", "--held-out", "2"]


def test_make_show_and_json(tmp_path):
    out = tmp_path / "synthetic"
    first = CliRunner().invoke(app, ["make", "--out", str(out), *SMALL, "--show", "--json"])
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    assert made["videos"] == {"train": 2, "valid": 1, "held_out": 2}
    assert len(made["sheets"]) == 4
    for sheet in made["sheets"]:
        with Image.open(sheet) as picture:
            assert picture.width > 800
    second = CliRunner().invoke(app, ["make", "--out", str(out), *SMALL])
    assert second.exit_code == 0
    assert "is there already" in second.stderr
    assert "valid_u" in second.stdout


def test_other_sizes_do_not_overwrite(tmp_path):
    out = tmp_path / "synthetic"
    CliRunner().invoke(app, ["make", "--out", str(out), *SMALL])
    refused = CliRunner().invoke(app, ["make", "--out", str(out), "--seed", "1", *SMALL])
    assert refused.exit_code == 1  # the app of all commands turns it into the exit code of DataError
    assert "is not empty" in str(refused.exception)
