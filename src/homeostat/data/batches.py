"""What a batch holds."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from homeostat.errors import DataError


class Examples(NamedTuple):
    """A batch: what the model is called with, and what may come beside it.

    Args:
        inputs: an array with the batch first, or a tuple or mapping of them.
        labels: the right class of each example, shape (examples,), or None.
        weights: a weight for each example, shape (examples,), or None.
    """

    inputs: Any
    labels: Any = None
    weights: Any = None


def unpack(batch: Any) -> Examples:
    """Read a batch as loaders yield it: inputs, (inputs, labels) or (inputs, labels, weights).

    A model that takes several arrays gets them as a tuple inside the tuple, or by name.

    Args:
        batch: an array or mapping of arrays, which are the inputs; or a tuple or list of one to
            three, as `tf.data`, Keras and PyTorch's loaders make them.

    Raises:
        DataError: a tuple has no parts or more than three.

    Example:
        >>> unpack(("images", "classes"))
        Examples(inputs='images', labels='classes', weights=None)
        >>> unpack({"image": 1}).inputs
        {'image': 1}
    """
    if isinstance(batch, Examples):
        return batch
    if not isinstance(batch, tuple | list):
        return Examples(batch)
    parts = cast("tuple[Any, ...] | list[Any]", batch)
    if not 1 <= len(parts) <= 3:
        raise DataError(
            f"a batch has {len(parts)} parts: expected inputs, (inputs, labels) or (inputs, "
            "labels, weights). Put a model's several inputs into one tuple: ((a, b), labels)."
        )
    return Examples(*parts)
