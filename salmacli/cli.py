"""The Typer app: names, help panels, exit codes.

Importing this module imports no torch, transformers or pandas: the commands load what they need when they
run.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

from salmacli import __version__
from salmacli.commands.aggregate import aggregate
from salmacli.commands.convert import convert
from salmacli.commands.data import app as data_app
from salmacli.commands.doctor import app as doctor_app
from salmacli.commands.eval import evaluate
from salmacli.commands.flops import flops
from salmacli.commands.predict import predict
from salmacli.commands.threshold_sweep import threshold_sweep
from salmacli.commands.train import train
from salmacli.errors import SalmaError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PIPE_CLOSED = 141  # 128 + SIGPIPE

_MACHINE_FAULTS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST,
}  # fmt: skip


class _InterruptedError(Exception):
    """Ctrl-C; Typer turns a bare KeyboardInterrupt into an exit code that says no word."""


class _PipeClosedError(Exception):
    """The reader of stdout left; Typer turns a bare BrokenPipeError into 1, the exit code of a bug."""


class _Group(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error
        except BrokenPipeError as error:
            raise _PipeClosedError from error


app = typer.Typer(
    cls=_Group,
    help="Segment in images and videos, frame by frame, the objects that a sentence names.",
    epilog="Results go to stdout, everything else to stderr. SALMA_DEBUG=1 adds tracebacks to errors.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_LEARN, _RESULTS, _MODELS, _DATA = "Train and run", "Results", "Checkpoints and models", "Data"
app.command(rich_help_panel=_LEARN)(train)
app.command("eval", rich_help_panel=_LEARN)(evaluate)
app.command(rich_help_panel=_LEARN)(predict)
app.command(rich_help_panel=_RESULTS)(aggregate)
app.command("threshold-sweep", rich_help_panel=_RESULTS)(threshold_sweep)
app.command(rich_help_panel=_MODELS)(convert)
app.command(rich_help_panel=_MODELS)(flops)
app.add_typer(data_app, name="data", rich_help_panel=_DATA)
app.add_typer(doctor_app, name="doctor", rich_help_panel=_LEARN)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"salma {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _salma(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and turn whatever happens into an exit code.

    Args:
        argv: The arguments after the program's name; ``sys.argv[1:]`` by default.

    Returns:
        0 fine, 1 a bug, 2 usage, 3 config, 4 data or checkpoint, 130 interrupted, 141 the reader of a pipe
        left. Every failure has written one line to stderr.
    """
    try:
        status = app(args=None if argv is None else list(argv), prog_name="salma", standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe is still caught
    except (_PipeClosedError, BrokenPipeError):
        return _leave_pipe()
    except SystemExit as error:  # Typer's own way out of shell completion and closed pipes
        return error.code if isinstance(error.code, int) else 0
    except (_InterruptedError, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except SalmaError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last net: a bug must end in one line, too
        return _fail_on(error)
    return status if isinstance(status, int) else 0


def _fail_on(error: Exception) -> int:
    """Tell usage errors and the machine's faults from bugs."""
    if type(error).__name__ == "NoArgsIsHelpError":  # a group called without a command: its help is the answer
        typer.echo(str(error.args[0] if error.args else error))
        return 2
    # Typer carries its own copy of click since 0.26 and uses the package before: what they share is the
    # shape.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _fail(_usage(error), 2)
    if type(error).__name__ == "Abort":
        return _fail("interrupted", INTERRUPTED)
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror}; make room, change the permissions or choose another folder", 4)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _fail(f"this is a bug of SALMA ({what}); SALMA_DEBUG=1 shows the traceback", 1)


def _usage(error: Any) -> str:
    message = error.format_message().replace("Value error, ", "").rstrip(". ")
    close = getattr(error, "possibilities", None)
    if close:
        message = f"{error.message.rstrip('. ')}; did you mean {' or '.join(sorted(close))}?"
    ctx = getattr(error, "ctx", None)
    return f"{message}{' ' if message.endswith('?') else '; '}see {ctx.command_path if ctx else 'salma'} --help"


def _fail(message: str, status: int) -> int:
    if os.environ.get("SALMA_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    print(f"salma: error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - nothing else may be needed here
    return status


def _leave_pipe() -> int:
    # Python flushes stdout once more at exit and would complain there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE_CLOSED
