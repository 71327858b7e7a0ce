from __future__ import annotations

import json
import shutil

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


def verified(*arguments):
    run = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    return run, json.loads(run.stdout) if "--json" in arguments else run.stdout


def test_verify_a_folder_that_is_whole_and_one_that_is_not(small_synthetic, tmp_path):
    whole, told = verified("mevis", "--data", small_synthetic / "mevis", "--split", "train", "--json")
    assert (whole.exit_code, told["whole"], told["faults"], told["split"]) == (0, True, [], "train")
    assert told["counts"]["videos"] == 6 and told["counts"]["masks"] > 0
    shutil.copytree(small_synthetic / "mevis", tmp_path / "mevis")
    gone = next((tmp_path / "mevis" / "valid_u" / "JPEGImages").glob("*/00007.jpg"))
    gone.unlink()
    broken, text = verified("mevis", "--data", tmp_path / "mevis")
    assert broken.exit_code == 4
    for part in ("valid_u", "to be mended", "missing files", gone.name):
        assert part in text
    broken, told = verified("mevis", "--data", tmp_path / "mevis", "--json", "--quick")
    assert broken.exit_code == 4
    assert told["faults"] == [
        {"kind": "missing files", "count": 1, "first": [f"frame {gone} does not exist; copy it again"]}
    ]


def test_verify_the_synthetic_benchmark_and_what_has_none(small_synthetic, monkeypatch):
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
    whole, text = verified("refcoco", "--quick")
    assert whole.exit_code == 0 and "(synthetic)" in text and "whole, as far as can be told" in text
    for arguments, message in (
        (["llava"], "there is no synthetic llava"),
        (["nothing"], "there is no set 'nothing'; choose one of mevis, "),
        (["gcg-grandf", "--data", small_synthetic], "has none of images/grandf/train"),
    ):
        refused, _ = verified(*arguments)
        assert message in str(refused.exception)
