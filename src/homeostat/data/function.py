"""A user's own function, by its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from homeostat.errors import DataError


def function_named(name: str, what: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` names.

    Modules are looked for in the working directory first, as `python -m` does.

    Args:
        name: its name; the part behind the colon may have dots.
        what: what it gives, for the message: "data".

    Raises:
        DataError: there is no such module or function, or it cannot be called.
    """
    module, _, path = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name} names {what}, but the module {error.name!r} is not there: expected "
            "package.module:function, in the working directory or installed. Check the spelling."
        ) from error
    except AttributeError as error:
        raise DataError(
            f"{name} names {what}, but {error}: expected package.module:function. Check the "
            "spelling behind the colon."
        ) from error
    if not callable(found):
        raise DataError(
            f"{name} is an object of type {type(found).__name__}, not a function: expected one "
            f"that gives {what}. Put it into a function."
        )
    return found
