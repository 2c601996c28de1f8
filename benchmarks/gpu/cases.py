"""What is measured: shapes, forms, dtypes and layouts, in the order in which time is spent on them.

Shapes are PyTorch's, (batch, channels, height, width); "NHWC" has the channels last in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.traffic import FORMS

Tensor = torch.Tensor
Shape = tuple[int, ...]

EPSILON = 1e-5
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}

RESNET_50: tuple[Shape, ...] = (
    *((256, 64, 112, 112), (256, 64, 56, 56), (256, 128, 56, 56), (256, 256, 56, 56)),
    *((256, 128, 28, 28), (256, 256, 28, 28), (256, 512, 28, 28), (256, 256, 14, 14)),
    *((256, 512, 14, 14), (256, 1024, 14, 14), (256, 512, 7, 7), (256, 2048, 7, 7)),
)
"""Every shape that ResNet-50 normalizes at batch 256."""
LARGE: tuple[Shape, ...] = ((4, 128, 1024, 1024), (32, 64, 512, 512))
SHAPES = (*RESNET_50, *LARGE)
FEW_SHAPES: tuple[Shape, ...] = ((256, 256, 56, 56), (256, 512, 14, 14), (256, 512, 7, 7))
"""Shapes that other dtypes and layouts, inference and `--quick` are measured with."""

# How far every output stays from the ReLU's corner, where rounding decides on the gradient.
MARGIN = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Case:
    """One call, as every column makes it.

    Args:
        shape: (batch, channels, height, width).
        form: one of `FORMS`.
        dtype: a name of `DTYPES`; parameters and statistics are float32.
        layout: a name of `LAYOUTS`.
        training: whether the batch's own statistics normalize, with a backward.
    """

    shape: Shape
    form: str
    dtype: str = "bfloat16"
    layout: str = "NHWC"
    training: bool = True

    @property
    def works(self) -> tuple[str, ...]:
        """What of the call is timed."""
        return ("forward+backward", "forward") if self.training else ("inference",)

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
        """Bytes of one tensor: S."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def name(self) -> dict[str, str]:
        """Return the columns of a row that say what was called, the work apart."""
        return {
            "shape": "x".join(map(str, self.shape)),
            "layout": self.layout,
            "dtype": self.dtype,
            "form": self.form,
        }


def choose_cases(
    shapes: Sequence[Shape] | None,
    dtypes: Sequence[str] | None,
    layouts: Sequence[str] | None,
    quick: bool,
) -> list[Case]:
    """Return what is measured, the most asked for first, since time may end before the list.

    Args:
        shapes: those asked for; None for the listed ones.
        dtypes: those asked for; None for bfloat16, and others on few shapes.
        layouts: those asked for; None for NHWC, and NCHW on few shapes.
        quick: few shapes, bfloat16 and NHWC alone, where nothing else was asked for.
    """
    listed = shapes or (FEW_SHAPES if quick else SHAPES)
    forms = ("relu", "add+relu", "plain")
    settings = itertools.product(layouts or ("NHWC",), dtypes or ("bfloat16",), forms)
    cases = [Case(shape, f, d, at) for at, d, f in settings for shape in listed]
    cases += [
        Case(shape, form, (dtypes or ("bfloat16",))[0], (layouts or ("NHWC",))[0], training=False)
        for form in FORMS
        for shape in (shapes or FEW_SHAPES)
    ]
    if not (shapes or dtypes or layouts or quick):
        others = (("NHWC", "float16"), ("NHWC", "float32"), ("NCHW", "bfloat16"))
        cases += [
            Case(shape, form, dtype, layout)
            for layout, dtype in (*others, ("NCHW", "float32"))
            for form in ("relu", "plain")
            for shape in FEW_SHAPES
        ]
    return cases


class Inputs(NamedTuple):
    """One set of a case's tensors; x, residual and dy lie in the case's layout."""

    x: Tensor
    residual: Tensor | None
    dy: Tensor


class Parameters(NamedTuple):
    """What each channel has, float32."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor


def make_inputs(case: Case, device: str, cache: int) -> list[Inputs]:
    """Return sets to take turns with: without the one in use, their x alone fill a cache twice."""
    draw = torch.Generator(device).manual_seed(0)
    like: dict[str, Any] = {"dtype": DTYPES[case.dtype], "device": device}

    def normal(mean: float, deviation: float, leaf: bool) -> Tensor:
        made = torch.empty(case.shape, memory_format=LAYOUTS[case.layout], **like)
        return made.normal_(mean, deviation, generator=draw).requires_grad_(leaf)

    leaf = case.training
    return [
        Inputs(
            normal(0.5, 2.0, leaf),
            normal(0.0, 1.0, leaf) if case.adds else None,
            normal(0.0, 1.0, False),
        )
        for _ in range(1 + max(1, math.ceil(2 * cache / case.nbytes)))
    ]


def make_parameters(case: Case, device: str) -> Parameters:
    """Return gamma, beta and running statistics."""
    draw, channels = torch.Generator(device).manual_seed(1), (case.shape[1],)

    def between(low: float, high: float) -> Tensor:
        return torch.empty(channels, device=device).uniform_(low, high, generator=draw)

    return Parameters(between(0.5, 1.5), between(-0.5, 0.5), between(0.2, 0.8), between(3.0, 5.0))
