"""Run the kernels' tests on the device before anything is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.budget import Deadline

ROOT = Path(__file__).parent.parent.parent
KERNELS = "tests/kernels/gpu"


class Outcome(NamedTuple):
    """What came of the tests.

    Args:
        green: whether they ran and none failed.
        told: one line about them.
    """

    green: bool
    told: str


def find_tests() -> list[str]:
    """Return the kernels' tests, and those of the rooms above them that name CUDA or GPUs."""
    found = [KERNELS]
    for folder in ("tests/torch", "tests/ops"):
        for word in ("cuda", "gpu"):
            found += [str(p.relative_to(ROOT)) for p in (ROOT / folder).glob(f"test_*{word}*.py")]
    return sorted(set(found))


def run_tests(paths: Sequence[str], log: Path, deadline: Deadline, processes: int = 0) -> Outcome:
    """Run tests in a process of their own and write what they print to a log.

    Args:
        paths: files and folders, from the repository's root.
        log: the file.
        deadline: when they are stopped; then they are not green.
        processes: how many they are shared out among; 0 for one.
    """
    missing = [path for path in paths if not (ROOT / path).exists()]
    if missing:
        return Outcome(
            False,
            f"{', '.join(missing)} is not there: expected the tests of the kernels. Give the "
            "right ones with --tests, or leave them out with --skip tests.",
        )
    # What this machine's versions of other packages warn of is no fault of the kernels.
    command = [sys.executable, "-m", "pytest", "-n", str(processes), "-q", "-p", "no:cacheprovider"]
    command += ["-o", "filterwarnings=default", *paths]
    with log.open("w") as file:
        try:
            code = subprocess.run(  # noqa: S603
                command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT,
                timeout=max(1.0, deadline.left()), check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome(False, f"the tests took longer than their share of the time: see {log}")
    lines = log.read_text().strip().splitlines()
    last = lines[-1].strip("= ") if lines else "nothing was printed"
    return Outcome(code == 0, f"{last} (exit code {code}, see {log})")


def count_processes(device: str) -> int:
    """Return how many processes take most of the tests' time, which is compilation, off them."""
    return min(6, (os.cpu_count() or 1) // 2) if device == "cuda" else 0


def environment() -> dict[str, str]:
    """Return the environment of a process that finds this repository's package."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
