"""What differs between Keras's backends: which operations do the maths, and how a step may fail."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope

from homeostat.errors import NonFiniteBatchError, SpecError, UnsupportedError

BACKENDS = ("tensorflow", "jax", "torch")


def operations() -> Any:
    """Return the module of `homeostat.ops` for Keras's backend.

    Raises:
        UnsupportedError: the backend is none of TensorFlow, JAX and torch.
    """
    name = keras.backend.backend()
    if name not in BACKENDS:
        raise UnsupportedError(
            f"Keras's backend is {name!r}: expected one of {', '.join(BACKENDS)}. Set the "
            "environment variable KERAS_BACKEND to one of them before keras is imported."
        )
    return importlib.import_module(f"homeostat.ops.{name}")


def value_of(variable: Any) -> Any:
    """Return a variable's value, or None for None."""
    return None if variable is None else variable.value


def namespace() -> Any:
    """Return the array namespace of Keras's backend: where, isfinite and the like.

    The library's own where it has one, since `keras.ops` costs each small call in Python.
    """
    name = keras.backend.backend()
    if name == "tensorflow":
        return keras.ops
    return importlib.import_module({"jax": "jax.numpy", "torch": "torch"}[name])


def changes_in_place() -> bool:
    """Return whether to assign to a variable is to change its value's memory, and nothing more.

    So it is with torch, but where a scope, as that of `stateless_call`, collects what is assigned.
    """
    return keras.backend.backend() == "torch" and not in_stateless_scope()


def replica_sum() -> Callable[[Any], Any] | None:
    """Return what sums a tensor over the replicas of `tf.distribute`, or None for one replica.

    Raises:
        SpecError: the backend is not TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise SpecError(
            "synchronized=True needs Keras's TensorFlow backend and tf.distribute. With the JAX "
            "backend Keras's distribution API shards one global batch, so the statistics are those "
            "of the whole batch already: drop synchronized."
        )
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return lambda tensor: context.all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def fail_if(flag: Any, message: str) -> None:
    """Raise NonFiniteBatchError where the scalar ``flag`` is true, also inside a compiled step.

    Inside `tf.function` and `jax.jit` the error surfaces as the framework's own, with the message;
    XLA under TensorFlow drops assertions, so there nothing is raised.

    Raises:
        NonFiniteBatchError: the flag is true.
    """

    def fail(value: Any) -> None:
        if bool(value):
            raise NonFiniteBatchError(message)

    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():
            tf.debugging.Assert(tf.logical_not(flag), [message])
            return
    if name == "jax":
        import jax

        if isinstance(flag, jax.core.Tracer):
            jax.debug.callback(fail, flag)
            return
    fail(flag)
