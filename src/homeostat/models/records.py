"""What is known of a model's batch norms: frozen records of NumPy arrays, without a framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from homeostat.errors import ShapeError
from homeostat.models.graph import Graph
from homeostat.moments import Moments
from homeostat.spec import StoredVariance

Array = np.ndarray[Any, np.dtype[Any]]
Framework = Literal["keras", "torch", "tf1", "onnx"]

ARRAYS = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclass(frozen=True, eq=False)
class BatchNormRecord:
    """One batch norm, as its model or file has it.

    None stands for what the norm does not have (gamma of one that does not scale), and also for
    what the source does not tell (the momentum, in a file of arrays alone): ``unknown`` names that.

    Args:
        name: its name in the model, unique there.
        kind: its class or operation, in the framework's words.
        gamma: scale of each channel, shape (channels,), in the dtype it is stored in; or None.
        beta: offset of each channel; or None.
        moving_mean: moving mean of each channel; None where inference takes the batch's.
        moving_variance: moving variance of each channel, of the kind ``stored_variance`` says.
        epsilon: added to the variance.
        momentum: weight of the OLD moving value.
        cumulative: whether the statistics are the plain average of all batches.
        stored_variance: what the moving variance averages, ``"population"`` or ``"sample"``.
        updates: how many batches moved the statistics.
        skipped: how many updates were left out for batches that were not finite.
        dtype: of the norm's inputs when it computes, such as ``"float16"``.
        trainable: whether training moves gamma and beta.
        tracking: whether training moves the statistics.
        training: whether inference as it is now would take the batch's statistics.
        synchronized: whether statistics are over all replicas.
        activation: what is fused behind it, such as ``"relu"``.
        operations: the operations of the model's graph that apply it, two for one that is shared.
        unknown: names of the fields above that the source does not tell.
        debiased: whether the statistics' start has no weight in them.
    """

    name: str
    kind: str
    gamma: Array | None = None
    beta: Array | None = None
    moving_mean: Array | None = None
    moving_variance: Array | None = None
    epsilon: float | None = None
    momentum: float | None = None
    cumulative: bool = False
    stored_variance: StoredVariance | None = None
    updates: int | None = None
    skipped: int | None = None
    dtype: str | None = None
    trainable: bool | None = None
    tracking: bool | None = None
    training: bool | None = None
    synchronized: bool | None = None
    activation: str | None = None
    operations: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()
    debiased: bool = False

    def __post_init__(self) -> None:
        shapes = {name: array.shape for name, array in self.arrays.items()}
        if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
            raise ShapeError(
                f"the arrays of {self.name!r} do not belong together: expected one dimension of "
                f"the same length in each, got {shapes}. Check where they come from."
            )

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Those of gamma, beta, moving_mean and moving_variance that it has, by name."""
        found = {name: getattr(self, name) for name in ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def channels(self) -> int | None:
        """How many channels it has; None for one without any array."""
        return next((len(array) for array in self.arrays.values()), None)

    def with_fields(self, **changes: Any) -> Self:
        """Return the record with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class ModelRecord:
    """A model's batch norms in the order of the network, and what is known around them.

    Args:
        name: the file's or the class's name.
        framework: whose conventions its words follow.
        source: what was read, in words: "Keras archive", "PyTorch module", ...
        norms: its batch norms.
        graph: its operations; None where the source does not tell.
        why_no_graph: why there is no graph.
        parameters: how many parameters the model has, statistics included.
        distributed: whether it trains on several replicas; None where that is not known.
        notes: what else a reader of the findings should know.
        steps: how many batches its optimizer has taken steps for, where that is told. Another
            optimizer may have trained the model before.
    """

    name: str
    framework: Framework
    source: str
    norms: tuple[BatchNormRecord, ...]
    graph: Graph | None = None
    why_no_graph: str = ""
    parameters: int | None = None
    distributed: bool | None = None
    notes: tuple[str, ...] = ()
    steps: int | None = None


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What a model's outputs are with moving statistics and with the batch's.

    Args:
        examples: how many examples were seen.
        difference: root mean square of the difference of the outputs, relative to that of the
            outputs with the batch's statistics around their mean.
        agreement: share of the examples that both ways put into the same class; None where outputs
            are not (examples, classes).
        inference_accuracy: share of right classes with moving statistics; None without labels.
        batch_accuracy: share of right classes with the batch's statistics.
    """

    examples: int
    difference: float
    agreement: float | None = None
    inference_accuracy: float | None = None
    batch_accuracy: float | None = None


@dataclass(frozen=True, eq=False)
class Observation:
    """What data showed of a model.

    Args:
        inputs: for each norm, by name, the pooled moments of its inputs over all the data: float64,
            the count included, while every norm took its batch's statistics.
        batches: how many batches there were.
        examples: how many examples.
        elements: for each norm, the smallest count of elements per channel in any whole batch.
        batch_moments: for each norm, the moments of each batch, in order; of the first few hundred.
        behaviour: how outputs differ between moving and batch statistics.
        alone: for norms with shifted statistics, by name, how outputs differ when that norm alone
            takes the batch's; on a few batches.
    """

    inputs: Mapping[str, Moments]
    batches: int
    examples: int
    elements: Mapping[str, float] = field(default_factory=dict[str, float])
    batch_moments: Mapping[str, tuple[Moments, ...]] = field(
        default_factory=dict[str, tuple[Moments, ...]]
    )
    behaviour: Behaviour | None = None
    alone: Mapping[str, Behaviour] = field(default_factory=dict[str, Behaviour])


@dataclass(frozen=True)
class Frozen:
    """What freezing, or unfreezing, did to one batch norm.

    Args:
        name: its name in the model.
        kind: its class before, in the framework's words.
        now: what it is now, in the framework's words; "" where it was left as it was.
        reason: why it was left as it was; "" where it was not.
    """

    name: str
    kind: str
    now: str = ""
    reason: str = ""
