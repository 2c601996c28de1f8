"""Write a Keras model beside its place and rename it, so that no half file is ever there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from homeostat.errors import DataError, UnsupportedError


def save(model: Any, path: Path) -> None:
    """Write a model to a file that does not exist yet, in the format of its suffix.

    Args:
        model: the Keras model.
        path: ``.keras``, or ``.weights.h5`` for the weights alone, or a legacy ``.h5``.

    Raises:
        DataError: the file is there, or cannot be written.
        UnsupportedError: the suffix is another one, or Keras cannot write the model.
    """
    suffix = ".weights.h5" if path.name.endswith(".weights.h5") else path.suffix
    if suffix not in (".keras", ".weights.h5", ".h5"):
        raise UnsupportedError(
            f"{path} has the suffix {suffix!r}: expected .keras, .weights.h5 or .h5. Keras writes "
            "models in these formats."
        )
    if path.exists():
        raise DataError(f"{path} is there already: expected a new file. Choose another name.")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is no folder: expected one that exists. Make it first.")
    beside = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        if suffix == ".weights.h5":
            model.save_weights(beside)
        else:
            model.save(beside)
        beside.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}): expected a folder that can be "
            "written to, with space left. Choose another one."
        ) from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedError(
            f"Keras cannot write the model {model.name!r}: {str(error)[:500]}. Give its classes a "
            "get_config, or save to .weights.h5."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
