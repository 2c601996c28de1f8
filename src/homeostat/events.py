"""Event files, which TensorBoard shows, without the framework that trains."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.errors import DataError, MissingExtraError


class EventWriter:
    """Writes scalars and histograms over training's steps into an event file of a folder.

    Args:
        folder: where the file goes; TensorBoard's ``--logdir`` or a folder in it.

    Raises:
        MissingExtraError: tensorboard is not installed.
        DataError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> writer = EventWriter(tempfile.mkdtemp())
        >>> writer.add_scalar("bn/mean_shift", 0.25, step=1)
        >>> writer.close()
    """

    def __init__(self, folder: str | Path) -> None:
        need_tensorboard()
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._scalar, self._histogram = Event, scalar_pb, histogram_pb
        try:
            self._file: Any = EventFileWriter(str(folder))
        except Exception as error:
            # TensorFlow's file system, where it is installed, has errors of its own.
            raise DataError(
                f"no event file can be written into {folder} ({error}): expected a folder that "
                "can be written to. Choose another one."
            ) from error

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number of a step."""
        self._add(self._scalar(tag, value), step)

    def add_histogram(self, tag: str, values: Any, step: int) -> None:
        """Write how the finite ones among the values of a step are spread."""
        values = np.asarray(values, np.float64)
        self._add(self._histogram(tag, values[np.isfinite(values)]), step)

    def _add(self, summary: Any, step: int) -> None:
        self._file.add_event(self._event(summary=summary, step=step, wall_time=time.time()))

    def flush(self) -> None:
        """Let readers see what was written so far."""
        self._file.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()


def need_tensorboard() -> None:
    """Check that event files can be written.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    try:
        importlib.import_module("tensorboard.summary.writer.event_file_writer")
    except ImportError as error:
        raise MissingExtraError(
            "event files need the package 'tensorboard', which is not installed: expected the "
            "extra 'tensorboard'. Run: pip install 'homeostat[tensorboard]'"
        ) from error
