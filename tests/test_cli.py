from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from salmacli import __version__, cli
from salmacli.cli import main
from salmacli.errors import ConfigError

HEAVY = ("torch", "transformers", "pandas", "numpy", "matplotlib", "pydantic", "yaml", "av", "scipy")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """An app of its own behind ``main``, so that the real one keeps its commands."""
    app = typer.Typer(cls=cli._Group, context_settings=cli.app.info.context_settings)
    app.callback()(lambda: None)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.delenv("SALMA_DEBUG", raising=False)
    return app


def _raises(app: typer.Typer, error: BaseException) -> None:
    def fail() -> None:
        raise error

    app.command("fail")(fail)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from salmacli.cli import main; status = main(['--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "convert" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs the CPU time of children")
def test_help_answers_within_three_tenths_of_a_second() -> None:
    # With compiled files, as people have them after their first call.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "salmacli", "--help"]

    def seconds() -> float:
        before = os.times()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    # CPU time and the best of three, so that other work on the machine does not decide.
    best = min(seconds() for _ in range(3))
    if best >= 0.3 and os.getloadavg()[0] > (os.cpu_count() or 1):
        pytest.skip(f"{best:.2f} s, but the machine is too busy to tell")
    assert best < 0.3


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("train", "eval", "predict", "aggregate", "threshold-sweep", "convert", "flops", "data"):
        assert f" {command} " in out


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "eval", "predict", "aggregate", "threshold-sweep", "convert", "flops", "data"):
        assert main([command, "--help"]) == 0
        assert command in capsys.readouterr().out


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: salma" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"salma {__version__}"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["flops", "--fraems", "3"], "--frames"),
        (["flops", "--frames", "x"], "--frames"),
        (["flops", "--frames", "0"], "--frames"),
        (["flops", "--frames"], "--frames"),
        (["flops", "a"], "(a)"),
        (["convert"], "FILE"),
        (["convert", "x", "--to", "zip"], "zip"),
        (["flosp"], "flosp"),
        (["--nothing"], "--nothing"),
    ],
)
def test_usage_errors_are_one_line_with_the_way_to_help(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("salma: error: ")
    assert told in err
    assert "--help" in err


def test_a_wrong_option_names_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", "--fraems", "3"])
    assert "did you mean --frames" in capsys.readouterr().err


def test_salma_errors_end_with_their_code_in_one_line(failing: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    _raises(failing, ConfigError("train.stpes is unknown", "did you mean train.steps?"))
    assert main(["fail"]) == 3
    assert capsys.readouterr().err == "salma: error: train.stpes is unknown; did you mean train.steps?\n"


def test_a_bug_is_called_one_and_keeps_to_one_line(failing: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    _raises(failing, ZeroDivisionError("division\nby zero"))
    assert main(["fail"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "bug" in err
    assert "ZeroDivisionError: division by zero" in err
    assert "SALMA_DEBUG=1" in err


@pytest.mark.parametrize("error", [ConfigError("x"), ValueError("x")])
def test_debug_adds_the_traceback(
    failing: typer.Typer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setenv("SALMA_DEBUG", "1")
    _raises(failing, error)
    assert main(["fail"]) in (1, 3)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("salma: error: ")


def test_a_full_disk_is_no_bug(failing: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    _raises(failing, OSError(errno.ENOSPC, "No space left on device", "/runs/x"))
    assert main(["fail"]) == 4
    err = capsys.readouterr().err
    assert "bug" not in err
    assert "/runs/x" in err


def test_interrupt(failing: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    _raises(failing, KeyboardInterrupt())
    assert main(["fail"]) == 130
    assert capsys.readouterr().err == "salma: error: interrupted\n"


def test_a_command_may_give_its_own_code(failing: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    failing.command("stopped")(lambda: 130)
    _raises(failing, typer.Exit(7))
    assert main(["stopped"]) == 130
    assert main(["fail"]) == 7
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_leaves_is_met_with_silence() -> None:
    code = (
        "import sys; from salmacli import cli; import typer\n"
        "cli.app = typer.Typer(cls=cli._Group); cli.app.callback()(lambda: None)\n"
        "cli.app.command('talk')(lambda: [print('x' * 10000) for _ in range(1000)] and None)\n"
        "sys.exit(cli.main(['talk']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=20) == cli.PIPE_CLOSED


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_from_outside(tmp_path: Path) -> None:
    code = (
        "import sys, time; from salmacli import cli; import typer\n"
        "cli.app = typer.Typer(cls=cli._Group); cli.app.callback()(lambda: None)\n"
        "def wait() -> None:\n    print('ready', flush=True); time.sleep(20)\n"
        "cli.app.command('wait')(wait)\nsys.exit(cli.main(['wait']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert err == "salma: error: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST])
def test_what_the_file_system_refuses_is_no_bug(
    failing: typer.Typer, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    _raises(failing, OSError(number, os.strerror(number), "/runs/x"))
    assert main(["fail"]) == 4
    assert capsys.readouterr().err.startswith("salma: error: /runs/x: ")
