"""One run: its phases one after the other, and what is written at its end."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import chart, network, tune, verdict
from benchmarks.gpu.ahead import Helpers, compile_ahead, count_helpers
from benchmarks.gpu.budget import Budget, Deadline
from benchmarks.gpu.cases import Case, choose_cases
from benchmarks.gpu.clock import Clock, clock_of
from benchmarks.gpu.columns import COMPILING, OURS, keep_choices_to_oneself
from benchmarks.gpu.device import describe, read_smi
from benchmarks.gpu.rows import FAILED, MEASURED, WRONG, Rows, read_rows
from benchmarks.gpu.testing import TESTS_LOG, count_processes, find_tests, last_line, run_tests
from benchmarks.gpu.times import Settings, measure_cases, measure_copy


class Run:
    """A run of the benchmark.

    Args:
        options: of the command.
        budget: its time; the phases in it are those that run.
    """

    def __init__(self, options: argparse.Namespace, budget: Budget) -> None:
        self._options, self._budget = options, budget
        self._began = time.monotonic()
        self._where = describe(options.device)
        self._rows = Rows(options.out, self._where)
        self._cases = choose(options)
        if set(options.columns) & set(COMPILING):
            keep_choices_to_oneself()

    def run(self) -> int:
        """Run the phases and return the exit code."""
        self._say(", ".join(f"{name} {value}" for name, value in self._where.items() if value))
        if "tests" in self._options.skip:
            (self._options.out / TESTS_LOG).write_text("left out\n")
        elif not self._test():
            return 1
        clock = clock_of(self._options.device)
        try:
            for phase, work in (
                ("tune", self._tune), ("time", self._time), ("network", self._train)
            ):  # fmt: skip
                if phase in self._options.skip:
                    self._say(f"{phase}: left out")
                else:
                    work(clock, self._budget.start(phase))
        finally:
            # What was measured until an error is worth a table too.
            self._conclude()
        return 1 if self._ours_is_wrong() else 0

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def _test(self) -> bool:
        options, deadline = self._options, self._budget.start("tests")
        count = count_helpers(options.device) if options.helpers is None else options.helpers
        helpers = Helpers(0 if "time" in options.skip else count, sys.argv[1:])
        try:
            outcome = run_tests(
                options.tests or find_tests(),
                options.out / TESTS_LOG,
                deadline,
                count_processes(options.device),
            )
        finally:
            helpers.stop()
        self._say(f"tests: {outcome.told}")
        if outcome.failed:
            self._say("nothing is timed until the tests pass")
        return not outcome.failed

    def _tune(self, clock: Clock, deadline: Deadline) -> None:
        options = self._options
        chosen = [case for case in self._cases if case.training and case.form == "relu"]
        # The largest, the middle and the smallest first: time will not suffice for all.
        chosen.sort(key=lambda case: case.nbytes)
        middle = len(chosen) // 2
        first = (*chosen[-1:], *chosen[middle : middle + 1], *chosen[:1])
        order = list(dict.fromkeys((*first, *chosen)))
        for row in tune.tune(order, options.device, clock, deadline):
            self._rows.add("gpu_tuned.csv", row)
        self._say("tuned; 'best of default' is the best plan's time as a part of the default's")
        print(tune.summarize_tuning(read_rows(options.out / "gpu_tuned.csv")), flush=True)

    def _time(self, clock: Clock, deadline: Deadline) -> None:
        options = self._options
        settings = Settings(options.device, options.columns, options.rounds, options.backend)
        copied = measure_copy(settings, clock)
        self._rows.add("gpu.csv", copied)
        bandwidth = copied["floor_bytes"] / max(copied["p50_ms"] / 1e3, 1e-9)
        self._say(f"copy: {bandwidth / 1e12:.2f} TB/s, bytes read and written")
        for row in measure_cases(self._cases, settings, clock, deadline, bandwidth):
            self._rows.add("gpu.csv", row)
            if row["column"] == OURS:
                told = f"{row['p50_ms']} ms" if row["state"] == MEASURED else row["note"]
                call = (row[name] for name in verdict.KEY)
                self._say(f"{' '.join(call)}: {row['state']}, {told}")
        if options.device == "cuda":
            self._say(f"clocks now: {read_smi('clocks.sm,clocks.mem,temperature.gpu')}")

    def _train(self, clock: Clock, deadline: Deadline) -> None:
        options = self._options
        for row in network.measure_network(options.device, clock, deadline, options.backend):
            self._rows.add("gpu_network.csv", row)
            measured = row["state"] == MEASURED
            told = f"{row['images_per_s']} images/s" if measured else row["note"]
            self._say(f"{row['network']}, {row['column']}: {row['state']}, {told}")

    def _conclude(self) -> None:
        text = conclude(self._options.out)
        self._say("done")
        print(text, flush=True)

    def _ours_is_wrong(self) -> bool:
        folder = self._options.out
        found: list[dict[str, Any]] = [
            row for name in ("gpu.csv", "gpu_network.csv") for row in read_rows(folder / name)
        ]
        return any(row["column"] == OURS and row["state"] in (WRONG, FAILED) for row in found)


def choose(options: argparse.Namespace) -> list[Case]:
    """Return the cases that a command asks for."""
    return choose_cases(options.shapes, options.dtypes, options.layouts, options.quick)


def conclude(folder: Path) -> str:
    """Write tables and chart of a folder's rows; return the bars, which fit a terminal."""
    rows, trained = read_rows(folder / "gpu.csv"), read_rows(folder / "gpu_network.csv")
    device = rows[0]["gpu"] if rows else "nothing was timed"
    where = ", ".join(
        f"{name} {rows[0][name]}"
        for name in ("driver", "clocks", "cuda", "cudnn", "torch", "triton", "python", "homeostat")
        if rows and rows[0][name]
    )
    bars, faults = verdict.bars_table(rows), verdict.faults(rows)
    short = [bars, "", network.table(trained), "", *faults[:20], verdict.unmeasured(rows)]
    tuned = tune.summarize_tuning(read_rows(folder / "gpu_tuned.csv"))
    page = [
        f"# {device}",
        where,
        f"Tests: {last_line(folder / TESTS_LOG)}",
        bars,
        network.table(trained),
        verdict.markdown(rows),
        tuned,
    ]
    page += [*faults, verdict.unmeasured(rows)]
    (folder / "gpu_verdict.md").write_text("\n\n".join(filter(None, page)) + "\n")
    (folder / "gpu.html").write_text(chart.render(rows, f"Batch norm on {device}"))
    return "\n".join(short)


def report(folder: Path) -> int:
    """Show an earlier run's rows again and return the exit code."""
    if not (folder / "gpu.csv").exists():
        print(f"{folder / 'gpu.csv'} is not there: expected the folder of an earlier run, --out.")
        return 1
    print(conclude(folder))
    return 0


def compile_part(options: argparse.Namespace) -> int:
    """Compile a part of the cases for the process that will time them."""
    keep_choices_to_oneself()
    compile_ahead(choose(options), options.ahead, options.device, options.columns, options.backend)
    return 0
