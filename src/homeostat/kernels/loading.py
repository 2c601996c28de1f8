"""Whether what the GPU's kernels are written in can be imported here, and a word for why not."""

from __future__ import annotations

import importlib.util
import sys

from homeostat.errors import MissingExtraError, UnsupportedError


def check_triton() -> None:
    """Raise an error where importing Triton would fail, or end the process.

    Raises:
        MissingExtraError: PyTorch or Triton is not installed.
        UnsupportedError: TensorFlow was imported before Triton. Both bring a copy of LLVM, and
            TensorFlow's, where it comes first, makes Triton's end the process.

    Example:
        >>> from homeostat.kernels.loading import check_triton
        >>> try:
        ...     check_triton()
        ... except (MissingExtraError, UnsupportedError):
        ...     pass
    """
    for name, extra in (("torch", "torch"), ("triton", "gpu")):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"The GPU kernels need {name}, which is not installed: expected the extra {extra}. "
                f'Install it with: pip install "homeostat[{extra}]"'
            )
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        raise UnsupportedError(
            "TensorFlow was imported before Triton, which the GPU kernels need and which would end "
            "this process now: expected the other order. Import triton before tensorflow."
        )
