"""Whose code is it: the user's, or a library's?"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_STANDARD = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))


@functools.cache
def is_users_file(filename: str) -> bool:
    """Return whether a source file is the user's: not Python's, Homeostat's or installed."""
    if filename.startswith("<frozen"):
        return False
    parts = filename.replace("\\", "/").split("/")
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    return not filename.startswith(tuple(f"{home}{os.sep}" for home in (_PACKAGE, *_STANDARD)))


def user_line() -> str:
    """Return the user's innermost line that is running, "file:line"; "unknown" if there is none."""
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        if is_users_file(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{line}"
    return "unknown"


def line_of(operation: Any) -> str:
    """Return the user's innermost line that made an operation; "" if nobody knows it."""
    for frame in reversed(operation.traceback or ()):
        if is_users_file(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return ""
