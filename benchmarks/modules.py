"""Time the PyTorch modules against native ones on the CPU: python -m benchmarks.modules.

Every pair is checked to agree before it is timed. The ratio is what counts on a busy machine.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from homeostat.bench.timing import interleave
from homeostat.torch import BatchNorm1d, BatchNorm2d

SHAPES = ((32, 16), (128, 256), (8, 16, 8, 8), (32, 64, 28, 28))


def pair(shape: tuple[int, ...], relu: bool) -> dict[str, Any]:
    """Return a training step of native modules and of ours, which give the same."""
    native = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(shape[1])
    kind = BatchNorm1d if len(shape) == 2 else BatchNorm2d
    ours = kind(shape[1], activation="relu" if relu else None)
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def step_native() -> Any:
        y = native(x)
        return torch.autograd.grad(y.relu() if relu else y, (x, *native.parameters()), dy)

    def step_ours() -> Any:
        return torch.autograd.grad(ours(x), (x, *ours.parameters()), dy)

    torch.testing.assert_close(step_ours(), step_native(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.state_dict(), native.state_dict(), rtol=1e-5, atol=1e-5)
    return {"native": step_native, "homeostat": step_ours}


def main() -> None:
    """Print a row for every shape, without activation and with ReLU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| shape | activation | native, ms | homeostat, ms | ratio |\n|---|---|---|---|---|")
    for shape in SHAPES:
        for relu in (False, True):
            times = interleave(pair(shape, relu), arguments.rounds)
            theirs, mine = times["native"].p50, times["homeostat"].p50
            size, word = "x".join(map(str, shape)), "relu" if relu else "none"
            print(f"| {size} | {word} | {theirs:.3f} | {mine:.3f} | {mine / theirs:.2f} |")


if __name__ == "__main__":
    main()
