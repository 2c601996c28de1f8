"""How the loops are compiled: without the interpreter's lock, once, and kept on disk.

No function is compiled with fast maths: sums of (x - mean) need their order and their NaN, and the
backward computes the sign of an output again, to the last bit. What may be added up in any order
says so by itself (`vectors.total`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
from numba import cfunc, config, njit
from numba.core import event
from numba.extending import register_jitable

_OPTIONS: Any = {"nogil": True, "error_model": "numpy"}


def _digest() -> str:
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


# Loops of one file call those of another, and numba looks at one file only to tell whether what it
# kept is still new. It keeps it under the function's name.
_VERSION = _digest()


def processor_has(feature: str) -> bool:
    """Return whether the processor that code is compiled for has a feature, such as "avx2"."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return bool(llvmlite.binding.get_host_cpu_features().get(feature))


def compiled(function: Callable[..., Any]) -> Any:
    """Let compiled code call a function; the interpreter runs it as it stands.

    It is compiled with the C function that leads to it, and kept in there.
    """
    return register_jitable(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function part of the compiled code that calls it.

    A call takes an array apart into seven words and counts who holds it, which costs as much as to
    compute a few vectors.
    """
    return njit(inline="always", **_OPTIONS)(function)


def c_function(*signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function at once, to be called by its address."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return cfunc(*signature, cache=True)(_named(function))
        except RuntimeError as error:
            # There is no folder that numba may write to.
            if "cannot cache" not in str(error):
                raise
            return cfunc(*signature)(function)

    return decorate


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    if not function.__qualname__.endswith(_VERSION):
        function.__qualname__ += f"-{_VERSION}"
    return function


class _Announcement(event.Listener):
    """Says, once a process, that a pause is for compiling."""

    said = False

    def on_start(self, event: Any) -> None:
        function = getattr(event.data.get("dispatcher"), "py_func", None)
        ours = str(getattr(function, "__module__", "")).startswith("homeostat.")
        if ours and not self.said:
            self.said = True
            logging.getLogger("homeostat").warning(
                "Homeostat compiles its CPU kernels: a few seconds, once for this machine. "
                "`homeostat warmup` does it ahead."
            )

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


event.register("numba:compile", _Announcement())
