"""Batch normalization on a GPU: PyTorch tensors in, PyTorch tensors out, by Triton's kernels.

Importing it needs PyTorch and the extra ``gpu``, and Triton before TensorFlow (see `loading`). The
module `batchnorm` says what each function takes.
"""

from __future__ import annotations

from homeostat.kernels.loading import check_triton

check_triton()

from homeostat.kernels.gpu.batchnorm import again  # noqa: E402
from homeostat.kernels.gpu.moving import Moving  # noqa: E402
from homeostat.kernels.gpu.operators import (  # noqa: E402
    backward,
    gradient_sums,
    input_gradient,
    moments,
    normalize,
    train,
)
from homeostat.kernels.gpu.plans import Plan, Shape, plan, using  # noqa: E402

__all__ = [
    "Moving",
    "Plan",
    "Shape",
    "again",
    "backward",
    "gradient_sums",
    "input_gradient",
    "moments",
    "normalize",
    "plan",
    "train",
    "using",
]
