"""Load Keras models and weights without running code from files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras

from homeostat.errors import HomeostatWarning, ModelFileError
from homeostat.models.keras.model import KerasModel


def load_model(path: Path) -> KerasModel:
    """Return the model of a `.keras` or legacy `.h5` file, loaded in Keras's safe mode.

    Args:
        path: the file.

    Raises:
        ModelFileError: it cannot be read, or wants code: a Lambda layer, or a class that is not
            registered.
        UnsupportedError: the model in it is not built.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.keras"
        ...     model.save(path)
        ...     len(load_model(path).norms)
        1
    """
    path = _existing(path)
    try:
        model = _loaded(path, compile=True)
    except Exception as first:
        try:
            model = _loaded(path, compile=False)
        except Exception as error:
            raise _refused(path, error) from error
        warnings.warn(
            f"{path} was loaded without its optimizer and loss, which cannot be had: "
            f"{_shortened(first)}",
            HomeostatWarning,
            stacklevel=2,
        )
    if not isinstance(model, keras.Model):
        raise ModelFileError(
            f"{path} holds a {type(model).__name__}: expected a Keras model. Give another file."
        )
    return KerasModel(model)


def load_weights(model: keras.Model, path: Path) -> KerasModel:
    """Load the weights of a `.weights.h5`, `.keras` or legacy `.h5` file into a model.

    Args:
        model: the model that they belong to, built.
        path: the file.

    Raises:
        ModelFileError: it cannot be read, or does not fit the model.
        UnsupportedError: the model is not built.
    """
    adapter = KerasModel(model)
    try:
        model.load_weights(_existing(path))
    except Exception as error:
        raise ModelFileError(
            f"{path} cannot be loaded into the model {model.name!r}: {_shortened(error)}. Expected "
            "the weights of a model of the same layers. Build the model that they were saved from."
        ) from error
    return adapter


def _loaded(path: Path, *, compile: bool) -> Any:  # noqa: A002
    with warnings.catch_warnings():
        # Of an optimizer that has not taken a step.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        return keras.saving.load_model(path, compile=compile, safe_mode=True)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelFileError(f"{path} is no file: expected a Keras model. Check the path.")
    return path


def _refused(path: Path, error: Exception) -> ModelFileError:
    text = _shortened(error)
    if "safe_mode" in text or "Lambda" in text or "lambda" in text:
        return ModelFileError(
            f"{path} wants to run code that is in the file: {text}. Expected layers without code. "
            "Build the model in your own code, and load its weights into it "
            "(package.module:factory with --weights)."
        )
    if "Could not locate" in text or "custom" in text:
        return ModelFileError(
            f"{path} wants classes that are not in Keras: {text}. Expected Keras's own layers. "
            "Import the module that registers them first, or build the model in your own code and "
            "load its weights into it (package.module:factory with --weights)."
        )
    return ModelFileError(
        f"Keras cannot load {path}: {text}. Expected a model that it has saved itself. Save it "
        "again with model.save(...)."
    )


def _shortened(error: Any) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # Keras puts the reason behind the whole configuration.
    text = text.rpartition("Exception encountered: ")[2] or text
    return text if len(text) < 400 else f"{text[:400]}..."
