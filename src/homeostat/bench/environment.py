"""Where rows are measured, told without loading a framework, and how a process is started."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from homeostat import __version__
from homeostat.bench.allocator import KEEP_MEMORY
from homeostat.errors import SpecError
from homeostat.report.bench.rows import Environment

ALLOCATORS = ("keep", "system")
_PACKAGES = {
    "torch": ("torch", "keras", "numba", "numpy"),
    "jax": ("jax", "jaxlib", "flax", "keras", "numba", "numpy"),
    "tensorflow": ("tensorflow", "tf-keras", "keras", "numba", "numpy"),
}


def describe(framework: str, threads: int, allocator: str) -> Environment:
    """Return the environment of a framework's process."""
    return Environment(
        framework=framework,
        machine=f"{platform.system()} {_processor()}",
        cores=count_cores(),
        threads=threads,
        allocator=allocator,
        python=platform.python_version(),
        versions=", ".join(filter(None, map(_with_version, _PACKAGES[framework]))),
        homeostat=__version__,
    )


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """Return how many cores to use.

    Raises:
        SpecError: there are not as many.
    """
    cores = count_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise SpecError(f"threads={threads}: expected 1 to {cores}, the cores of this machine.")
    return threads or cores


def variables(environment: Environment) -> dict[str, str]:
    """Return the environment variables that a framework's process is started with."""
    threads = str(environment.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "NPROC")
    settings = dict.fromkeys((*names, "NUMBA_NUM_THREADS"), threads)
    # The bench compares processors; what a GPU does needs another floor.
    settings |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    settings |= {"KERAS_BACKEND": environment.framework, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return os.environ | settings | (KEEP_MEMORY if environment.allocator == "keep" else {})


def confine(threads: int) -> None:
    """Keep this process on so many cores, whatever a framework makes of its settings."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{platform.machine()} {found[1].strip()}" if found else platform.machine()


def _with_version(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return f"{package} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
