"""Models as they are named on a command line: a file, or a function that makes one."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from homeostat.errors import (
    DataError,
    HomeostatError,
    MissingExtraError,
    SpecError,
    UnsupportedError,
)
from homeostat.models.live import LiveModel
from homeostat.models.records import ModelRecord

_FACTORY = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_LIVE = (".keras", ".h5", ".hdf5")
_KERAS_SETTINGS = Path.home() / ".keras" / "keras.json"


def open_model(source: str | Path, weights: str | Path | None = None) -> ModelRecord:
    """Return what is known of a model that a file holds or a function makes.

    A file is read without its framework and nothing in it is run; a function is imported and
    called, so it is code that you trust.

    Args:
        source: the path of a file, checkpoint or SavedModel (`homeostat.models.files`), or
            ``"package.module:factory"``, where ``factory()`` returns a model.
        weights: a file of weights for the factory's model, or None for those that it has.

    Raises:
        DataError: there is nothing at a path.
        ModelFileError: a file cannot be read, or would have to be run.
        SpecError: the factory cannot be found or fails, or a file was given weights.
        UnsupportedError: the factory returns no model.

    Example:
        >>> open_model("no_such_package.models:build")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        homeostat.errors.SpecError: no_such_package.models cannot be imported ...
    """
    if _is_factory(source):
        return _made(str(source), weights).record()
    if weights is not None:
        raise SpecError(
            f"weights={str(weights)!r} was given for the file {source}: expected weights with "
            "package.module:factory alone. Leave one of them out."
        )
    from homeostat.models.files import read_model_file

    return read_model_file(source)


def open_live(source: str | Path, weights: str | Path | None = None) -> LiveModel:
    """Return a model in memory, to be observed and changed.

    Args:
        source: a ``.keras`` or whole-model ``.h5`` file, or ``"package.module:factory"``.
        weights: a file of weights to load into it, or None.

    Raises:
        DataError: there is nothing at a path.
        ModelFileError: a file cannot be read.
        SpecError: the factory cannot be found, or fails.
        UnsupportedError: the factory returns no model, or the file holds arrays without the code
            that uses them.

    Example:
        >>> open_live("weights.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        homeostat.errors.DataError: weights.pt does not exist: expected ...
    """
    if _is_factory(source):
        return _made(str(source), weights)
    path = _existing(source)
    if path.suffix.lower() not in _LIVE or path.name.lower().endswith(".weights.h5"):
        raise UnsupportedError(
            f"{path} holds arrays and not the code that uses them: expected a .keras file, a whole "
            "model's .h5 file, or package.module:factory. Give the function that makes the model, "
            "and this file as its weights."
        )
    with _keras_wanted():
        from homeostat.models.keras import load_model
    live = load_model(path)
    if weights is None:
        return live
    return _with_weights(live.model, _existing(weights))


@contextmanager
def _keras_wanted() -> Iterator[None]:
    """Say which extra is missing where Keras, or a backend for it, is not installed."""
    installed = [name for name in ("tensorflow", "jax", "torch") if find_spec(name) is not None]
    if installed and "tensorflow" not in installed and not _KERAS_SETTINGS.exists():
        # Keras takes TensorFlow unless it is told otherwise.
        os.environ.setdefault("KERAS_BACKEND", installed[0])
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("homeostat"):
            raise
        raise MissingExtraError(
            f"a Keras model cannot run without the package {error.name!r}, which is not installed: "
            "expected Keras and one of its backends. Run: pip install 'homeostat[tensorflow]', or "
            "'homeostat[jax]', or 'homeostat[torch]' and keras"
        ) from error


def _is_factory(source: str | Path) -> bool:
    return isinstance(source, str) and bool(_FACTORY.fullmatch(source)) and not _exists(source)


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    # A name that the system cannot have is no file's.
    except (OSError, ValueError):
        return False


def _existing(path: str | Path) -> Path:
    if not _exists(path):
        raise DataError(
            f"{path} does not exist: expected a file, or package.module:factory. Check the path."
        )
    return Path(path)


def _made(source: str, weights: str | Path | None) -> LiveModel:
    """Return the adapter of the model that a factory makes."""
    path = None if weights is None else _existing(weights)
    with _current_folder():
        factory = _find(source)
        try:
            model = factory()
        except HomeostatError:
            raise
        except Exception as error:
            raise SpecError(
                f"{source} failed, {type(error).__name__}: {error}: expected a function without "
                "arguments that returns a model. Call it yourself to see where."
            ) from error
    return _adapted(model, source) if path is None else _with_weights(model, path, source)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Find modules in the current folder, as ``python -m`` does."""
    before, here = sys.path[:], os.getcwd()  # noqa: PTH109
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path[:] = before


def _find(source: str) -> Callable[[], Any]:
    module, _, names = source.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise SpecError(
            f"{module} cannot be imported ({type(error).__name__}: {error}): expected a module of "
            "an installed package, or of the current folder. Check its name, or set PYTHONPATH."
        ) from error
    for name in names.split("."):
        if not hasattr(found, name):
            known = [each for each, value in vars(found).items() if _is_public(each, value)]
            raise SpecError(
                f"{source} names {name!r}, which is not there: expected a function of {module}, "
                f"such as {', '.join(sorted(known)[:8]) or 'none, for it has none'}. Check its "
                "name."
            )
        found = getattr(found, name)
    if not callable(found):
        raise SpecError(
            f"{source} is a {type(found).__name__}: expected a function that returns a model. "
            "Write one that does."
        )
    return found


def _is_public(name: str, value: Any) -> bool:
    return callable(value) and not name.startswith("_")


def _adapted(model: Any, source: str) -> LiveModel:
    from homeostat.models import adapt

    try:
        return adapt(model)
    except UnsupportedError as error:
        raise UnsupportedError(f"{source} returned what is no model: {error}") from error


def _with_weights(model: Any, path: Path, source: str = "") -> LiveModel:
    """Load weights into a model, in its framework's way, and return its adapter."""
    live = _adapted(model, source)
    # With Keras on PyTorch a model is both.
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(model, keras.Model):
        from homeostat.models.keras import load_weights
    else:
        from homeostat.models.torch import load_weights
    load_weights(model, path)
    return live
