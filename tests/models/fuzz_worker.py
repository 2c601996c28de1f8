"""Read the files whose names come in, a line each, and answer each with a line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import homeostat.models.files
from homeostat.errors import HomeostatError

MEGABYTES = 400
LIMIT = 8 << 30
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DOES = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill"),
    *("subprocess.", "socket.", "shutil.", "tempfile.", "ctypes.", "urllib.", "webbrowser."),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "pickle.find_class", "code."),
)
OWN_PROCESS = Path(homeostat.models.files.__file__).with_name("hdf5_process.py")
"""The one program that a reader may start: HDF5's library runs there, under limits of its own."""


class Watch:
    """Notes whatever the interpreter is asked to do that reading does not need."""

    def __init__(self) -> None:
        self.on, self.own = False, False
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & _WRITES
            if writes and arguments[0] != os.devnull:
                self.seen.append(f"open {arguments[0]!r} to write")
        elif event in ("exec", "compile"):
            # A module that is imported only when it is needed.
            file = getattr(arguments[0], "co_filename", arguments[-1])
            if not str(file).endswith(".py") and not str(file).startswith("<frozen"):
                self.seen.append(f"{event} {file}")
        elif event == "subprocess.Popen" and list(arguments[1][:1]) == [sys.executable]:
            self.own = str(OWN_PROCESS) in arguments[1]
            self.seen += [] if self.own else [f"{event} {arguments!r:.100}"]
        elif event.startswith(_DOES) and not (event == "os.kill" and self.own):
            self.seen.append(f"{event} {arguments!r:.100}")


def answer(read: Callable[[str], Any], path: str, watch: Watch) -> tuple[str, str, bool]:
    kind, detail, raised = "read", "", None
    before = peak(anew=True)
    watch.seen, watch.own, watch.on = [], False, True
    try:
        read(path)
    except BaseException as error:
        raised = error
    finally:
        watch.on = False
    if isinstance(raised, HomeostatError):
        kind, detail = "refused", str(raised).replace(path, "FILE")
    elif raised is not None:
        kind, detail = "exception", "".join(traceback.format_exception(raised))[-600:]
    grown = (peak() - before) >> 10
    if watch.seen:
        return "ran", "; ".join(watch.seen), False
    if grown > MEGABYTES or "MemoryError" in detail:
        return "memory", f"{grown} MB, {detail}", False
    return kind, detail, detail.startswith("FILE cannot be read (")


def peak(*, anew: bool = False) -> int:
    """Return the most memory that the process ever had, or had since it was asked anew, in KB."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main(lines: TextIO, answers: TextIO) -> None:
    module, _, name = sys.argv[1].partition(":")
    read = getattr(importlib.import_module(module), name)
    for path in sys.argv[2:]:
        read(path)
    watch = Watch()
    sys.addaudithook(watch)
    # More than any file needs: what would take all of the machine's memory fails instead.
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    print("ready", file=answers, flush=True)
    for line in lines:
        print(json.dumps(answer(read, json.loads(line), watch)), file=answers, flush=True)


if __name__ == "__main__":
    # What a library prints is no answer.
    with os.fdopen(os.dup(1), "w") as told:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main(sys.stdin, told)
