"""Where batches come from: a file, a folder, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.data.arrays import npy_batches, npz_batches
from homeostat.data.batches import Examples, unpack
from homeostat.data.function import function_named
from homeostat.data.images import SUFFIXES, image_batches
from homeostat.errors import DataError

Read = Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Batches:
    """Batches that can be gone through more than once, each time from the start.

    Args:
        name: what they come from.
        read: starts anew.
        limit: stop after so many batches; None for all.
    """

    name: str
    read: Read
    limit: int | None = None

    def __iter__(self) -> Iterator[Examples]:
        empty = True
        for number, batch in enumerate(self.read()):
            if number == self.limit:
                break
            empty = False
            yield unpack(batch)
        if empty:
            raise DataError(
                f"{self.name} gives no batch: expected at least one example. Check what it holds."
            )


def open_batches(
    source: str,
    batch_size: int = 64,
    *,
    limit: int | None = None,
    channels_first: bool = False,
    image_size: tuple[int, int] | None = None,
    transform: str | None = None,
) -> Batches:
    """Open data for a model's tools; nothing larger than a batch is kept in memory.

    - ``.npy``: the inputs, examples first, read from disk as they are needed.
    - ``.npz``: the array ``x`` (or ``inputs``, or the only one), and where they are there ``y`` (or
      ``labels``) and ``weights``; read part by part, compressed or not.
    - a folder of ``.npy`` files, in the order of their names; or of images, float32 RGB between 0
      and 1. Images in folders of their own have the folder's number in alphabetical order as label.
    - ``package.module:function``: what the function returns when it is called without arguments,
      such as a `tf.data.Dataset`, a PyTorch DataLoader or a generator; each item is a batch as
      `unpack` reads it. The function is called again for another pass.

    Args:
        source: one of these.
        batch_size: examples in a batch of files and folders; a function makes its own batches.
        limit: stop after so many batches; None for all.
        channels_first: whether images become (channels, height, width), as PyTorch has them.
        image_size: height and width to which images are resized; None where they are alike.
        transform: ``package.module:function`` that is given each batch's inputs and returns what
            the model is called with.

    Raises:
        DataError: there is nothing there, or not what its name says.
        MissingExtraError: images need pillow.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(
            f"batch size {batch_size} and limit {limit} cannot be: expected at least 1 of each. "
            "Leave the limit out for all batches."
        )
    read = _open(source, batch_size, channels_first, image_size)
    if transform is not None:
        read = _transformed(read, function_named(transform, "a transform"))
    return Batches(source, read, limit)


def _open(
    source: str, batch_size: int, channels_first: bool, image_size: tuple[int, int] | None
) -> Read:
    path = Path(source)
    if path.is_dir():
        shards = sorted(path.glob("*.npy"))
        if shards:
            return lambda: (b for shard in shards for b in npy_batches(shard, batch_size))
        return lambda: image_batches(path, batch_size, channels_first, image_size)
    if path.suffix == ".npy" and path.exists():
        return lambda: npy_batches(path, batch_size)
    if path.suffix == ".npz" and path.exists():
        return lambda: npz_batches(path, batch_size)
    if ":" in source and not path.exists():
        function = function_named(source, "data")
        return lambda: _iterable(function(), source)
    problem = "is no data that can be read" if path.exists() else "does not exist"
    raise DataError(
        f"{source} {problem}: expected a .npy or .npz file, a folder of .npy files or of images "
        f"({', '.join(SUFFIXES)}), or package.module:function. Write a function for other formats."
    )


def _iterable(made: Any, source: str) -> Iterable[Any]:
    if not isinstance(made, Iterable):
        raise DataError(
            f"{source} returned an object of type {type(made).__name__}: expected batches, such as "
            "a DataLoader, a tf.data.Dataset or a generator. Return one that can be iterated over."
        )
    return made


def _transformed(read: Read, transform: Callable[[Any], Any]) -> Read:
    def transformed() -> Iterator[Examples]:
        for batch in map(unpack, read()):
            yield batch._replace(inputs=transform(batch.inputs))

    return transformed
