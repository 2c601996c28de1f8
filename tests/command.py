"""The command line in a process of its own, since Keras chooses its backend once in each."""

from __future__ import annotations

import os
import subprocess
import sys


def environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"}
    }
    return kept | {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"} | changes


def run_homeostat(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "homeostat.cli", *arguments, **changes)


def run_python(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# A shell makes what it runs in the background ignore Ctrl-C, and children inherit that.
_INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from homeostat.cli import main
main()
"""


def start_homeostat(*arguments: str) -> subprocess.Popen[str]:
    """Start the command line in the background; SIGINT is Ctrl-C to it."""
    return subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
