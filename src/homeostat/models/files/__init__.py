"""Readers of model files: what a file tells of its batch norms, without running any of it.

None needs the framework that wrote the file, and none runs what a file holds. What is not a batch
norm's is not read, and what a file declares is checked before memory is taken for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from homeostat.errors import DataError, HomeostatError, ModelFileError
from homeostat.models.files.recognize import format_of
from homeostat.models.records import ModelRecord

READERS: Mapping[str, tuple[str, str]] = {
    "keras": ("keras_archive", "read_keras_archive"),
    "hdf5": ("hdf5", "read_hdf5"),
    "torch": ("torch_file", "read_torch"),
    "safetensors": ("safetensors", "read_safetensors"),
    "tensorflow": ("tf_checkpoint", "read_tf_checkpoint"),
    "onnx": ("onnx", "read_onnx"),
}
"""For each format its module here, imported when such a file is read, and the function there."""

__all__ = ["READERS", "read_model_file"]


def read_model_file(path: str | Path) -> ModelRecord:
    """Return the batch norms of a model file, and what else the file tells.

    Args:
        path: a ``.keras``, ``.weights.h5``, ``.h5``, ``.pt``, ``.pth``, ``.safetensors`` or
            ``.onnx`` file, the prefix or a file of a TensorFlow checkpoint, its folder, or a
            SavedModel. What is in it counts, not what it is called.

    Returns:
        The norms in the order of the network where the file tells it; what it does not tell is in
        each norm's ``unknown``.

    Raises:
        DataError: there is nothing at the path.
        ModelFileError: the file is damaged, is none of these, or would have to be run.
        MissingExtraError: a package that reads this format is not installed.

    Example:
        >>> read_model_file("no such file.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        homeostat.errors.DataError: no such file.pt does not exist: expected a model file. ...
    """
    path = Path(path)
    try:
        module, function = READERS[format_of(path)]
        read = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return read(path)
    except ModelFileError:
        raise
    except HomeostatError as error:
        if isinstance(error, DataError | ImportError):
            raise
        raise _damaged(path, error) from error
    # Whatever else a damaged file makes a reader stumble over is the file's fault.
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path} cannot be read ({type(error).__name__}: {error!s:.200}): expected a whole model "
        "file. Download it or save it again."
    )
