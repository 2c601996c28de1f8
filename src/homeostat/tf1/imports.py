"""Give a TF1 script the TF1 API wherever it imports tensorflow; libraries get what they expect."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from homeostat.tf1 import contrib
from homeostat.tf1.contrib.mended_slim import mended_slim
from homeostat.tf1.origin import is_users_file

_SURFACE = "homeostat.tf1"


@contextmanager
def tf1_imports() -> Iterator[None]:
    """Make ``import tensorflow`` in the user's modules mean `homeostat.tf1` inside the block.

    The statement is answered by who imports: a file that is neither installed nor Python's own is
    the user's. So whatever TensorFlow, tf_keras, tf_slim or pickle import, at once or later, is
    what it would be without the block. `import tf_slim` gives it mended to whoever imports it.
    `importlib.import_module` is left alone.
    """
    original = builtins.__import__

    def answer(
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top, _, rest = name.partition(".")
        if top == "tf_slim" and not level and not _is_its_own(globals or {}):
            mended_slim()
        if level or top != "tensorflow" or not _is_users(globals or {}):
            return original(name, globals, locals, fromlist or (), level)
        return _import(rest, fromlist or ())

    surface = importlib.import_module(_SURFACE)
    before = dict(vars(surface))
    vars(surface).update(compat=_compat(surface))
    builtins.__import__ = answer
    try:
        yield
    finally:
        builtins.__import__ = original
        vars(surface).clear()
        vars(surface).update(before)


def _is_users(importer: Mapping[str, Any]) -> bool:
    filename = importer.get("__file__")
    # A notebook's cells have no file.
    return importer.get("__name__") == "__main__" if filename is None else is_users_file(filename)


def _is_its_own(importer: Mapping[str, Any]) -> bool:
    """Return whether tf_slim, or what mends it, is the importer."""
    return str(importer.get("__name__")).partition(".")[0] in ("tf_slim", "homeostat")


def _import(rest: str, fromlist: Sequence[str]) -> ModuleType:
    """Do what an import statement does: load, bind what was loaded in its parent, answer."""
    module = _module(rest)
    if not fromlist:
        surface, first = importlib.import_module(_SURFACE), rest.partition(".")[0]
        if first and not hasattr(surface, first):
            setattr(surface, first, _module(first))
        return surface
    for name in fromlist:
        if name != "*" and not hasattr(module, name) and _exists(f"{_SURFACE}.{rest}.{name}"):
            setattr(module, name, _module(f"{rest}.{name}"))
    return module


def _module(rest: str) -> ModuleType:
    """Return what ``tensorflow.<rest>`` means to a TF1 script."""
    surface = importlib.import_module(_SURFACE)
    if rest in ("", "compat.v1"):
        return surface
    if rest.startswith("compat.v1."):
        return _module(rest.removeprefix("compat.v1."))
    if _exists(f"{_SURFACE}.{rest}"):
        return importlib.import_module(f"{_SURFACE}.{rest}")
    if rest.startswith("contrib."):
        module = contrib.moved(rest.removeprefix("contrib."))
        if module is not None:
            return module
    found: Any = surface
    for name in rest.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, ModuleType) else importlib.import_module(f"tensorflow.{rest}")


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # One of its parents does not exist.
        return False


def _compat(surface: ModuleType) -> ModuleType:
    """Return tf.compat with the TF1 surface for its v1."""
    compat, real = ModuleType("tensorflow.compat"), surface.compat

    def find(name: str) -> Any:
        return getattr(real, name)

    vars(compat).update(__getattr__=find, __path__=[], v1=surface)
    return compat
