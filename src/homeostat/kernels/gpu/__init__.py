"""Batch normalization on a GPU: PyTorch tensors in, PyTorch tensors out, by Triton's kernels.

Importing it needs PyTorch and the extra ``gpu``. The module `batchnorm` says what each function
takes.
"""

from __future__ import annotations

from homeostat.kernels.gpu.operators import (
    backward,
    gradient_sums,
    input_gradient,
    moments,
    normalize,
    train,
)
from homeostat.kernels.gpu.plans import Plan, Shape, plan, using

__all__ = [
    "Plan",
    "Shape",
    "backward",
    "gradient_sums",
    "input_gradient",
    "moments",
    "normalize",
    "plan",
    "train",
    "using",
]
