"""Watch what comes to the batch norms of a live Keras model while it runs one batch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from homeostat.errors import ShapeError, UnsupportedError
from homeostat.layout import Layout
from homeostat.models.pooled import pool
from homeostat.moments import Moments, merge


class Watch:
    """Takes the place of batch norms' calls for a while.

    Args:
        norms: the layers by name.
        chosen: names of those that normalize with the batch's statistics.
        weights: of the examples, float64 of shape (examples,); or None.
    """

    def __init__(self, norms: Mapping[str, Any], chosen: Collection[str], weights: Any) -> None:
        self.seen: dict[str, Moments] = {}
        self._norms, self._chosen, self._weights = norms, frozenset(chosen), weights

    @property
    def complete(self) -> bool:
        """Whether every norm was seen."""
        return len(self.seen) == len(self._norms)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the body runs; the layers are as before afterwards."""
        replaced: list[tuple[Any, Any]] = []
        try:
            for name, norm in self._norms.items():
                replaced.append((norm, vars(norm).get("call")))
                # Around Keras's bookkeeping, which is about variables and layers.
                object.__setattr__(norm, "call", self._call_of(name, norm))
            yield
        finally:
            for norm, call in replaced:
                vars(norm).pop("call", None)
                if call is not None:
                    object.__setattr__(norm, "call", call)

    def _call_of(self, name: str, norm: Any) -> Any:
        original = norm.call
        signature = inspect.signature(original)

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            inputs = next(iter(bound.arguments.values()))
            moments = self._moments(name, norm, inputs, bound.arguments.get("mask"))
            before = self.seen.get(name)
            self.seen[name] = moments if before is None else merge(before, moments, np)
            if name not in self._chosen or moments.count == 0:
                return original(*args, **kwargs)
            if "training" in signature.parameters:
                bound.arguments["training"] = False
            scope = keras.StatelessScope()
            for variable, value in (
                (norm.moving_mean, moments.mean),
                (norm.moving_variance, moments.variance),
            ):
                # In float32 or wider, also where the variable is not.
                dtype = "float64" if variable.dtype == "float64" else "float32"
                value = value.reshape(variable.shape)
                scope.add_update((variable, keras.ops.convert_to_tensor(value, dtype)))
            with scope:
                return original(*bound.args, **bound.kwargs)

        return call

    def _moments(self, name: str, norm: Any, inputs: Any, mask: Any) -> Moments:
        x = array_in(name, inputs)
        layout = Layout.of(x.shape, norm.axis)
        weights = None
        if mask is not None:
            mask = array_in(name, mask).astype(np.float64)
            weights = mask.reshape(layout.weights_shape(mask.shape))
        if self._weights is not None:
            if 0 in layout.channel_axes or len(x) != len(self._weights):
                raise ShapeError(
                    f"weights of {len(self._weights)} examples came with an input of batch norm "
                    f"{name!r} of shape {x.shape}: expected one example for each weight along "
                    "axis 0. Leave the weights out, or leave out the examples themselves."
                )
            examples = self._weights.reshape(-1, *[1] * (x.ndim - 1))
            weights = examples if weights is None else weights * examples
        if weights is not None:
            full = [1 if a in layout.channel_axes else n for a, n in enumerate(x.shape)]
            weights = np.broadcast_to(weights, full)
        return pool(x, layout, weights)


def array_in(name: str, tensor: Any) -> Any:
    """Return a tensor that came to a batch norm as a NumPy array.

    Raises:
        UnsupportedError: it has no value, since the model compiles the part that the norm is in.
    """
    try:
        return np.asarray(keras.ops.convert_to_numpy(tensor))
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"what comes to batch norm {name!r} has no value yet, since the model compiles the "
            "part that it is in (a scan, a map or a compiled function): expected a model that "
            "runs step by step. Rewrite that part as a Python loop, or leave it uncompiled."
        ) from error


@contextlib.contextmanager
def running_eagerly(*, uncompiled: bool = False) -> Iterator[None]:
    """Run models step by step, without gradients, and undo what they do to variables.

    Args:
        uncompiled: whether JAX also takes scans and compiled functions apart, which is slow.
    """
    with contextlib.ExitStack() as stack:
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            before = tf.config.functions_run_eagerly()
            tf.config.run_functions_eagerly(True)
            stack.callback(tf.config.run_functions_eagerly, before)
        if backend == "torch":
            import torch

            stack.enter_context(torch.no_grad())
        if backend == "jax" and uncompiled:
            import jax

            stack.enter_context(jax.disable_jit())
        stack.enter_context(keras.StatelessScope())
        yield
