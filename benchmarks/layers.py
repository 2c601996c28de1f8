"""Homeostat's Keras layer against Keras's own: forward and backward, float32, side by side.

    python -m benchmarks.layers                       # all installed backends
    python -m benchmarks.layers --backend jax --rounds 60 --shapes 64x28x28x128 8192x128

Before anything is timed the same call is checked against the float64 oracle. Times are medians of
interleaved runs; "x copy" is the time as a multiple of one copy of the input, of which forward and
backward need at least four. The row "again" is Homeostat against itself: what noise alone does.

By default the allocator (glibc's) keeps the memory that it is given back. Otherwise whole tensors
are fetched from the system anew, by whichever layer comes next, and times are up to three times as
long in some runs and not in others. --allocator system measures it as it comes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import percentiles, write_rows
from homeostat.bench import timing
from homeostat.bench.allocator import KEEP_MEMORY

SHAPES = ((32, 56, 56, 64), (32, 28, 28, 256), (32, 14, 14, 512), (128, 1024), (8192, 128))
BACKENDS = ("tensorflow", "jax", "torch")
COLUMNS = (
    "backend", "shape", "activation", "layer", "p20_ms", "p50_ms", "p80_ms", "times_copy",
    "speedup", "machine", "cores", "python", "keras", "framework", "homeostat",
)  # fmt: skip


def check(results: Any, x: np.ndarray, dy: np.ndarray, activation: str | None) -> None:
    """Raise unless outputs and gradients equal the oracle's."""
    from homeostat import reference

    y, _ = reference.normalize_batch(x, activation=activation)
    exact = reference.backward(dy, x, activation=activation)
    wanted = {"y": y, "dx": exact.x, "dgamma": exact.gamma, "dbeta": exact.beta}
    for name, array in wanted.items():
        error = np.abs(getattr(results, name) - array).max() / max(1.0, np.abs(array).max())
        if not error < 1e-4:
            raise SystemExit(f"{name} is off by {error:.1e}: not timed. Run the tests first.")


def make_input(shape: tuple[int, ...]) -> np.ndarray:
    """Return an input of which no normalized value lies within rounding of ReLU's corner."""
    from homeostat import reference

    x = np.random.default_rng(0).normal(0.5, 2.0, shape).astype(np.float32)
    z, _ = reference.normalize_batch(x)
    return np.where(np.abs(z) < 1e-4, x + np.float32(0.02), x)


def run_backend(
    backend: str, rounds: int, shapes: Sequence[tuple[int, ...]]
) -> list[dict[str, Any]]:
    """Time every shape on the backend that this process has chosen."""
    import keras

    from benchmarks import steps
    from homeostat.keras import BatchNormalization

    rows: list[dict[str, Any]] = []
    for shape in shapes:
        x = make_input(shape)
        dy = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        for activation in (None, "relu"):
            relu = activation is not None
            ours = steps.make(BatchNormalization(activation=activation), False, x, dy)
            check(ours.results(), x, dy, activation)
            peer = steps.make(keras.layers.BatchNormalization(), relu, x, dy)
            candidates = {
                "copy": ours.copy,
                "keras": peer.step,
                "homeostat": ours.step,
                "again": ours.step,
            }
            times = timing.interleave(candidates, rounds)
            rows += [
                _row(backend, shape, activation, name, times) | _environment(backend)
                for name in candidates
            ]
    return rows


def _row(
    backend: str, shape: tuple[int, ...], activation: str | None, name: str, times: Any
) -> dict[str, Any]:
    mine = times[name]
    return {
        "backend": backend,
        "shape": "x".join(map(str, shape)),
        "activation": activation or "none",
        "layer": name,
        **percentiles(mine),
        "times_copy": round(mine.p50 / times["copy"].p50, 2),
        "speedup": round(times["keras"].p50 / mine.p50, 2),
    }


def _environment(backend: str) -> dict[str, Any]:
    version = importlib.metadata.version
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "keras": version("keras"),
        "framework": version(backend),
        "homeostat": version("homeostat"),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one line for each shape and activation."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="forward + backward, float32: times a copy of the input, and speed-up")
    for name in ("backend", "shape", "activation", "copy ms", "Keras", "Homeostat", "again"):
        table.add_column(name, justify="left" if name in ("backend", "shape") else "right")
    table.add_column("faster by", justify="right", style="bold")
    for key, group in _groups(rows).items():
        table.add_row(
            *key,
            f"{group['copy']['p50_ms']:.2f}",
            *(f"{group[name]['times_copy']:.1f}" for name in ("keras", "homeostat", "again")),
            f"{group['homeostat']['speedup']:.2f}x",
        )
    Console(width=max(100, Console().width)).print(table)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as the table of docs/speed.md."""
    columns = ("backend", "shape", "activation", "copy, ms", "Keras, copies", "Homeostat, copies")
    lines = [f"| {' | '.join(columns)} | faster by |", "|---|---|---|---|---|---|---|"]
    for key, group in _groups(rows).items():
        ours, theirs = group["homeostat"], group["keras"]
        lines.append(
            f"| {' | '.join(key)} | {float(group['copy']['p50_ms']):.2f} "
            f"| {float(theirs['times_copy']):.1f} | {float(ours['times_copy']):.1f} "
            f"| {float(ours['speedup']):.2f}x |"
        )
    return "\n".join(lines)


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the rows of each backend, shape and activation by layer."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["backend"], row["shape"], row["activation"])
        groups.setdefault(key, {})[row["layer"]] = row
    return groups


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def main() -> None:
    """Run each backend in a process of its own, print the table and write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=(*BACKENDS, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=25, help="interleaved rounds (default 25)")
    parser.add_argument("--shapes", type=_shape, nargs="+", default=SHAPES, help="such as 8192x128")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/layers.csv"))
    parser.add_argument(
        "--allocator", choices=("keep", "system"), default="keep", help="default keep: see above"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_backend(options.backend, options.rounds, options.shapes)))
        return
    wanted = BACKENDS if options.backend == "all" else (options.backend,)
    rows: list[dict[str, Any]] = []
    for backend in wanted:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend}: not installed, skipped", file=sys.stderr)
            continue
        command = [sys.executable, "-m", "benchmarks.layers", "--worker"]
        command += ["--backend", backend, "--rounds", str(options.rounds)]
        command += ["--shapes", *("x".join(map(str, shape)) for shape in options.shapes)]
        quiet = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if options.allocator == "keep":
            quiet |= KEEP_MEMORY
        output = subprocess.run(  # noqa: S603
            command, env=os.environ | quiet, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        rows += json.loads(output.splitlines()[-1])
    print_table(rows)
    write_rows(options.out, COLUMNS, rows)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
