"""Loops of our own over buffers, and the switch that turns them off.

The module is the switch: ``homeostat.kernels(False)`` turns the kernels off for the process, or in
a ``with`` statement for its body. The environment variable HOMEOSTAT_KERNELS=0 starts a process
with them off. They need the extra ``cpu`` (numba); without it everything works on the array
libraries' own operations. What is compiled once and runs often (`jax.jit`) keeps what was chosen
when it was traced.

The kernels for GPUs (extra ``gpu``, PyTorch only) are off until they are asked for, by
``homeostat.kernels(True, gpu=True)`` or HOMEOSTAT_GPU_KERNELS=1: they have run in Triton's
interpreter and been compiled, but not been measured on a GPU yet.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import ExitStack
from types import ModuleType

# Asked once: every large call comes by, and looking for what is not there reads the disk.
_NUMBA, _TRITON = (importlib.util.find_spec(name) is not None for name in ("numba", "triton"))

_on = os.environ.get("HOMEOSTAT_KERNELS", "1") != "0"
_on_gpu = os.environ.get("HOMEOSTAT_GPU_KERNELS", "0") != "0"


def enabled() -> bool:
    """Return whether kernels are switched on and numba is installed."""
    return _on and _NUMBA


def enabled_on(device: str) -> bool:
    """Return whether the kernels for GPUs are switched on and run on a kind of device.

    Args:
        device: such as "cuda"; Triton's interpreter (TRITON_INTERPRET=1) runs on "cpu" too.
    """
    if not (_on and _on_gpu and _TRITON):
        return False
    return device == "cuda" or (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")


def _switch(on: bool, on_gpu: bool) -> None:
    global _on, _on_gpu
    _on, _on_gpu = on, on_gpu


class _Switch(ModuleType):
    def __call__(self, on: bool, *, gpu: bool | None = None) -> ExitStack:
        """Turn the kernels on or off, for the process or for the body of a ``with`` statement.

        Args:
            on: whether kernels may be chosen from now on.
            gpu: whether those for GPUs may be among them; None for as it was, which is not, unless
                the environment says so.

        Returns:
            A context manager that sets the switch back.

        Example:
            >>> import homeostat
            >>> with homeostat.kernels(False):
            ...     homeostat.kernels.enabled()
            False
        """
        back = ExitStack()
        back.callback(_switch, _on, _on_gpu)
        _switch(on, _on_gpu if gpu is None else gpu)
        return back


sys.modules[__name__].__class__ = _Switch
