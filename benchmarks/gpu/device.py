"""The device that is measured: what it is, its cache, and the memory that calls take on it."""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import torch

import homeostat

UNKNOWN = "unknown"


def describe(device: str) -> dict[str, str]:
    """Return the columns of a row that say where it was measured."""
    found = {
        "gpu": "none (dry run)",
        "driver": "",
        "clocks": "",
        "cuda": torch.version.cuda or "",
        "cudnn": "",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "homeostat": homeostat.__version__,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = read_smi("driver_version")
        found["clocks"] = read_smi("clocks.max.sm,clocks.max.mem")
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def read_smi(query: str) -> str:
    """Return what nvidia-smi says of this process's device, such as ``"1980 MHz, 3201 MHz"``."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return UNKNOWN
    command = [program, f"--query-gpu={query}", "--format=csv,noheader"]
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    if uuid is not None:
        command.append(f"--id=GPU-{str(uuid).removeprefix('GPU-')}")
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else UNKNOWN


def cache_bytes(device: str) -> int:
    """Return the bytes of the device's last cache; 0 for the CPU, which is not measured."""
    if device != "cuda":
        return 0
    properties: Any = torch.cuda.get_device_properties(0)
    return int(properties.L2_cache_size)


def count_multiprocessors(device: str) -> int:
    """Return how many multiprocessors the device has; 1 for the CPU's interpreter."""
    if device != "cuda":
        return 1
    return torch.cuda.get_device_properties(0).multi_processor_count


def free_memory(device: str) -> None:
    """Give back what earlier cases left with the allocator."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def peak_of(device: str, call: Callable[[], object]) -> int | None:
    """Return by how many bytes a call raises what is allocated, its results included.

    None on the CPU.
    """
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del results
    return peak
