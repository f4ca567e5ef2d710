"""`hotloop ...`: a thin shell over the Python API. Every error is one line on stderr with exit code 2."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..errors import HotloopError, printable
from . import avatar, bundles, compare, doctor, generate, generators, live, serve, tracker
from . import interpolate as ways
from .shell import LONGEST_LINE, fail

__all__ = ["app", "main"]

app = typer.Typer(
    name="hotloop",
    help="Low-latency Stable Diffusion runtime.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    *generate.PIPELINE_COMMANDS, generate.rerun, generate.samplers, generators.generate, ways.interpolate, live.live,
    serve.serve, avatar.avatar, tracker.tracker, compare.compare, doctor.doctor, bundles.inspect, bundles.verify,
)  # fmt: skip
for command in COMMANDS:
    app.command(command.__name__)(command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """The `hotloop` command. Upper layers add their commands through the entry-point group `hotloop.commands`."""
    for entry in entry_points(group="hotloop.commands"):
        app.command(entry.name)(entry.load())
    signal.signal(signal.SIGTERM, _terminate)  # ends like an error, so that what is half made is removed
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files: what cannot be read is an error of our own
    try:
        code = app(standalone_mode=False)
    except HotloopError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except OSError as error:
        fail(f"[file] {error.strerror or error}: {error.filename}")
    except Exception as error:
        # Wrong flags: typer's usage errors all have format_message(); anything else is a defect and shows its trace.
        if not hasattr(error, "format_message"):
            raise
        fail(f"[command line] {error.format_message()}")
    if code == 130:  # typer's own word for an interrupt
        fail("interrupted", code=code)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    sys.stderr.write("hotloop: " + printable(" ".join(str(message).splitlines()), LONGEST_LINE) + "\n")


def _terminate(number: int, frame: object) -> NoReturn:
    fail("terminated", code=128 + number)
