"""A Keras 3 model for folding its batch norms away, on every backend of Keras."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from homeostat.errors import UnsupportedError
from homeostat.models.foldable import LinearOp, Sites, map_arrays, randomize
from homeostat.models.keras.rebuild import Rebuilding, is_graph
from homeostat.models.keras.sites import Reading, numpy_of
from homeostat.models.live import Batch


class KerasFold:
    """A Keras model whose batch norms may be folded; see `homeostat.models.foldable.Foldable`.

    Args:
        model: functional or Sequential, built, also with such models nested in it.

    Raises:
        UnsupportedError: the model is of another kind.
    """

    def __init__(self, model: Any) -> None:
        if not is_graph(model):
            built = model.built or not isinstance(model, keras.Sequential)
            problem = f"a {type(model).__name__}" if built else "a model that is not built"
            raise UnsupportedError(
                f"cannot fold {problem}: expected a functional or Sequential model, built, whose "
                "layers and calls are known. Build the model from such parts and fold those, or "
                "call it on a batch first."
            )
        self.model = model
        self._layers: dict[str, Any] = {}

    def sites(self) -> Sites:
        """Return the model's graph, those of nested models beside it."""
        reading = Reading(self.model)
        self._layers = reading.layers
        return reading.sites()

    def rewrite(self, linears: Mapping[str, LinearOp], norms: Collection[str]) -> Any:
        """Return a copy with other kernels and biases, and without some norms."""
        changed = {id(self._layers[name]): linear for name, linear in linears.items()}
        gone = frozenset(id(self._layers[name]) for name in norms)
        return Rebuilding(changed, gone).run(self.model)

    def outputs(
        self, model: Any, batches: Sequence[Batch], *, float64: bool
    ) -> list[list[np.ndarray[Any, Any]]]:
        """Return the arrays that a copy of a model gives in inference for each batch."""
        with _precision(float64=float64):
            copy = Rebuilding(float64=float64).run(model)
            return [
                [
                    np.asarray(keras.ops.convert_to_numpy(array), np.float64)
                    for array in keras.tree.flatten(copy(_given(batch), training=False))
                ]
                for batch in batches
            ]

    def runner(self, model: Any, batch: Batch) -> Callable[[], object]:
        """Return a function that runs a copy of a model, compiled as `predict` compiles it."""
        copy, given = Rebuilding().run(model), _given(batch)
        return lambda: copy.predict_on_batch(given)

    def parameters(self, model: Any) -> int:
        """Return how many numbers a model holds."""
        return model.count_params()

    def random_batch(self, like: Batch | None, rng: np.random.Generator) -> Batch:
        """Return a random batch: like another, or of the model's inputs; 2 examples."""
        if like is not None:
            return map_arrays(lambda array: randomize(numpy_of(array), rng), like)

        def array_of(tensor: Any) -> np.ndarray[Any, Any]:
            # Sequences may be short; images must survive the network's strides.
            unknown = 64 if len(tensor.shape) > 3 else 16
            shape = [2, *(unknown if size is None else size for size in tensor.shape[1:])]
            if keras.backend.is_float_dtype(tensor.dtype):
                dtype = "float32" if tensor.dtype == "bfloat16" else tensor.dtype
                return rng.normal(size=shape).astype(dtype)
            return rng.integers(0, 2, shape).astype(tensor.dtype)

        sequential = isinstance(self.model, keras.Sequential)
        inputs = self.model.inputs[0] if sequential else self.model.input
        batch = keras.tree.map_structure(array_of, inputs)
        return tuple(batch) if isinstance(batch, list) else batch


def _given(batch: Batch) -> Any:
    return list(batch) if isinstance(batch, tuple) else batch


@contextlib.contextmanager
def _precision(*, float64: bool) -> Iterator[None]:
    """Let the backend compute in float64, and keep no gradients."""
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "torch":
            import torch

            stack.enter_context(torch.no_grad())
        if keras.backend.backend() == "jax" and float64:
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield
