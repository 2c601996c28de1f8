"""Test, tune and time Homeostat's GPU kernels, and say which bars were met: one command.

    python -m benchmarks.gpu                          # under 8 minutes on one GPU
    python -m benchmarks.gpu --minutes 3 --quick      # few shapes, bfloat16, channels last
    python -m benchmarks.gpu --skip tests tune network --shapes 64x256x28x28 --dtypes float32
    python -m benchmarks.gpu --report DIR             # tables and chart of an earlier run again

Phases: tests (the kernels' own, which must pass), tune (other plans than the table's), time (every
column in turns, each call held to float64 first), network (ResNet-50's training step), verdict.
Each gets a share of the minutes and what those before it left; what time does not suffice for has
rows that say so. Rows are appended to --out as they come: gpu.csv, gpu_tuned.csv, gpu_network.csv,
then gpu_verdict.md and gpu.html. The exit code is 1 where tests fail or a result of ours is wrong.

--device cpu is a dry run: it takes the same way with what a CPU can do and measures nothing that
anybody should read.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.gpu.budget import Budget

SHARES = {"tests": 6.0, "tune": 2.0, "time": 6.0, "network": 2.5}
"""Each phase's part of the time."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="of the whole run (default 8)")
    add("--out", type=Path, help="folder of what is written (default benchmarks/results)")
    add("--quick", action="store_true", help="few shapes, bfloat16, channels last")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--shapes", nargs="+", type=_shape, metavar="NxCxHxW")
    add("--dtypes", nargs="+", choices=("bfloat16", "float16", "float32"))
    add("--layouts", nargs="+", choices=("NHWC", "NCHW"))
    add("--columns", nargs="+", help="such as torch.compile (default: all but two)")
    add("--rounds", type=int, default=25, help="samples of each column (default 25)")
    add("--skip", nargs="+", choices=tuple(SHARES), default=(), help="phases to leave out")
    add("--tests", nargs="+", metavar="PATH", help="instead of the kernels' tests")
    add("--backend", default="inductor", help="of torch.compile (default inductor)")
    add("--helpers", type=int, help="processes that compile beside the tests (default up to 3)")
    add("--report", type=Path, metavar="DIR", help="measure nothing: show an earlier run's rows")
    add("--ahead", help=argparse.SUPPRESS)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(map(int, text.split("x")))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected four sizes such as 256x64x56x56")
    return sizes


def _options() -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args()
    if options.report is None and options.device == "cpu" and options.out is None:
        parser.error("--device cpu measures nothing worth keeping: give a folder of its own, --out")
    options.out = options.out or Path("benchmarks/results")
    if options.device == "cpu":
        # The kernels' interpreter, chosen before Triton is loaded.
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ["HOMEOSTAT_GPU_KERNELS"] = "1"
    from benchmarks.gpu.columns import ALL_COLUMNS, COLUMNS

    options.columns = tuple(options.columns or COLUMNS)
    unknown = sorted(set(options.columns) - set(ALL_COLUMNS))
    if unknown:
        parser.error(f"--columns {', '.join(unknown)}: expected some of {', '.join(ALL_COLUMNS)}")
    return options


def main() -> int:
    """Run the phases and return the exit code."""
    began = time.monotonic()
    options = _options()
    from benchmarks.gpu.run import Run, compile_part, report

    if options.report is not None:
        return report(options.report)
    if options.ahead is not None:
        return compile_part(options)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device is there: expected an NVIDIA GPU and a PyTorch built for CUDA (this is "
            f"{torch.__version__}). Run this where there is one, or --device cpu --out DIR for a "
            "dry run."
        )
        return 1
    spent = time.monotonic() - began
    shares = {name: share for name, share in SHARES.items() if name not in options.skip}
    return Run(options, Budget(60 * options.minutes - spent, shares)).run()


if __name__ == "__main__":
    sys.exit(main())
