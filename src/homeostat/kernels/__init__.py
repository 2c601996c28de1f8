"""Loops of our own over buffers, and the switch that turns them off.

The module is the switch: ``homeostat.kernels(False)`` turns the kernels off for the process, or in
a ``with`` statement for its body. The environment variable HOMEOSTAT_KERNELS=0 starts a process
with them off. They need the extra ``cpu`` (numba); without it everything works on the array
libraries' own operations. What is compiled once and runs often (`jax.jit`) keeps what was chosen
when it was traced.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from contextlib import ExitStack
from types import ModuleType

_on = os.environ.get("HOMEOSTAT_KERNELS", "1") != "0"


def enabled() -> bool:
    """Return whether kernels are switched on and numba is installed."""
    return _on and _installed()


@functools.cache
def _installed() -> bool:
    # Asked once: every large call comes by, and looking for what is not there reads the disk.
    return importlib.util.find_spec("numba") is not None


def _switch(on: bool) -> None:
    global _on
    _on = on


class _Switch(ModuleType):
    def __call__(self, on: bool) -> ExitStack:
        """Turn the kernels on or off, for the process or for the body of a ``with`` statement.

        Args:
            on: whether kernels may be chosen from now on.

        Returns:
            A context manager that sets the switch back.

        Example:
            >>> import homeostat
            >>> with homeostat.kernels(False):
            ...     homeostat.kernels.enabled()
            False
        """
        back = ExitStack()
        back.callback(_switch, _on)
        _switch(on)
        return back


sys.modules[__name__].__class__ = _Switch
