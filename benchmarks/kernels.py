"""Homeostat's modules on PyTorch's CPU against torch.nn.BatchNorm: forward and backward.

    python -m benchmarks.kernels                        # the table of docs/speed.md
    python -m benchmarks.kernels --shapes 32x64x56x56 --dtypes float32 --orders last --compile

Shapes are PyTorch's, (batch, channels, ...); "last" has the channels last in memory, "first" the
default order. Before anything is timed the same call is checked against the float64 oracle. Times
are medians of interleaved runs. "torch" is torch.nn.BatchNorm in training, then what is fused in
Homeostat; "native" is Homeostat without its compiled loops; "again" is Homeostat against itself:
what noise alone does. --allocator says whether the allocator (glibc's) keeps the memory that it is
given back, see benchmarks.layers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import percentiles, write_rows
from homeostat.bench.allocator import KEEP_MEMORY

SHAPES = ((32, 64, 56, 56), (32, 256, 28, 28), (32, 512, 14, 14))
DTYPES = ("float32", "bfloat16")
FUSED = ("none", "relu", "add+relu")
COLUMNS = (
    "allocator", "shape", "order", "dtype", "fused", "layer", "p20_ms", "p50_ms", "p80_ms",
    "times_copy", "speedup", "machine", "threads", "python", "torch", "numba", "homeostat",
)  # fmt: skip
# How far results may be from the oracle's, in units of the largest.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}


class Problem:
    """One configuration: its tensors, and the ways of computing it."""

    def __init__(self, shape: tuple[int, ...], order: str, dtype: str, fused: str) -> None:
        import torch

        import homeostat.torch

        torch.manual_seed(0)
        self.fused, self.dtype, self.relu = fused, dtype, "relu" in fused
        made = [torch.randn(shape).mul_(2).add_(0.5).to(getattr(torch, dtype)) for _ in range(3)]
        if order == "last":
            back = (0, len(shape) - 1, *range(1, len(shape) - 1))
            made = [t.movedim(1, -1).contiguous().permute(back) for t in made]
        self.x, self.dy, residual = made
        self.residual = residual if "add" in fused else None
        kind = f"BatchNorm{max(1, len(shape) - 2)}d"
        self.layer = getattr(torch.nn, kind)(shape[1])
        activation = "relu" if self.relu else None
        self.module = getattr(homeostat.torch, kind)(shape[1], activation=activation)
        self.module.weight, self.module.bias = self.layer.weight, self.layer.bias
        self.leaves = [self.x, self.layer.weight, self.layer.bias]
        self.leaves += [] if self.residual is None else [self.residual]
        for leaf in self.leaves:
            leaf.requires_grad_()

    def torch(self) -> Any:
        """Return PyTorch's output."""
        import torch

        y = self.layer(self.x)
        y = y if self.residual is None else y + self.residual
        return torch.relu(y) if self.relu else y

    def ours(self) -> Any:
        """Return Homeostat's output."""
        return self.module(self.x, self.residual)

    def step(self, forward: Callable[[], Any]) -> Any:
        """Return an output and its gradients."""
        import torch

        y = forward()
        return y, *torch.autograd.grad(y, self.leaves, self.dy)

    def without_loops(self) -> Any:
        """Return a step of Homeostat with its compiled loops switched off."""
        import homeostat

        with homeostat.kernels(False):
            return self.step(self.ours)

    def check(self) -> None:
        """Raise unless output and gradients equal the oracle's where ReLU's corner is not near."""
        from homeostat import reference

        x, dy = (t.detach().double().numpy() for t in (self.x, self.dy))
        options: dict[str, Any] = {"axis": 1, "epsilon": self.layer.eps}
        if self.residual is not None:
            options["residual"] = self.residual.detach().double().numpy()
        z, _ = reference.normalize_batch(x, **options)
        if self.relu:
            options["activation"] = "relu"
            self.dy[(np.abs(z) < TOLERANCES[self.dtype])] = 0
            dy = self.dy.double().numpy()
        y, _ = reference.normalize_batch(x, **options)
        exact = reference.backward(dy, x, **options)
        wanted = [y, exact.x, exact.gamma, exact.beta, exact.residual]
        for name, found, array in zip(
            ("y", "dx", "dgamma", "dbeta", "dresidual"), self.step(self.ours), wanted, strict=False
        ):
            error = np.abs(found.detach().double().numpy() - array).max()
            if not error < TOLERANCES[self.dtype] * max(1.0, np.abs(array).max()):
                raise SystemExit(f"{name} is off by {error:.1e}: not timed. Run the tests first.")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every configuration in this process."""
    import torch

    from homeostat.bench import timing

    torch.set_num_threads(options.threads)
    rows = []
    for key in itertools.product(options.shapes, options.orders, options.dtypes, options.fused):
        problem = Problem(*key)
        problem.check()
        # Bound now: the next configuration's candidates are others.
        candidates: dict[str, Callable[[], object]] = {
            "copy": lambda p=problem: p.x.detach().clone(),
            "torch": lambda p=problem: p.step(p.torch),
            "native": problem.without_loops,
            "homeostat": lambda p=problem: p.step(p.ours),
            "again": lambda p=problem: p.step(p.ours),
        }
        if options.compile:
            torch._dynamo.reset()
            compiled = torch.compile(problem.torch)
            candidates["torch.compile"] = lambda p=problem, f=compiled: p.step(f)
        times = timing.interleave(candidates, options.rounds)
        names = ("x".join(map(str, key[0])), *key[1:])
        rows += [_row(options.allocator, names, name, times) for name in candidates]
    return [row | _environment(options.threads) for row in rows]


def _row(allocator: str, key: tuple[str, ...], name: str, times: Any) -> dict[str, Any]:
    mine = times[name]
    return {
        **dict(zip(COLUMNS[1:5], key, strict=True)),
        "allocator": allocator,
        "layer": name,
        **percentiles(mine),
        "times_copy": round(mine.p50 / times["copy"].p50, 2),
        "speedup": round(times["torch"].p50 / mine.p50, 2),
    }


def _environment(threads: int) -> dict[str, Any]:
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numba", "homeostat")},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as the table of docs/speed.md: speed as a multiple of torch's."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("order", "dtype", "fused", "shape"))
        groups.setdefault(key, {})[row["allocator"], row["layer"]] = row
    columns = (
        "order",
        "dtype",
        "fused",
        "shape",
        "torch, ms",
        "native",
        "Homeostat",
        "as it comes",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key, group in groups.items():
        cells = [f"{float(group['keep', 'torch']['p50_ms']):.2f}"]
        wanted = (("keep", "native"), ("keep", "homeostat"), ("system", "homeostat"))
        cells += [f"{float(group[at]['speedup']):.2f}x" if at in group else "" for at in wanted]
        lines.append(f"| {' | '.join((*key, *cells))} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25, help="interleaved rounds (default 25)")
    parser.add_argument(
        "--shapes", nargs="+", default=SHAPES, type=lambda s: tuple(map(int, s.split("x")))
    )
    parser.add_argument("--orders", nargs="+", default=("last", "first"))
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=TOLERANCES)
    parser.add_argument("--fused", nargs="+", default=FUSED, choices=FUSED)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="time torch.compile of torch's too")
    parser.add_argument("--allocator", choices=("keep", "system", "both"), default="both")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernels.csv"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run each allocator's timings in a process of its own, print the table and write the CSV."""
    options = _parser().parse_args()
    if options.worker:
        print(json.dumps(run(options)))
        return
    wanted = ("keep", "system") if options.allocator == "both" else (options.allocator,)
    rows: list[dict[str, Any]] = []
    for allocator in wanted:
        # The last of an option given twice counts.
        command = [sys.executable, "-m", "benchmarks.kernels", *sys.argv[1:]]
        command += ["--worker", "--allocator", allocator]
        memory = KEEP_MEMORY if allocator == "keep" else {}
        output = subprocess.run(  # noqa: S603
            command, env=os.environ | memory, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        rows += json.loads(output.splitlines()[-1])
    print(markdown(rows))
    write_rows(options.out, COLUMNS, rows)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
