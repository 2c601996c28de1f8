"""Names that live in other modules, found when they are first asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def missing_name(place: str, name: str, where: str, names: Iterable[str]) -> AttributeError:
    """Return the error for a name that does not exist, with the nearest one that does.

    Args:
        place: what the name was asked of, such as "tf.contrib".
        name: what was asked for.
        where: where it was looked for, with a verb: "is not in tf_slim".
        names: those that exist.
    """
    near = difflib.get_close_matches(name, sorted(set(names)), n=1)
    hint = f"the nearest name that exists is {place}.{near[0]}" if near else "no name is near it"
    return AttributeError(f"{place}.{name} {where}: {hint}.")


def found_at(path: str) -> Any:
    """Return what a path "module:attribute.attribute" leads to, or the module of a path without."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in attributes.split(".") if attributes else ():
        found = getattr(found, name)
    return found


def moved_names(
    place: str, table: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a module's ``__getattr__`` and ``__dir__``, for names that are elsewhere now.

    Args:
        place: the module's name to TF1 programs.
        table: by name, its path as `found_at` takes it.
    """

    def find(name: str) -> Any:
        if name not in table:
            raise missing_name(place, name, "is not provided by homeostat.tf1", table)
        return found_at(table[name])

    return find, lambda: sorted(table)
