"""Checks of arguments that several parts of an estimator share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError


def check_hooks(name: str, hooks: Iterable[Any] | None) -> tuple[Any, ...]:
    """Return hooks as a tuple.

    Args:
        name: the argument that they came by, for the message.
        hooks: `tf.train.SessionRunHook` objects; None for none.

    Returns:
        The hooks.

    Raises:
        SpecError: one of them is no hook.
    """
    return _objects(name, hooks, tf.train.SessionRunHook)


def check_listeners(listeners: Iterable[Any] | None) -> tuple[Any, ...]:
    """Return listeners of checkpoints as a tuple.

    Args:
        listeners: `tf.train.CheckpointSaverListener` objects; None for none.

    Returns:
        The listeners.

    Raises:
        SpecError: one of them is no listener.
    """
    return _objects("saving_listeners", listeners, tf.train.CheckpointSaverListener)


def _objects(name: str, given: Iterable[Any] | None, kind: type) -> tuple[Any, ...]:
    objects = tuple(given or ())
    for each in objects:
        if not isinstance(each, kind):
            raise SpecError(
                f"{name} holds {each!r}: expected objects of tf.train.{kind.__name__}. Derive "
                "their class from it, and pass an object, not the class."
            )
    return objects


def check_count(name: str, number: int | None) -> None:
    """Refuse a number below 1, by the name of its argument.

    Args:
        name: the argument that it came by.
        number: None for none.

    Raises:
        SpecError: it is too small.
    """
    if number is not None and number < 1:
        raise SpecError(f"{name}={number} is too small: expected {name} >= 1. Increase it.")
