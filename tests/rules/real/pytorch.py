"""PyTorch modules on which a rule speaks or does not, made as it happens to people."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.utils import prune

from homeostat.torch import BatchNorm2d
from tests.rules.real.table import Example

Batches = list[tuple[torch.Tensor, torch.Tensor]]
SIZE = 32


@cache
def batches(number: int = 20, shift: float = 2.0, scale: float = 1.5, size: int = SIZE) -> Batches:
    """Return images (examples, 3, 8, 8) of four classes, each with a pattern, and their classes."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 3, 8, 8, generator=generator)
    found = []
    for _ in range(number):
        classes = torch.randint(4, (size,), generator=generator)
        noise = torch.randn(size, 3, 8, 8, generator=generator)
        found.append((shift + scale * (patterns[classes] + noise), classes))
    return found


def network(norm: Callable[..., nn.Module] = nn.BatchNorm2d, **options: Any) -> nn.Sequential:
    """Return two convolutions with norms, called "1" and "4"."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8, **options), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8, **options), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def behind(*layers: nn.Module) -> nn.Sequential:
    """Return a network whose first layers are given, for images of `batches`."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def train(
    net: nn.Module,
    steps: int = 60,
    data: Batches | None = None,
    call: Callable[[torch.Tensor], torch.Tensor] | None = None,
    **options: float,
) -> nn.Module:
    net.train()
    data = data or batches()
    optimizer = torch.optim.SGD(net.parameters(), **{"lr": 0.05, **options})
    for step in range(steps):
        images, classes = data[step % len(data)]
        optimizer.zero_grad()
        nn.functional.cross_entropy((call or net)(images), classes).backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def update(net: nn.Module, inputs: list[torch.Tensor], times: int = 1) -> nn.Module:
    """Move the statistics of a network, and nothing else."""
    net.train()
    for _ in range(times):
        for each in inputs:
            net(each)
    return net.eval()


@cache
def _healthy() -> nn.Module:
    return train(network(), 80)


def healthy() -> nn.Module:
    return copy.deepcopy(_healthy())


def fine(**fields: Any) -> Callable[[], Example]:
    return lambda: Example(healthy(), **fields)


def images(number: int = 20, shift: float = 2.0, scale: float = 1.5) -> list[torch.Tensor]:
    return [each for each, _ in batches(number, shift, scale)]


def forgetful() -> nn.Module:
    """Train by functional calls, and throw away the buffers that they return."""
    net = network()

    def call(x: torch.Tensor) -> torch.Tensor:
        state = {name: buffer.clone() for name, buffer in net.named_buffers()}
        return torch.func.functional_call(net, {**dict(net.named_parameters()), **state}, (x,))

    return train(net, 80, call=call)


def nan_batch(net: nn.Module) -> nn.Module:
    broken = images(1)[0].clone()
    broken[0, :, 0, 0] = torch.nan
    return update(net, [broken])


@torch.no_grad()
def rounded_variances() -> nn.Module:
    """Compute E[x²] − E[x]² in float32, of inputs far from 0."""
    net = behind(nn.BatchNorm2d(8))
    x = torch.from_numpy(np.random.default_rng(0).normal(3000, 0.01, (32, 8, 8, 8))).float()
    norm: Any = net[0]
    norm.running_mean.copy_(x.mean((0, 2, 3)))
    norm.running_var.copy_((x * x).mean((0, 2, 3)) - norm.running_mean**2)
    negative = norm.running_var < 0
    assert negative.any()
    return net.eval()


def dead_units(**options: Any) -> nn.Module:
    """A bias that went far below 0 in front of ReLU: what comes out is 0 everywhere."""
    net = behind(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8, **options))
    with torch.no_grad():
        net[0].bias[:4] = -1000.0  # type: ignore[index]
    return update(net, images(), 10)


def without_epsilon() -> nn.Module:
    # The cumulative average of a constant has no variance from the first batch on.
    net: Any = dead_units(momentum=None)
    net[2].eps = 0.0
    return net


@torch.no_grad()
def pruned() -> nn.Module:
    """Prune half of the channels by the size of gamma."""
    net = healthy()
    weight: Any = net[1].weight  # type: ignore[index]
    prune.l1_unstructured(net[1], "weight", amount=0.5)  # type: ignore[index]
    prune.remove(net[1], "weight")  # type: ignore[index]
    assert weight.shape == (8,)
    return net


def half_frozen(both: bool) -> nn.Module:
    net: Any = healthy().train()
    net[1].requires_grad_(False)
    if both:
        net[1].eval()
    return net


def one_in_training() -> nn.Module:
    net: Any = healthy()
    net[4].train()
    return net


def two_epsilons(second: float) -> nn.Module:
    net: Any = network()
    net[4].eps = second
    return train(net, 80)


def small_inputs(scale: float) -> nn.Module:
    channels = [each.repeat(1, 3, 1, 1)[:, :8] * scale for each in images(shift=0.0)]
    return update(behind(nn.BatchNorm2d(8)), channels, 10)


def far_inputs(mean: float) -> nn.Module:
    channels = [each.repeat(1, 3, 1, 1)[:, :8] + mean for each in images(shift=0.0)]
    return update(behind(nn.BatchNorm2d(8)), channels, 10)


def skipping(broken: int) -> nn.Module:
    # With zero_debias a state dict has the counters too.
    net = train(network(BatchNorm2d, zero_debias=True), 80)
    for _ in range(broken):
        nan_batch(net)
    return net


class Shared(nn.Module):
    """A convolution and a norm on two scales of an image, as in a detection head."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(norms))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = nn.functional.avg_pool2d(x, 2)
        one, other = self.norms[0](self.conv(x)), self.norms[-1](self.conv(small))
        return torch.relu(one).mean((2, 3)) + torch.relu(other).mean((2, 3))


def shared(norms: int) -> nn.Module:
    torch.manual_seed(0)
    return update(Shared(norms), images())


def in_front(*layers: nn.Module, **options: Any) -> nn.Module:
    """Return a network with layers in front of its norm, whose statistics have moved."""
    net = behind(*layers, nn.BatchNorm2d(8, **options), nn.ReLU())
    return update(net, images())


def at_the_end(last: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4)]
    return update(nn.Sequential(*layers, *([] if last else [nn.ReLU(), nn.Linear(4, 4)])), images())


def dense() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    return update(nn.Sequential(*layers), [each[:8] for each in images()])


def small_batches(count: int = 400) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 32, generator=generator) * 2 + 1 for _ in range(count)]


@torch.no_grad()
def other_variance(translated: bool) -> nn.Module:
    """Copy the statistics of a norm of Keras's kind, which keeps population variances."""
    pooled = small_batches()
    net = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 4)).eval()
    norm: Any = net[0]
    norm.running_mean.copy_(torch.stack([each.mean(0) for each in pooled]).mean(0))
    kind = 1 if translated else 0
    norm.running_var.copy_(torch.stack([each.var(0, correction=kind) for each in pooled]).mean(0))
    return net


def parallel(norm: Callable[..., nn.Module], **options: Any) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network(norm, **options))


@contextmanager
def one_thread() -> Iterator[None]:
    """Have PyTorch's threads not wait for each other, or for TensorFlow's, on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_process() -> Iterator[None]:
    """Be the only replica of a group of processes."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def halved(epsilon: float) -> nn.Module:
    return train(network(eps=epsilon), 80).half()


BOTH: tuple[str, str] = ("1", "4")
SHIFTED = batches(20, 6.0)
LARGER = batches(20, 8.0, 6.0)
Pair = tuple[Callable[[], Example], Callable[[], Example]]

CASES: Mapping[str, Pair] = {
    "BN001": (lambda: Example(forgetful(), BOTH, "error"), fine()),
    "BN002": (lambda: Example(nan_batch(healthy()), BOTH, "error"), fine()),
    "BN003": (lambda: Example(rounded_variances(), ("0",), "error"), fine()),
    "BN004": (
        lambda: Example(dead_units(), ("2",)),
        lambda: Example(in_front(nn.Conv2d(3, 8, 3), nn.ReLU())),
    ),
    "BN005": (lambda: Example(far_inputs(5e4), ("0",)), lambda: Example(far_inputs(50))),
    "BN010": (lambda: Example(train(network(), 4, lr=1e30), BOTH, "error"), fine()),
    "BN011": (lambda: Example(pruned(), ("1",)), fine()),
    "BN012": (lambda: Example(train(network(), 15, weight_decay=5.0, lr=0.1), BOTH), fine()),
    "BN013": (lambda: Example(without_epsilon(), ("2",), "error"), fine()),
    "BN014": (lambda: Example(small_inputs(1e-3), ("0",)), lambda: Example(small_inputs(0.1))),
    "BN015": (lambda: Example(two_epsilons(1e-3), ("4",), "info"), fine()),
    "BN020": (lambda: Example(train(network(momentum=0.001), 10), BOTH, "error"), fine()),
    "BN021": (lambda: Example(train(network(momentum=0.5)), BOTH), fine()),
    "BN022": (lambda: Example(train(network(momentum=0.9)), BOTH), fine()),
    "BN023": (lambda: Example(skipping(3), BOTH), lambda: Example(skipping(0))),
    "BN024": (lambda: Example(half_frozen(False), ("1",)), lambda: Example(half_frozen(True))),
    "BN025": (lambda: Example(one_in_training(), ("4",)), fine()),
    "BN026": (
        lambda: Example(healthy(), BOTH, batch_size=2),
        lambda: Example(healthy(), batch_size=8, data=batches()),
    ),
    "BN027": (
        lambda: Example(parallel(nn.BatchNorm2d), BOTH),
        lambda: Example(parallel(BatchNorm2d, synchronized=True)),
    ),
    "BN030": (lambda: Example(in_front(nn.Conv2d(3, 8, 3)), ("1",), "info"), fine()),
    "BN031": (lambda: Example(in_front(nn.Conv2d(3, 8, 3), nn.ReLU()), ("2",), "info"), fine()),
    "BN032": (
        lambda: Example(in_front(nn.Dropout(0.5), nn.Conv2d(3, 8, 3)).train(), ("2",)),
        lambda: Example(behind(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)).train()),
    ),
    "BN033": (
        lambda: Example(at_the_end(True), ("2",), "info"), lambda: Example(at_the_end(False)),
    ),
    "BN034": (lambda: Example(shared(1), ("norms.0",)), lambda: Example(shared(2))),
    "BN035": (
        lambda: Example(healthy(), (None,), "info"),
        lambda: Example(in_front(nn.Conv2d(3, 8, 3), nn.ReLU())),
    ),
    "BN040": (lambda: Example(healthy(), ("1",), "error", SHIFTED), fine(data=batches())),
    "BN041": (lambda: Example(healthy(), ("1",), "error", LARGER), fine(data=batches())),
    "BN042": (
        lambda: Example(other_variance(False), ("0",), data=small_batches()),
        lambda: Example(other_variance(True), data=small_batches()),
    ),
    "BN043": (
        lambda: Example(healthy(), (None,), "error", SHIFTED), fine(data=batches()),
    ),
    "BN044": (lambda: Example(forgetful(), (None,), "error", batches()), fine(data=batches())),
}  # fmt: skip
"""For each rule a model on which it speaks, and one on which it does not."""

MORE: Mapping[str, Callable[[], Example]] = {
    "BN002": lambda: Example(nan_batch(train(network(BatchNorm2d)))),
    "BN013": lambda: Example(halved(1e-3)),
    "BN020": lambda: Example(train(network(BatchNorm2d, momentum=0.001, zero_debias=True), 10)),
    "BN026": lambda: Example(dense(), ("2",), data=[each[:8] for each in images()], batch_size=8),
}
"""Live modules beside these: those of Homeostat that are spared, and other causes."""
