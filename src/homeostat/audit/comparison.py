"""Outputs with moving statistics beside those with the batch's, and the labels of examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.data import Examples, unpack
from homeostat.errors import DataError
from homeostat.models import Behaviour, count_examples
from homeostat.moments import Moments, merge

Array = np.ndarray[Any, np.dtype[Any]]


class Comparison:
    """Outputs with moving statistics beside those with the batch's."""

    def __init__(self) -> None:
        self.examples = 0
        self.squares = 0.0
        self.spread: list[Moments] = []
        self.agreed = 0
        self.classes = True
        self.right = [0, 0]
        self.labelled = 0

    def add(self, moving: Any, batch: Any, examples: Examples) -> None:
        """Take a batch's outputs with moving statistics, and with the batch's."""
        kept = None if examples.weights is None else np.asarray(examples.weights) > 0
        ours, theirs = ([_keep(one, kept) for one in _arrays(all_)] for all_ in (moving, batch))
        if not theirs or not len(theirs[0]):
            return
        number = len(theirs[0])
        self.examples += number
        with np.errstate(all="ignore"):
            for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
                self.squares += float(np.sum((mine - other) ** 2))
                moments = Moments(float(number), other.mean(0), other.var(0))
                if place < len(self.spread):
                    self.spread[place] = merge(self.spread[place], moments, np)
                else:
                    self.spread.append(moments)
        self.classes &= len(theirs) == 1 and theirs[0].ndim == 2 and theirs[0].shape[1] > 1
        if not self.classes:
            return
        chosen = [one[0].argmax(1) for one in (ours, theirs)]
        self.agreed += int(np.sum(chosen[0] == chosen[1]))
        labels = _read_labels(examples.labels, kept, theirs[0].shape)
        if labels is not None:
            self.labelled += number
            for place, one in enumerate(chosen):
                self.right[place] += int(np.sum(one == labels))

    def behaviour(self) -> Behaviour | None:
        """Return how they differ over all batches; None without examples."""
        if not self.examples:
            return None
        total = sum(float(np.sum(one.variance)) * float(one.count) for one in self.spread)
        with np.errstate(all="ignore"):
            relative = np.sqrt(np.float64(self.squares) / total) if self.squares else 0.0
        labelled = self.classes and self.labelled == self.examples
        accuracies = [count / self.examples if labelled else None for count in self.right]
        return Behaviour(
            self.examples,
            float(relative),
            self.agreed / self.examples if self.classes else None,
            *accuracies,
        )


def _arrays(outputs: Any) -> list[Array]:
    """Return a model's outputs, one or many, as a list of arrays with examples first."""
    if isinstance(outputs, Mapping):
        return [array for one in outputs.values() for array in _arrays(one)]
    if isinstance(outputs, tuple | list):
        return [array for one in outputs for array in _arrays(one)]
    array = np.asarray(outputs, np.float64)
    return [array] if array.ndim else []


def _keep(array: Array, kept: Array | None) -> Array:
    return array if kept is None else array[kept]


def _read_labels(labels: Any, kept: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Return the class of each example; None without labels.

    Labels of shape (examples, classes) are scores, such as one-hot vectors.
    """
    if labels is None:
        return None
    found = np.asarray(labels)
    if kept is not None and len(found) == len(kept):
        found = found[kept]
    if found.shape == shape:
        return found.argmax(1)
    if found.shape in ((shape[0],), (shape[0], 1)) and found.dtype.kind in "iufb":
        return found.reshape(-1)
    raise DataError(
        f"labels of shape {found.shape} and dtype {found.dtype} do not fit outputs of shape "
        f"{shape}: expected a class for each example, shape ({shape[0]},), or scores of shape "
        f"{shape}. Pass labels in the order of the examples."
    )


def with_labels(data: Iterable[Any], path: Path) -> Iterator[Examples]:
    """Yield batches with labels from a file beside them.

    Args:
        data: batches as `homeostat.data.unpack` reads them.
        path: a ``.npy`` file with the class of each example, or its scores, in the same order.

    Raises:
        DataError: the file cannot be read, or holds fewer or more labels than there are examples.
    """
    try:
        labels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"labels {path} cannot be read ({error}): expected a .npy file of numbers. Write it "
            "with numpy.save."
        ) from error
    total, used = (len(labels) if labels.ndim else 0), 0
    for batch in data:
        examples = unpack(batch)
        number = count_examples(examples.inputs)
        if used + number > total:
            break
        yield examples._replace(labels=np.asarray(labels[used : used + number]))
        used += number
    else:
        if used == total:
            return
    raise DataError(
        f"labels {path} holds {total:,} labels, which is not the number of examples: expected one "
        "for each. Give the labels of this data."
    )
