"""The lesson's published results, beside which ours are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SOURCE = "Udacity deep-learning, batch-norm lesson"
"""Where the figures come from."""


@dataclass(frozen=True)
class Published:
    """Published test accuracies of one configuration.

    Args:
        without: accuracy without batch norm.
        with_: accuracy with batch norm.
    """

    without: float
    with_: float


SINGLE_BATCH_STATISTICS = 0.05
SINGLE_MOVING_STATISTICS = 0.97

_NORMAL = {
    ("relu", 0.01, 50_000): Published(0.9748, 0.9803),
    ("relu", 0.01, 2_000): Published(0.8262, 0.9525),
    ("sigmoid", 0.01, 50_000): Published(0.8271, 0.9732),
    ("relu", 1.0, 50_000): Published(0.0980, 0.9834),
    ("sigmoid", 1.0, 50_000): Published(0.9752, 0.9812),
    ("sigmoid", 1.0, 2_000): Published(0.9227, 0.9463),
    ("relu", 2.0, 50_000): Published(0.1010, 0.9827),
    ("sigmoid", 2.0, 50_000): Published(0.9782, 0.9782),
    ("sigmoid", 2.0, 2_000): Published(0.9360, 0.9524),
}
_BAD = {
    ("relu", 0.01, 50_000): Published(0.0980, 0.7990),
    ("sigmoid", 0.01, 50_000): Published(0.2270, 0.8527),
    ("relu", 1.0, 50_000): Published(0.1135, 0.9208),
    ("sigmoid", 1.0, 50_000): Published(0.8957, 0.9505),
    ("relu", 2.0, 50_000): Published(0.0980, 0.9054),
    ("sigmoid", 2.0, 50_000): Published(0.9066, 0.9583),
}

LESSON: Mapping[tuple[str, str, float, int], Published] = MappingProxyType(
    {("normal", *key): value for key, value in _NORMAL.items()}
    | {("bad", *key): value for key, value in _BAD.items()}
)
"""(start, activation, learning rate, steps) to published accuracies on MNIST."""


def find_published(
    data: str, start: str, activation: str, learning_rate: float, steps: int
) -> Published | None:
    """Return the published accuracies of a configuration, or None where there are none.

    Example:
        >>> find_published("mnist", "normal", "relu", 0.01, 2000)
        Published(without=0.8262, with_=0.9525)
    """
    return LESSON.get((start, activation, learning_rate, steps)) if data == "mnist" else None
