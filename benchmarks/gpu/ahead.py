"""Compile beside the tests what will be timed after them: torch.compile's kernels and ours.

Compiling takes a processor seconds for each case and a device nothing; what is compiled goes to the
compilers' caches on the disk, from which the timing process takes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu import columns
from benchmarks.gpu.cases import Case, make_inputs, make_parameters
from benchmarks.gpu.device import free_memory
from benchmarks.gpu.testing import ROOT, environment

# Larger tensors would take the tests' memory.
LARGEST = 1.2e9
# Of the device's memory, for each process.
MEMORY_FRACTION = 0.2
THREADS = "4"


class Helpers:
    """Processes that compile ahead, until they are done or are stopped.

    Args:
        count: how many.
        arguments: those of this run.
    """

    def __init__(self, count: int, arguments: Sequence[str]) -> None:
        variables = environment() | {"TORCHINDUCTOR_COMPILE_THREADS": THREADS}
        self._processes = [
            subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "benchmarks.gpu", *arguments, "--ahead", f"{n}/{count}"],
                cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for n in range(count)
        ]  # fmt: skip

    def stop(self) -> None:
        """End those that still run: nothing may run beside what is timed."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def compile_ahead(
    cases: Sequence[Case], part: str, device: str, names: Sequence[str], backend: str
) -> None:
    """Call the columns that compile once for every case of a part, such as ``"0/3"``."""
    number, count = map(int, part.split("/"))
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_FRACTION)
    wanted = [name for name in names if name in (columns.OURS, *columns.COMPILING)]
    for case in cases[number::count]:
        if case.nbytes > LARGEST:
            continue
        columns.reset_compiler()
        parameters, sets = make_parameters(case, device), make_inputs(case, device, 0)
        for name in wanted:
            try:
                columns.build(name, case, parameters, backend).step(case, sets[0])
            except Exception as error:
                # The process that times the case tells of it.
                print(f"{case} {name}: {error}", file=sys.stderr)
        del sets
        free_memory(device)


def count_helpers(device: str) -> int:
    """Return how many processes to start where nobody says."""
    return min(3, (os.cpu_count() or 1) // 4) if device == "cuda" else 0
