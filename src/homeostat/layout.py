"""From a shape and the channel axes to everything that the maths needs to know about them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from homeostat.errors import ShapeError, SpecError


def known_sizes(array: Any) -> tuple[Any, ...]:
    """Return the sizes of an array's axes, None where one is unknown.

    In TF1 an axis of a shape is an object that holds the number, or None.
    """
    as_list = getattr(array.shape, "as_list", None)
    return tuple(array.shape if as_list is None else as_list())


@dataclass(frozen=True)
class Layout:
    """How an input of a given shape is split into channels and the elements each one averages.

    Unknown sizes are None. Channel axes are kept in ascending order.

    Args:
        shape: the input's shape.
        channel_axes: axes with statistics of their own, ascending and non-negative.

    Example:
        >>> layout = Layout.of((32, 8, 8, 16), -1)
        >>> layout.reduction_axes, layout.channel_shape, layout.broadcast_shape, layout.count
        ((0, 1, 2), (16,), (1, 1, 1, 16), 2048)
    """

    shape: tuple[int | None, ...]
    channel_axes: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int | None], axis: int | Iterable[int]) -> Layout:
        """Lay out an input of ``shape`` whose channels lie along ``axis``.

        Raises:
            ShapeError: an axis is out of range or named twice, or no axis is left to average over.
        """
        # Symbols, as torch.export has them, are kept; NumPy's integers are not.
        shape = tuple(_size(n) for n in shape)
        axes: tuple[int, ...] = tuple(axis) if isinstance(axis, Iterable) else (axis,)
        rank = len(shape)
        if rank == 0:
            raise ShapeError(
                "the input is a scalar: expected at least 2 axes, batch and channels, such as "
                "(32, 16). Add the missing axes first."
            )
        for a in axes:
            if not -rank <= a < rank:
                raise ShapeError(
                    f"axis={a} is out of range for an input of shape {show(shape)}: expected "
                    f"{-rank} <= axis <= {rank - 1}. For channels-last images use axis=-1."
                )
        channel_axes = tuple(sorted(a % rank for a in axes))
        if len(set(channel_axes)) != len(channel_axes):
            raise ShapeError(
                f"axis={list(axes)} names the same axis twice for an input of shape {show(shape)}: "
                "expected different axes. Name each axis once."
            )
        if len(channel_axes) == rank:
            raise ShapeError(
                f"axis={list(axes)} leaves nothing to average over in an input of shape "
                f"{show(shape)}: expected at least one axis, such as the batch, that is not a "
                "channel axis. For channels-last images use axis=-1."
            )
        return cls(shape, channel_axes)

    @property
    def reduction_axes(self) -> tuple[int, ...]:
        """The axes that are averaged over, ascending."""
        return tuple(a for a in range(len(self.shape)) if a not in self.channel_axes)

    @property
    def channel_shape(self) -> tuple[int | None, ...]:
        """The shape of gamma, beta, mean and variance."""
        return tuple(self.shape[a] for a in self.channel_axes)

    @property
    def broadcast_shape(self) -> tuple[int | None, ...]:
        """The channel shape with 1 at every reduced axis, ready to broadcast against the input."""
        return tuple(n if a in self.channel_axes else 1 for a, n in enumerate(self.shape))

    @property
    def known_channel_shape(self) -> tuple[int, ...]:
        """The channel shape where every channel axis has a known size.

        Raises:
            ShapeError: a channel axis has an unknown size.
        """
        sizes = tuple(n for n in self.channel_shape if n is not None)
        if len(sizes) != len(self.channel_axes):
            raise ShapeError(
                f"the size of a channel axis is unknown in an input of shape {show(self.shape)} "
                f"with channel axes {self.channel_axes}: expected known sizes there, since they "
                "give the shape of gamma, beta and the statistics. Declare the input's channels."
            )
        return sizes

    @property
    def count(self) -> int | None:
        """Elements per channel, or None where a size is unknown."""
        sizes = [self.shape[a] for a in self.reduction_axes]
        if any(n is None for n in sizes):
            return None
        return reduce(operator.mul, (n for n in sizes if n is not None), 1)

    @property
    def channels_last(self) -> bool:
        """Whether the channel axes are the last ones, so that rows of channels are contiguous."""
        rank = len(self.shape)
        return self.channel_axes == tuple(range(rank - len(self.channel_axes), rank))

    def check_channels(self, **arrays: Any) -> None:
        """Check that each array given (None is passed over) has the channel shape.

        Raises:
            ShapeError: an array's shape is not the channel shape.
        """
        for name, array in arrays.items():
            if array is not None and not compatible(known_sizes(array), self.channel_shape):
                raise ShapeError(
                    f"{name} has shape {show(known_sizes(array))}: expected "
                    f"{show(self.channel_shape)}, one value for each channel of an input of shape "
                    f"{show(self.shape)} with channel axes {self.channel_axes}. Reshape it, or "
                    "name the axes of the channels with axis."
                )

    def check_residual(self, residual: Any) -> None:
        """Check that a residual, if there is one, has the input's shape.

        Raises:
            ShapeError: its shape differs from the input's.
        """
        if residual is not None and not compatible(known_sizes(residual), self.shape):
            raise ShapeError(
                f"residual has shape {show(known_sizes(residual))}: expected the input's shape, "
                f"{show(self.shape)}. Broadcast it first if that is what you mean."
            )

    def weights_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the shape that weights (or a mask) take to broadcast against the input.

        Weights either have the input's rank, with 1 at the channel axes, or name the leading axes
        of the input that are not channel axes: for an input (N, C, T) with axis=1 those are
        (N,) and (N, T).

        Args:
            shape: the weights' shape.

        Raises:
            ShapeError: the shape fits neither form.
        """
        given = tuple(shape)
        rank = len(self.shape)
        averaged = self.reduction_axes
        if len(given) == rank:
            full = given
        elif 0 < len(given) <= len(averaged):
            sizes = dict(zip(averaged, given, strict=False))
            full = tuple(sizes.get(a, 1) for a in range(rank))
        else:
            full = ()
        fits = bool(full) and all(
            full[a] == 1 or (a in averaged and _same(full[a], self.shape[a])) for a in range(rank)
        )
        if not fits:
            longest = tuple(self.shape[a] for a in averaged)
            raise ShapeError(
                f"weights or mask of shape {show(given)} do not fit an input of shape "
                f"{show(self.shape)} with channel axes {self.channel_axes}: expected "
                f"{show(longest)} or its leading axes, one weight for each element that is "
                "averaged, or the input's rank with size 1 at the channel axes. Reshape them to "
                "one of these."
            )
        return full

    def ghost(self, virtual_batch_size: int) -> tuple[tuple[int | None, ...], Layout]:
        """Lay out ghost batches, the groups as further channels.

        Axis 0 of size N is viewed as (virtual_batch_size, G) with G = N / virtual_batch_size, so
        that example i belongs to group i mod G, as in TF1's ``virtual_batch_size``.

        Returns:
            The shape to view the input as, and the layout of that view; its first channel axis,
            axis 1, is the group.

        Raises:
            ShapeError: the virtual batch size does not divide the batch.
            SpecError: the batch axis is a channel axis.
        """
        if 0 in self.channel_axes:
            raise SpecError(
                "virtual_batch_size cannot be used when axis 0 is a channel axis: expected the "
                "batch there, which virtual batches split. Move the batch to axis 0."
            )
        batch = self.shape[0]
        if batch is not None and batch % virtual_batch_size:
            raise ShapeError(
                f"virtual_batch_size={virtual_batch_size} does not divide the batch of {batch}: "
                "expected a divisor. Drop the last, smaller batch of your data or choose a size "
                "that divides it."
            )
        groups = None if batch is None else batch // virtual_batch_size
        view = (virtual_batch_size, groups, *self.shape[1:])
        return view, Layout(view, (1, *(a + 1 for a in self.channel_axes)))


def _size(n: Any) -> Any:
    # Not `int | None`: compilers of older PyTorch do not trace unions.
    return n if n is None or isinstance(n, int) or hasattr(n, "node") else int(n)


def _same(a: int | None, b: int | None) -> bool:
    return a is None or b is None or a == b


def compatible(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Return whether two shapes are equal wherever both sizes are known."""
    return len(a) == len(b) and all(_same(m, n) for m, n in zip(a, b, strict=True))


def show(shape: Sequence[int | None]) -> str:
    """Write a shape as users write it: a tuple with None for an unknown size."""
    return str(tuple(shape))
