"""Damaged model files make errors of ours or an answer; and what watches that sees all else."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from homeostat.errors import ModelFileError
from tests.models.fuzz import BUILDERS, Watched, damage, one, read_damaged, run, samples_in

ME = "tests.models.test_fuzz"


QUICK = ("torch", "safetensors", "tensorflow", "onnx")
# Each of their files takes a process.
SLOW = ("keras", "hdf5")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "count", "seconds", "least"), [(QUICK, 1_000, 6, 60), (SLOW, 30, 60, 8)]
)
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, names: tuple[str, ...], count: int, seconds: float, least: int
) -> None:
    formats = {name: BUILDERS[name] for name in names}
    outcome = run(tmp_path, count, seed=0, seconds=seconds, formats=formats)
    assert outcome.failures == []
    assert sum(outcome.counts[name, "read"] for name in names) > 2
    assert sum(outcome.counts[name, "refused"] for name in names) >= least


def test_a_process_that_ended_starts_again_with_whole_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.write_text("read")
    with Watched(tmp_path / "home", f"{ME}:{obey.__name__}", warm=(whole,)) as watched:
        sample = one(whole)
        for _ in range(2):
            assert read_damaged(watched, sample, whole, b"abort").kind == "crash"
        assert read_damaged(watched, sample, whole, b"read").kind == "read"


def obey(path: str) -> None:
    if Path(path).read_text() == "abort":
        os.abort()


def hang(_: str) -> None:
    time.sleep(60)


def spin(_: str) -> None:
    while True:
        pass


def crash(_: str) -> None:
    os.abort()


def leave(_: str) -> None:
    raise SystemExit(0)


def raise_another(_: str) -> None:
    raise KeyError("bn")


def refuse(path: str) -> None:
    raise ModelFileError(f"{path} is damaged")


def write(_: str) -> None:
    Path("written").write_text("x")


def write_elsewhere(path: str) -> None:
    Path(f"{path}.written").write_text("x")


def start(_: str) -> None:
    subprocess.run(["true"], check=True)


def evaluate(_: str) -> None:
    eval("1 + 1")  # noqa: S307


def take_memory(_: str) -> None:
    assert len(bytearray(b"x") * (600 << 20))


def take_all_memory(_: str) -> None:
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise ModelFileError("cannot be read (MemoryError)") from error


WATCHED: dict[str, Any] = {
    "hang": (hang, "hang"),
    "spin": (spin, "hang"),
    "crash": (crash, "crash"),
    "leave": (leave, "exception"),
    "raise": (raise_another, "exception"),
    "refuse": (refuse, "refused"),
    "write": (write, "written"),
    "write elsewhere": (write_elsewhere, "ran"),
    "start": (start, "ran"),
    "evaluate": (evaluate, "ran"),
    "memory": (take_memory, "memory"),
    "all memory": (take_all_memory, "memory"),
}


@pytest.mark.parametrize("case", WATCHED)
def test_what_goes_wrong_is_seen(tmp_path: Path, case: str) -> None:
    reader, kind = WATCHED[case]
    with Watched(tmp_path / "home", f"{ME}:{reader.__name__}", seconds=1) as watched:
        # A second file is read by the same process, or another where that one ended.
        for name in ("a", "b"):
            answer = watched.read(tmp_path / name)
            assert answer.kind == kind, answer


def test_damages_are_the_same_for_a_seed(tmp_path: Path) -> None:
    formats = {"safetensors": BUILDERS["safetensors"]}
    samples = samples_in(tmp_path, formats)
    first = [damage(samples, 3, number)[3] for number in range(20)]
    assert first == [damage(samples, 3, number)[3] for number in range(20)]
    assert len(set(first)) > 15
    assert first != [damage(samples, 4, number)[3] for number in range(20)]
