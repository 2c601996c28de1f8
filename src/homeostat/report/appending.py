"""Append whole lines to a file of rows, so that a run that is killed spoils none of them."""

from __future__ import annotations

import os
from pathlib import Path

from homeostat.errors import DataError


def append_lines(path: Path, lines: str, header: str = "") -> None:
    """Append lines and make sure that they are on the disk.

    They go out in one write, so rows of two runs never mix within a line. A line that an earlier
    run could not finish is taken away first.

    Args:
        path: the file; it and its folder are made if they are not there.
        lines: whole lines, each with its end.
        header: what an empty file starts with.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_unfinished(path)
        if not path.exists() or path.stat().st_size == 0:
            lines = header + lines
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, lines.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): expected a folder that can be written "
            "to, with space left. Choose another one with --out."
        ) from error


def _drop_unfinished(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
