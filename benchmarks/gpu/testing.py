"""Run the kernels' tests on the device before anything is timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.budget import Deadline

ROOT = Path(__file__).parent.parent.parent
KERNELS = "tests/kernels/gpu"
TESTS_LOG = "gpu_tests.txt"


class Outcome(NamedTuple):
    """What came of the tests.

    Args:
        failed: whether any failed, or none could run.
        told: one line about them.
    """

    failed: bool
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
        deadline: when they are stopped; what did not fail until then does not count as failed.
        processes: how many they are shared out among; 0 for one.
    """
    missing = [path for path in paths if not (ROOT / path).exists()]
    if missing:
        return Outcome(
            True,
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
            code = None
    outcome = _outcome(code, log)
    with log.open("a") as file:
        file.write(f"\n{outcome.told}\n")
    return outcome._replace(told=f"{outcome.told}, see {log}")


def _outcome(code: int | None, log: Path) -> Outcome:
    """Return what pytest's exit code, None if it was stopped, and its log say."""
    if code is not None:
        return Outcome(code != 0, f"{last_line(log).strip('= ')}, exit code {code}")
    ended = "".join(re.findall(r"^([.sxXFE]+)(?: +\[.*)?$", log.read_text(), re.MULTILINE))
    faults = len(re.findall("[FE]", ended))
    told = f"{len(ended)} ended and {faults} failed before their share of the time was over"
    return Outcome(faults > 0 or not ended, told)


def last_line(log: Path) -> str:
    """Return the last line of a log that may not be there."""
    lines = log.read_text().strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "nothing was printed"


def count_processes(device: str) -> int:
    """Return how many processes take most of the tests' time, which is compilation, off them."""
    return min(6, (os.cpu_count() or 1) // 2) if device == "cuda" else 0


def environment() -> dict[str, str]:
    """Return the environment of a process that finds this repository's package."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
