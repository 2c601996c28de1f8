"""What is asked of every candidate: a shape, a layout, a dtype, a work and a form, with its data.

Shapes are written channels last, (batch, *space, channels), and arrays are held so; a candidate
moves the channels where its layout has them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from homeostat import reference
from homeostat.errors import SpecError

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]

EPSILON = 1e-3
WORKS = ("inference", "forward", "forward+backward")
FORMS = ("plain", "relu", "add+relu")
DTYPES = ("float32", "bfloat16")

RESNET_50 = (
    *((32, 112, 112, 64), (32, 56, 56, 64), (32, 56, 56, 128), (32, 56, 56, 256)),
    *((32, 28, 28, 128), (32, 28, 28, 256), (32, 28, 28, 512), (32, 14, 14, 256)),
    *((32, 14, 14, 512), (32, 14, 14, 1024), (32, 7, 7, 512), (32, 7, 7, 2048)),
)
"""Every shape that ResNet-50 normalizes at batch 32."""
DENSE = ((128, 1024), (8192, 128), (32, 16))
VOLUMES = ((4, 32, 32, 32, 16), (2, 16, 56, 56, 64))
NARROW = ((32, 112, 112, 3), (32, 56, 56, 8))
SHAPES: tuple[Shape, ...] = (*RESNET_50, *DENSE, *VOLUMES, *NARROW)
QUICK_SHAPES: tuple[Shape, ...] = ((32, 28, 28, 128), (8192, 128))

_LAYOUTS = {2: ("NC",), 3: ("NLC", "NCL"), 4: ("NHWC", "NCHW"), 5: ("NDHWC", "NCDHW")}
# How far, in units of the output, every value stays from the corner of the ReLU: beyond what
# rounding moves it.
_MARGIN = {"float32": 1e-4, "bfloat16": 2e-2}


def layouts_of(shape: Shape) -> tuple[str, ...]:
    """Return the layouts of a shape's rank, channels last first.

    Raises:
        SpecError: the rank is not 2 to 5.
    """
    if len(shape) not in _LAYOUTS or min(shape) < 1:
        raise SpecError(
            f"shape {'x'.join(map(str, shape))} cannot be measured: expected 2 to 5 sizes of at "
            "least 1, channels last, such as 32x28x28x256."
        )
    return _LAYOUTS[len(shape)]


@dataclass(frozen=True)
class Case:
    """One call, as every candidate makes it.

    Args:
        shape: (batch, *space, channels).
        layout: such as ``"NHWC"``, how the axes lie.
        dtype: ``"float32"`` or ``"bfloat16"``; parameters and statistics are float32.
        work: one of `WORKS`; forward and backward are those of training.
        form: one of `FORMS`.
    """

    shape: Shape
    layout: str = "NHWC"
    dtype: str = "float32"
    work: str = "forward+backward"
    form: str = "plain"

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.shape[-1]

    @property
    def first(self) -> bool:
        """Whether the channels lie before the space."""
        return not self.layout.endswith("C")

    @property
    def axis(self) -> int:
        """The channel axis of a placed array."""
        return 1 if self.first else -1

    @property
    def training(self) -> bool:
        """Whether the batch's own statistics normalize."""
        return self.work != "inference"

    @property
    def backward(self) -> bool:
        """Whether gradients are asked for."""
        return self.work == "forward+backward"

    @property
    def relu(self) -> bool:
        """Whether a ReLU follows."""
        return self.form != "plain"

    @property
    def adds(self) -> bool:
        """Whether a residual is added before the ReLU."""
        return self.form == "add+relu"

    @property
    def nbytes(self) -> int:
        """Bytes of one tensor."""
        return int(np.prod(self.shape)) * (2 if self.dtype == "bfloat16" else 4)

    def place(self, array: Array) -> Array:
        """Return an array with its channels where the layout has them."""
        return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if self.first else array

    def back(self, array: Array) -> Array:
        """Return a placed array channels last."""
        return np.moveaxis(array, 1, -1) if self.first else array


class Inputs(NamedTuple):
    """A case's data, float32 arrays, channels last; bfloat16 can hold x, residual and dy exactly.

    Args:
        x: the input.
        residual: what is added before the activation, or None.
        dy: the gradient of the output.
        gamma: the scale.
        beta: the shift.
        mean: the moving mean.
        variance: the moving variance.
    """

    x: Array
    residual: Array | None
    dy: Array
    gamma: Array
    beta: Array
    mean: Array
    variance: Array


def make_inputs(case: Case) -> Inputs:
    """Return a case's data, the same for every layout and work."""
    return _inputs(case.shape, case.dtype, case.form)


@functools.lru_cache(maxsize=1)
def _inputs(shape: Shape, dtype: str, form: str) -> Inputs:
    draw = np.random.default_rng(0)
    channels = shape[-1]
    x = (draw.standard_normal(shape, np.float32) * 2 + np.float32(0.5)).astype(np.float32)
    residual = draw.standard_normal(shape, np.float32) if form == "add+relu" else None
    dy = draw.standard_normal(shape, np.float32)
    gamma = draw.uniform(0.5, 1.5, channels).astype(np.float32)
    beta = draw.normal(0, 0.5, channels).astype(np.float32)
    mean = draw.normal(0.5, 0.2, channels).astype(np.float32)
    variance = draw.uniform(3, 5, channels).astype(np.float32)
    if dtype == "bfloat16":
        x, dy = round_to_bfloat16(x), round_to_bfloat16(dy)
        residual = None if residual is None else round_to_bfloat16(residual)
    inputs = Inputs(x, residual, dy, gamma, beta, mean, variance)
    return inputs if form == "plain" else _clear_of_corner(inputs, dtype)


def _clear_of_corner(inputs: Inputs, dtype: str) -> Inputs:
    """Move what lies within rounding of the ReLU's corner, where the gradient would be chance."""
    margin = np.float32(_MARGIN[dtype])
    for _ in range(20):
        z, batch = reference.normalize_batch(
            inputs.x, inputs.gamma, inputs.beta, epsilon=EPSILON, residual=inputs.residual
        )
        near = np.abs(z) < margin
        if not near.any():
            break
        if inputs.residual is not None:
            inputs = inputs._replace(residual=_moved(inputs.residual, near, 3 * margin, dtype))
        else:
            step = 3 * margin * np.sqrt(batch.variance + EPSILON) / inputs.gamma
            inputs = inputs._replace(x=_moved(inputs.x, near, step, dtype))
    return inputs


def _moved(array: Array, near: npt.NDArray[np.bool_], step: npt.ArrayLike, dtype: str) -> Array:
    moved = np.where(near, array + np.asarray(step, np.float32), array)
    return round_to_bfloat16(moved) if dtype == "bfloat16" else moved


def round_to_bfloat16(array: Array) -> Array:
    """Return float32 values rounded to the nearest that bfloat16 can hold, ties to even."""
    bits = array.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
