"""The process's allocator: whether it keeps the memory of large tensors between steps."""

from __future__ import annotations

import ctypes
import platform
import warnings

from homeostat.errors import HomeostatWarning

# glibc's malloc.h. mallopt takes numbers of 32 bits.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_LARGEST = 2**31 - 1
_MIB = 2**20
_KEEPING = {_TRIM_THRESHOLD: _LARGEST, _TOP_PAD: 256 * _MIB, _MMAP_MAX: 0}
# Where glibc's own thresholds settle in a process that frees large buffers.
_USUAL = {
    _TRIM_THRESHOLD: 64 * _MIB,
    _TOP_PAD: 0,
    _MMAP_THRESHOLD: 32 * _MIB,
    _MMAP_MAX: 65536,
}


def allocator(*, keep: bool) -> bool:
    """Tell this process's allocator (glibc's) to keep, or give back, the memory of large buffers.

    glibc returns every freed buffer over 32 MiB to the system, and the next one is fetched anew,
    page by page: a large tensor can take longer to fetch than to compute. Kept memory is reused.
    The process then stays as large as it once was; that is why it is yours to choose. It acts on
    all of the process, on what is allocated from now on.

    Args:
        keep: True to keep the memory, False for about what glibc does by itself.

    Returns:
        Whether it was done. Elsewhere than on glibc nothing is, and a warning says so.

    Example:
        >>> import homeostat
        >>> done = homeostat.allocator(keep=True)
    """
    mallopt = _mallopt()
    if mallopt is None:
        warnings.warn(
            f"homeostat.allocator sets glibc's malloc, which this process ({platform.system()}) "
            "does not have: expected Linux with glibc. Nothing was changed.",
            HomeostatWarning,
            stacklevel=2,
        )
        return False
    wanted = _KEEPING if keep else _USUAL
    # All of them, even where one is refused.
    return sum(mallopt(name, value) for name, value in wanted.items()) == len(wanted)


def _mallopt() -> ctypes._NamedFuncPointer | None:
    try:
        library = ctypes.CDLL(None)
        # Only glibc has it; other C libraries may have a mallopt that does nothing.
        library.gnu_get_libc_version  # noqa: B018
        return library.mallopt
    except (AttributeError, OSError, TypeError):
        return None
