"""ResNet-50's training step with PyTorch's batch norms and with Homeostat's."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.clock import Candidate, Clock, prepare, take_turns
from benchmarks.gpu.device import free_memory, peak_of
from benchmarks.gpu.resnet import resnet50
from benchmarks.gpu.rows import FAILED, NOT_MEASURED, WRONG, Row, timed
from benchmarks.gpu.times import first_line
from homeostat.bench.torch_saved import saved_bytes
from homeostat.torch import convert

Tensor = torch.Tensor

NATIVE, OURS, AGAIN = "torch", "homeostat", "again"
COMPILED, OURS_COMPILED = "torch.compile", "homeostat compiled"
COLUMNS = (NATIVE, OURS, AGAIN)
COMPILING = (COMPILED, OURS_COMPILED)
# What compiling the network's step takes; what does not fit any more is not begun.
COMPILE_SECONDS = {"cuda": 100.0, "cpu": 1.0}
NETWORK_SECONDS = {"cuda": 45.0, "cpu": 1.0}
# Steps of a sample.
STEPS = 3
# Through a deep network rounding grows, and flips a ReLU here and there, to gradients that are off
# by hundredths: how much further off than PyTorch's own, and what is always allowed.
TIMES_NATIVE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 3.0, 1e-3, 1e-3


class Size(NamedTuple):
    """What is trained.

    Args:
        name: of the network.
        build: makes it.
        batch: images in a step; half as many, and so on, where memory does not suffice.
        image: height and width.
        checked: images of the step that is held to float64, and their height and width.
        rounds: samples of each column.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int
    image: int
    checked: tuple[int, int]
    rounds: int


SIZES = {
    "cuda": Size("ResNet-50, 224x224", resnet50, 256, 224, (16, 64), 8),
    "cpu": Size("one stage, 16x16", lambda: resnet50(10, (1,)), 4, 16, (4, 16), 2),
}


class Step:
    """One network and its gradient descent on one batch of random images, under autocast.

    Args:
        model: in training mode, channels last.
        images: channels last.
        labels: their classes.
    """

    def __init__(self, model: Any, images: Tensor, labels: Tensor) -> None:
        self._model, self._images, self._labels = model, images, labels
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.SGD(self._parameters, 0.1, momentum=0.9)

    def run(self) -> None:
        """Take one step."""
        self._optimizer.zero_grad(set_to_none=True)
        self._loss().backward()
        self._optimizer.step()

    def saved(self) -> int:
        """Return the bytes that a step keeps for its backward, weights apart."""
        return saved_bytes(self._loss, self._parameters)

    def _loss(self) -> Tensor:
        with torch.autocast(self._images.device.type, torch.bfloat16):
            return nn.functional.cross_entropy(self._model(self._images), self._labels)


def measure_network(device: str, clock: Clock, deadline: Deadline, backend: str) -> Iterator[Row]:
    """Yield the rows of a training step of every column; what does not fit has rows that say so."""
    size = SIZES[device]
    named: Row = {"network": size.name}
    everything = (*COLUMNS, *COMPILING)
    if not deadline.allows(NETWORK_SECONDS[device]):
        yield from _unmeasured(named, everything, NOT_MEASURED, "no time was left")
        return
    native, ours = _models(size, device)
    wrong = fault(native, ours, size, device)
    if wrong is not None:
        yield from _unmeasured(named, everything, WRONG, wrong)
        return
    torch.backends.cudnn.benchmark = True
    try:
        batch, steps = _fit(native, ours, size, device)
        if not steps:
            yield from _unmeasured(named, everything, FAILED, "out of memory")
            return
        named["batch"] = batch
        yield from _timed_rows(named, steps, size, device, clock)
        yield from _compiled_rows(
            named, native, ours, steps, size, device, clock, deadline, backend
        )
    finally:
        torch.backends.cudnn.benchmark = False


def _unmeasured(named: Row, names: tuple[str, ...], state: str, note: str) -> Iterator[Row]:
    for name in names:
        yield {**named, "column": name, "state": state, "note": note}


def _models(size: Size, device: str) -> tuple[nn.Module, nn.Module]:
    """Return the network as it is written, and a converted copy."""
    torch.manual_seed(0)
    native: Any = size.build().to(device=device, memory_format=torch.channels_last)
    return native, convert(copy.deepcopy(native)).model


def fault(native: nn.Module, ours: nn.Module, size: Size, device: str) -> str | None:
    """Return what is wrong with the converted network's loss or gradients in float32, or None."""
    count, image = size.checked
    images, labels = _data(count, image, device)
    # Copies, so that the statistics of those that are timed do not move.
    wanted = _gradients(copy.deepcopy(native).double(), images.double(), labels)
    with _exact_products():
        found, theirs = (_gradients(copy.deepcopy(m), images, labels) for m in (ours, native))
    if not abs(found[0] - wanted[0]) <= LOSS_TOLERANCE * abs(wanted[0]):
        return f"loss {found[0]:.6g} instead of {wanted[0]:.6g}"
    norm = torch.linalg.vector_norm(wanted[1])
    mine, native_off = (torch.linalg.vector_norm(g - wanted[1]) / norm for _, g in (found, theirs))
    if mine <= GRADIENT_TOLERANCE + TIMES_NATIVE * native_off:
        return None
    return f"error {float(mine):.1e} in the gradients, PyTorch's own {float(native_off):.1e}"


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Have convolutions multiply float32 as it is, not as TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _data(count: int, image: int, device: str) -> tuple[Tensor, Tensor]:
    draw = torch.Generator(device).manual_seed(1)
    images = torch.randn((count, 3, image, image), generator=draw, device=device)
    labels = torch.randint(0, 10, (count,), generator=draw, device=device)
    return images.to(memory_format=torch.channels_last), labels


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    loss = nn.functional.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([gradient.double().flatten() for gradient in gradients])


def _fit(
    native: nn.Module, ours: nn.Module, size: Size, device: str
) -> tuple[int, dict[str, Step]]:
    """Return the largest batch, of halves, that memory suffices for, and the steps."""
    batch = size.batch
    while batch:
        images, labels = _data(batch, size.image, device)
        steps = {NATIVE: Step(native, images, labels), OURS: Step(ours, images, labels)}
        try:
            for step in steps.values():
                step.run()
        except torch.OutOfMemoryError:
            del images, labels, steps
            free_memory(device)
            batch //= 2
            continue
        return batch, steps
    return 0, {}


def _timed_rows(
    named: Row, steps: dict[str, Step], size: Size, device: str, clock: Clock
) -> Iterator[Row]:
    candidates = {name: Candidate(step.run) for name, step in steps.items()}
    candidates[AGAIN] = Candidate(steps[OURS].run)
    samples = _take_turns(clock, candidates, size.rounds)
    for name in COLUMNS:
        step = steps[OURS if name == AGAIN else name]
        yield {
            **named, "column": name, **_speed(named, samples[name]),
            "saved_bytes": step.saved(), "peak_bytes": _peak(device, step),
        }  # fmt: skip


def _take_turns(
    clock: Clock, candidates: Mapping[str, Candidate], rounds: int
) -> dict[str, list[float]]:
    """Return the times from step to step, as in training: what the host takes counts."""
    prepare(clock, candidates)
    return take_turns(functools.partial(clock.follow, calls=STEPS), candidates, rounds)


def _speed(named: Row, samples: list[float]) -> Row:
    row = timed(samples)
    return row | {"images_per_s": round(1e3 * named["batch"] / row["p50_ms"], 1)}


def _peak(device: str, step: Step) -> int | str:
    peak = peak_of(device, step.run)
    return "" if peak is None else peak


def _compiled_rows(
    named: Row,
    native: nn.Module,
    ours: nn.Module,
    steps: dict[str, Step],
    size: Size,
    device: str,
    clock: Clock,
    deadline: Deadline,
    backend: str,
) -> Iterator[Row]:
    """Yield the rows of both networks by `torch.compile`, as far as time is left."""
    images, labels = _data(named["batch"], size.image, device)
    for name, model in ((COMPILED, native), (OURS_COMPILED, ours)):
        if not deadline.allows(COMPILE_SECONDS[device]):
            left = f"{deadline.left():.0f} s were left, {COMPILE_SECONDS[device]:.0f} wanted"
            yield from _unmeasured(named, (name,), NOT_MEASURED, left)
            continue
        try:
            torch.compiler.reset()
            compiled = torch.compile(model, backend=backend, dynamic=False)
            step = Step(compiled, images, labels)
            step.run()
            candidates = {name: Candidate(step.run), NATIVE: Candidate(steps[NATIVE].run)}
            samples = _take_turns(clock, candidates, size.rounds)
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            note = f"{type(error).__name__}: {first_line(error)}"
            yield from _unmeasured(named, (name,), FAILED, note)
            continue
        row = {**named, "column": name, **_speed(named, samples[name])}
        yield row | {"peak_bytes": _peak(device, step)}


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows as a table: images per second and memory."""
    native = next((r for r in rows if r["column"] == NATIVE and r["images_per_s"]), None)
    lines = [
        "| network | batch | batch norms | images/s | ratio | kept, MiB | peak, MiB |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        cells = [row["network"], row["batch"], row["column"]]
        if row["images_per_s"]:
            ratio = f"{float(row['images_per_s']) / float(native['images_per_s']):.2f}x"
            cells += [row["images_per_s"], ratio if native else ""]
            cells += [_mebibytes(row["saved_bytes"]), _mebibytes(row["peak_bytes"])]
        else:
            cells += [f"{row['state']}: {row['note']}", "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mebibytes(number: str) -> str:
    return f"{int(number) / 2**20:.0f}" if number else ""
