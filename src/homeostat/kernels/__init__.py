"""Loops of our own over buffers, and the switch that turns them off.

The module is the switch: ``homeostat.kernels(False)`` turns the kernels off for the process, and in
a ``with`` statement for its body. The environment variable HOMEOSTAT_KERNELS=0 starts a process with
them off. They need the extra ``cpu`` (numba); without it everything works on the array libraries'
own operations. What compiles once and runs often (`jax.jit`) keeps what was chosen when it was
traced.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType, TracebackType

_enabled = os.environ.get("HOMEOSTAT_KERNELS", "1") != "0"


class Switched:
    """What the switch returns: leaving a ``with`` statement over it sets the switch back."""

    def __init__(self, before: bool) -> None:
        self._before = before

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _set(self._before)


def enabled() -> bool:
    """Return whether kernels are switched on and numba is installed."""
    return _enabled and importlib.util.find_spec("numba") is not None


def _set(on: bool) -> None:
    global _enabled
    _enabled = on


class _Switch(ModuleType):
    def __call__(self, on: bool) -> Switched:
        """Turn the kernels on or off, for the process or for the body of a ``with`` statement.

        Args:
            on: whether kernels may be chosen from now on.

        Returns:
            A context manager that sets the switch back.

        Example:
            >>> import homeostat.kernels
            >>> with homeostat.kernels(False):
            ...     homeostat.kernels.enabled()
            False
        """
        before = _enabled
        _set(on)
        return Switched(before)


sys.modules[__name__].__class__ = _Switch
