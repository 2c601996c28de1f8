"""The allocator keeps large buffers when told to."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from homeostat import HomeostatWarning, memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not on glibc")

# Pages fetched from the system while the same 64 MiB are allocated, written and freed 20 times.
FAULTS = """
import ctypes, resource
import homeostat
{setting}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def once():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(ctypes.c_void_p(block))
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> int:
    code = FAULTS.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_kept_memory_is_not_fetched_again() -> None:
    kept = faults("assert homeostat.allocator(keep=True)")
    usual = faults("")
    back = faults("homeostat.allocator(keep=True); assert homeostat.allocator(keep=False)")
    assert kept < 1000
    assert usual > 20 * 20
    assert back > 20 * 20
    assert kept < usual / 4


def test_elsewhere_nothing_is_changed_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Other:
        """A C library without gnu_get_libc_version."""

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    with pytest.warns(HomeostatWarning, match="Nothing was changed"):
        assert memory.allocator(keep=True) is False
