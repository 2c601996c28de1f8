"""What folding sees of a model of any framework, and what an adapter does for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from homeostat.models.graph import Graph
from homeostat.models.live import Batch
from homeostat.models.records import Array, BatchNormRecord


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel, and the axes along which its channels lie.

    Args:
        values: in the framework's own shape.
        view: a shape of as many elements in which channels have axes of their own: those of a
            grouped convolution one for the groups, which is on both sides.
        inputs: the view's axes of the input channels, the slowest first.
        outputs: the view's axes of the output channels, the slowest first.
    """

    values: Array
    view: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LinearOp:
    """A call of a layer that is linear in its input, and adds a bias of each channel or none.

    Args:
        layer: the layer's name.
        kernels: applied one after the other: two of a separable convolution, else one.
        bias: shape (output channels,), or None.
        axis: of the channels in its input and output; None where that is not known.
        padded: whether zeros surround its input, or its borders see less of the kernel.
        elements: of its output, for one example; None where sizes vary.
        largest: the largest number that its parameters' dtype holds.
        dtype: of its output; "" where that is its input's.
        why_not: why nothing may be folded into it; "" where it may.
        why_not_behind: why nothing behind it may, such as an activation inside.
    """

    layer: str
    kernels: tuple[Kernel, ...] = ()
    bias: Array | None = None
    axis: int | None = None
    padded: bool = False
    elements: int | None = None
    largest: float = float(np.finfo(np.float32).max)
    dtype: str = ""
    why_not: str = ""
    why_not_behind: str = ""


@dataclass(frozen=True, eq=False)
class NormOp:
    """A batch norm's call.

    Args:
        record: what is known of it.
        axis: of the channels in its input; None where that is not known.
        elements: of its input, for one example; None where sizes vary.
        remains: what stays in its place if it is folded, in words: "relu", "add"; "" for nothing.
        why_not: why it cannot be folded whatever surrounds it; "" where it can.
    """

    record: BatchNormRecord
    axis: int | None = None
    elements: int | None = None
    remains: str = ""
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class Sites:
    """A model's graph as folding needs it.

    Operations whose kind is ``"identity"`` or ``"dropout"`` let a norm through, those of kind
    ``"pad"`` one that adds nothing; the kinds of others say nothing here.

    Args:
        graph: all operations; parts of the model whose calls are not known are not in it.
        norms: the batch norms, by the name of their operation.
        linears: the linear ones, by the name of their operation.
        axes: the channel axis of operations that have one, of those that let a norm through.
        hidden: batch norms whose calls are not known, with the reason.
        notes: what else the report should tell.
    """

    graph: Graph
    norms: Mapping[str, NormOp]
    linears: Mapping[str, LinearOp]
    axes: Mapping[str, int] = field(default_factory=dict[str, int])
    hidden: tuple[NormOp, ...] = ()
    notes: tuple[str, ...] = ()


class Foldable(Protocol):
    """A model whose batch norms may be folded, behind its framework's adapter."""

    def sites(self) -> Sites:
        """Return the model's graph as folding needs it."""
        ...

    def rewrite(self, linears: Mapping[str, LinearOp], norms: Collection[str]) -> Any:
        """Return a copy of the model with other kernels and biases, and without some norms.

        Args:
            linears: what changed, by the name of the operation.
            norms: the operations of the norms to leave out, but for what remains of them.
        """
        ...

    def outputs(
        self, model: Any, batches: Sequence[Batch], *, float64: bool
    ) -> list[list[np.ndarray[Any, Any]]]:
        """Return the arrays that a model gives in inference for each batch, as float64.

        Args:
            model: the original, or a copy by `rewrite`; it is left as it is.
            batches: what it is called with.
            float64: whether to compute in float64, with a copy of the model.
        """
        ...

    def runner(self, model: Any, batch: Batch) -> Callable[[], object]:
        """Return a function that runs a model once in inference, as it is best run."""
        ...

    def parameters(self, model: Any) -> int:
        """Return how many numbers a model holds, statistics included."""
        ...

    def random_batch(self, like: Batch | None, rng: np.random.Generator) -> Batch:
        """Return a random batch, of the shapes of another or of the model's inputs."""
        ...


def randomize(array: Any, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return random values of an array's shape, dtype, mean and spread.

    Integers are those of the array in another order, so that indices stay in range.

    Example:
        >>> randomize(np.array([[3, 5]]), np.random.default_rng(0)).sum()
        np.int64(8)
    """
    values = np.asarray(array)
    if not np.issubdtype(values.dtype, np.floating):
        return rng.permutation(values.ravel()).reshape(values.shape)
    finite = values[np.isfinite(values)]
    mean, spread = (float(finite.mean()), float(finite.std())) if finite.size else (0.0, 1.0)
    return rng.normal(mean, spread or 1.0, values.shape).astype(values.dtype)


def map_arrays(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """Return a batch with a function applied to each of its arrays.

    Example:
        >>> map_arrays(len, {"a": [1, 2], "b": ([1], [1, 2, 3])})
        {'a': 2, 'b': (1, 3)}
    """
    if isinstance(batch, Mapping):
        return {name: map_arrays(function, part) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(map_arrays(function, part) for part in batch)
    return function(batch)
