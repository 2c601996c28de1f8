"""Calling a user's function with those of the arguments that it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from homeostat.errors import SpecError


def arguments_taken(function: Callable[..., Any], offered: Collection[str]) -> frozenset[str]:
    """Return which of the offered arguments a function takes by name.

    Args:
        function: a function, a `functools.partial` of one or an object that can be called.
        offered: names of arguments.

    Returns:
        Some of the names; all of them for a function with ``**kwargs``.

    Raises:
        SpecError: it is no function, or needs arguments that are not offered.
    """
    if not callable(function):
        raise SpecError(
            f"{function!r} cannot be called: expected a function. Pass the function itself, not "
            "what it returns."
        )
    bound: set[str] = set()
    part = function
    while isinstance(part, functools.partial):
        bound |= set(part.keywords)
        part = part.func
    taken, missing = set(), []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            taken |= set(offered) - bound
        elif parameter.kind is parameter.VAR_POSITIONAL or name in bound:
            continue
        elif name in offered and parameter.kind is not parameter.POSITIONAL_ONLY:
            taken.add(name)
        elif parameter.default is parameter.empty:
            missing.append(name)
    if missing:
        raise SpecError(
            f"{named(function)} needs the arguments {missing}: expected none but "
            f"{sorted(offered)}. Bind the others by functools.partial, or give them defaults."
        )
    return frozenset(taken)


def call_with_taken(function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """Call a function with those of the offered arguments that it takes.

    Args:
        function: as for `arguments_taken`.
        offered: arguments by name.

    Returns:
        What the function returns.

    Raises:
        SpecError: as for `arguments_taken`.
    """
    taken = arguments_taken(function, offered.keys())
    return function(**{name: value for name, value in offered.items() if name in taken})


def named(function: Callable[..., Any]) -> str:
    """Return a function's name for a message."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__name__)
