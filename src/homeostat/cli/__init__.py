"""The command line: arguments and exit codes, nothing else; one file for related commands.

Exit codes: 0 done, 1 `graph` found forgotten updates, `audit` what it fails on or `fold` nothing to
fold, 2 could not run, 130 stopped by Ctrl-C; `run` ends with its script's.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from homeostat import HomeostatError, __version__

# Importing a command registers it, in the order in which --help lists them.
from homeostat.cli import study as study  # isort: skip
from homeostat.cli import bench as bench  # isort: skip
from homeostat.cli import tf1 as tf1  # isort: skip
from homeostat.cli import audit as audit  # isort: skip
from homeostat.cli import recalibrate as recalibrate  # isort: skip
from homeostat.cli import fold as fold  # isort: skip
from homeostat.cli import convert as convert  # isort: skip
from homeostat.cli import warmup as warmup  # isort: skip
from homeostat.cli.app import COULD_NOT_RUN, app

__all__ = ["app", "main"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"homeostat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the entry point of the `homeostat` command."""
    try:
        app()
    except HomeostatError as error:
        typer.echo(f"homeostat: {error}", err=True)
        sys.exit(COULD_NOT_RUN)
