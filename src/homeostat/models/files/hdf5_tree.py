"""What an HDF5 file holds, read in a process of its own that may break."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.errors import MissingExtraError, ModelFileError
from homeostat.models.records import Array

_PROCESS = Path(__file__).with_name("hdf5_process.py")
# The process counts its own seconds of work; this is for a file system that does not answer.
_PATIENCE = 120.0
_ANSWER = 1 << 29


@dataclass(frozen=True, eq=False)
class Tree:
    """The groups and datasets of an HDF5 file.

    Args:
        groups: attributes that are text, by the group's path; "" is the root.
        sizes: how many elements each dataset has, by its path.
        vectors: the numeric datasets with one axis.
        steps: how many steps an optimizer has counted; None where the file does not tell.
    """

    groups: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, int]
    vectors: Mapping[str, Array]
    steps: int | None = None

    def names(self, path: str, attribute: str) -> list[str]:
        """Return a list of names that is a group's attribute, or parts of one with numbers."""
        texts = self.groups.get(path, {})
        if attribute in texts:
            return _listed(texts[attribute])
        found: list[str] = []
        number = 0
        while f"{attribute}{number}" in texts:
            found += _listed(texts[f"{attribute}{number}"])
            number += 1
        return found

    def text(self, path: str, attribute: str) -> str | None:
        """Return a group's attribute; None where it has none, or one that is no text."""
        value = self.groups.get(path, {}).get(attribute)
        return value if isinstance(value, str) else None


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def read_tree(path: Path, member: str | None = None) -> Tree:
    """Return what an HDF5 file holds, or one that is a member of a zip archive.

    Args:
        path: the file.
        member: the archive's member; None for the file itself.

    Raises:
        ModelFileError: it cannot be read, is broken, or uses what could do harm: links to
            elsewhere, data in other files, sizes that cannot be.
        MissingExtraError: h5py is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingExtraError(
            "reading Keras's files needs h5py: expected it to be installed. Run: "
            'pip install "homeostat[audit]"'
        )
    head, _, content = _answer(path, member).partition(b"\n")
    try:
        found = json.loads(head)
    except ValueError as error:
        raise _broken(path, "the HDF5 library fails on it") from error
    if "refused" in found:
        raise _broken(path, found["refused"])
    vectors: dict[str, Array] = {}
    start = 0
    for name, dtype, length in found["vectors"]:
        vectors[name] = np.frombuffer(content, np.dtype(dtype), length, start).copy()
        start += vectors[name].nbytes
    return Tree(found["groups"], found["sizes"], vectors, found["steps"])


def _answer(path: Path, member: str | None) -> bytes:
    command = [sys.executable, "-P", str(_PROCESS), str(path.absolute())]
    environment = os.environ | {
        # The process finds what this one finds, but nothing in the working folder.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
        # No filters from shared libraries.
        "HDF5_PLUGIN_PRELOAD": "::",
    }
    with subprocess.Popen(  # noqa: S603
        command if member is None else [*command, member],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        timer = threading.Timer(_PATIENCE, process.kill)
        timer.start()
        try:
            return process.stdout.read(_ANSWER) if process.stdout is not None else b""
        finally:
            timer.cancel()
            process.kill()


def _broken(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"{path} cannot be read, {what}: expected an HDF5 file as Keras writes it. Save the model "
        "again, or read a copy that is whole."
    )
