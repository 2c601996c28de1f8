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
    hooks = tuple(hooks or ())
    for hook in hooks:
        if not isinstance(hook, tf.train.SessionRunHook):
            raise SpecError(
                f"{name} holds {hook!r}: expected objects of tf.train.SessionRunHook. "
                "Derive the hook's class from it, and pass an object, not the class."
            )
    return hooks


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


def check_listeners(listeners: Iterable[Any] | None) -> tuple[Any, ...]:
    """Return listeners of checkpoints as a tuple.

    Args:
        listeners: `tf.train.CheckpointSaverListener` objects; None for none.

    Returns:
        The listeners.

    Raises:
        SpecError: one of them is no listener.
    """
    listeners = tuple(listeners or ())
    for listener in listeners:
        if not isinstance(listener, tf.train.CheckpointSaverListener):
            raise SpecError(
                f"saving_listeners holds {listener!r}: expected objects of "
                "tf.train.CheckpointSaverListener. Derive the listener's class from it."
            )
    return listeners
