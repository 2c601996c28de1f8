"""The application that the commands register with, their exit codes, and what they share."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

import typer

from homeostat import HomeostatError
from homeostat.errors import SpecError

FOUND = 1
COULD_NOT_RUN = 2
STOPPED = 130

app = typer.Typer(
    name="homeostat",
    help="Batch normalization: see what it does, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def split(text: str | None) -> tuple[str, ...]:
    """Return the parts of an option that takes several, with commas between them."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return the height and width of an option such as 224x224."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise SpecError(
            f"--image-size {text!r} is not a size: expected height x width, such as 224x224."
        )
    return int(height), int(width)


@contextlib.contextmanager
def quiet_frameworks() -> Iterator[None]:
    """Keep what frameworks log from C++ off the screen, unless the run fails or it is wanted.

    TensorFlow logs its build and its search for a GPU straight to the process's stderr, before any
    setting of its logger counts, whenever Keras first needs it. Python's own stderr stays.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    python_stderr = sys.stderr
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log, os.fdopen(terminal, "w", buffering=1) as stderr:
        sys.stderr = stderr
        os.dup2(log.fileno(), 2)
        try:
            yield
        except (HomeostatError, KeyboardInterrupt):
            raise
        except BaseException:
            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, 2)
            sys.stderr = python_stderr
