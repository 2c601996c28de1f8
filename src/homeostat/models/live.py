"""What a live model of any framework lets the tools do: watch its batch norms and change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from homeostat.models.records import BatchNormRecord, ModelRecord
from homeostat.moments import Moments

Batch = Any
"""What the model is called with: an array, or a tuple or mapping of them."""


@runtime_checkable
class LiveModel(Protocol):
    """A model in memory, behind its framework's adapter.

    Names are those of `BatchNormRecord.name`; means and variances are float64 NumPy arrays of
    shape (channels,), variances population variances: the adapter translates at its border.
    """

    @property
    def model(self) -> Any:
        """The framework's own model."""
        ...

    def record(self) -> ModelRecord:
        """Return what is known of the model now."""
        ...

    def observe(
        self,
        batch: Batch,
        *,
        batch_statistics: bool | Sequence[str] = True,
        weights: Any = None,
    ) -> Mapping[str, Moments]:
        """Run one batch and return the moments of every norm's inputs; change nothing.

        Args:
            batch: the inputs.
            batch_statistics: whether norms take the batch's statistics, not the moving ones; or the
                names of those that do. Dropout and everything else is in inference mode.
            weights: a weight for each example, shape (examples,), or None; 0 leaves one out.

        Returns:
            For each norm that the batch came to, in the order of the network, float64 moments over
            all elements of each channel; a norm that is used twice has those of both uses merged.
        """
        ...

    def outputs(self, batch: Batch, *, batch_statistics: bool | Sequence[str] = False) -> Any:
        """Return the model's outputs for a batch as float64 NumPy arrays; change nothing.

        Args:
            batch: the inputs.
            batch_statistics: as in `observe`.
        """
        ...

    def write(self, name: str, statistics: Moments) -> None:
        """Make these a norm's moving statistics, in its own dtype and its own kind of variance."""
        ...

    def adopt(self, name: str, record: BatchNormRecord) -> None:
        """Give a norm another's arrays and options, in its own dtype and words.

        Taken are gamma, beta, moving_mean, moving_variance (of the norm's own kind already),
        epsilon, momentum and whether the average is cumulative; what is None stays.
        """
        ...

    def normalize(self, name: str, inputs: Any) -> Any:
        """Return one norm's inference of inputs (examples, channels), as float64 NumPy array.

        A fused activation is left out.
        """
        ...

    def preserved(self) -> AbstractContextManager[None]:
        """Restore every norm's arrays, options, modes and hooks if the body raises."""
        ...

    def save(self, path: Path) -> None:
        """Write the model to a file that does not exist yet, in the format of its suffix."""
        ...


def count_examples(batch: Batch) -> int:
    """Return the length of a batch's first array.

    Example:
        >>> count_examples({"image": np.zeros((4, 2))})
        4
    """
    while isinstance(batch, Mapping | tuple | list):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return int(np.shape(batch)[0])
