"""Bytes that each way of computing a batch norm moves through the GPU's memory: one place.

They are counted in S, the bytes of one tensor of the input's shape, in 16 bits. What each channel
has (mean, variance, gamma, beta, partial sums) is left out: it is far less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from homeostat.report.bench.floor import floor_of

MASK = "mask"
"""A tensor of a byte an element, half of S."""
WORKS = ("inference", "forward", "forward+backward")
FORMS = ("plain", "relu", "add+relu")


class Pass(NamedTuple):
    """One pass over tensors.

    Args:
        reads: tensors that it reads.
        writes: tensors that it writes.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()


class Path(NamedTuple):
    """A way of computing, as its passes over tensors for each form.

    Args:
        inference: with given statistics.
        forward: with the batch's own.
        backward: of that.
    """

    inference: Mapping[str, tuple[Pass, ...]]
    forward: Mapping[str, tuple[Pass, ...]]
    backward: Mapping[str, tuple[Pass, ...]]


_STATISTICS = Pass(("x",))
_NORM = Pass(("x",), ("y",))
_NORM_ADD = Pass(("x", "residual"), ("y",))
_ADD = Pass(("y", "residual"), ("sum",))
_RELU = Pass(("sum",), ("z",))
# Sums of g and of g * x_hat, then dx. The sign of y is computed again from x.
_SUMS, _INPUT_GRADIENT = Pass(("x", "dy")), Pass(("x", "dy"), ("dx",))
# With a residual the sign needs y, and g is the residual's gradient: written once, read once.
_SUMS_MASKED, _INPUT_GRADIENT_MASKED = Pass(("x", "dy", "y"), ("g",)), Pass(("x", "g"), ("dx",))

_STREAMING = Path(
    inference={"plain": (_NORM,), "relu": (_NORM,), "add+relu": (_NORM_ADD,)},
    forward={
        "plain": (_STATISTICS, _NORM),
        "relu": (_STATISTICS, _NORM),
        "add+relu": (_STATISTICS, _NORM_ADD),
    },
    backward={
        "plain": (_SUMS, _INPUT_GRADIENT),
        "relu": (_SUMS, _INPUT_GRADIENT),
        "add+relu": (_SUMS_MASKED, _INPUT_GRADIENT_MASKED),
    },
)
_ON_CHIP = Path(
    inference=_STREAMING.inference,
    # The statistics come from the very tile that is then written.
    forward=_STREAMING.inference,
    backward={
        "plain": (_INPUT_GRADIENT,),
        "relu": (_INPUT_GRADIENT,),
        "add+relu": (Pass(("x", "dy", "y"), ("dx", "g")),),
    },
)
_RELU_BACKWARD = Pass(("dy", "z"), ("g",))
_EAGER = Path(
    inference={"plain": (_NORM,), "relu": (_NORM, _RELU), "add+relu": (_NORM, _ADD, _RELU)},
    forward={
        "plain": (_STATISTICS, _NORM),
        "relu": (_STATISTICS, _NORM, _RELU),
        "add+relu": (_STATISTICS, _NORM, _ADD, _RELU),
    },
    # The addition hands its gradient to both sides and moves nothing.
    backward={
        "plain": (_SUMS, _INPUT_GRADIENT),
        "relu": (_RELU_BACKWARD, _SUMS, _INPUT_GRADIENT),
        "add+relu": (_RELU_BACKWARD, _SUMS, _INPUT_GRADIENT),
    },
)

# What PyTorch 2.11 generates for an H100 where channels come last: the sign of y is kept as a mask
# of a byte an element; with a residual a pass of its own turns dy into g.
_NORM_MASK, _NORM_ADD_MASK = Pass(("x",), ("y", MASK)), Pass(("x", "residual"), ("y", MASK))
_GENERATED = Path(
    inference=_STREAMING.inference,
    forward={
        "plain": (_STATISTICS, _NORM),
        "relu": (_STATISTICS, _NORM_MASK),
        "add+relu": (_STATISTICS, _NORM_ADD_MASK),
    },
    backward={
        "plain": (_SUMS, _INPUT_GRADIENT),
        "relu": (Pass(("x", "dy", MASK)), Pass(("x", "dy", MASK), ("dx",))),
        "add+relu": (Pass(("dy", MASK), ("g",)), Pass(("x", "g")), Pass(("x", "g"), ("dx",))),
    },
)

HOMEOSTAT, HOMEOSTAT_ON_CHIP = "Homeostat, streaming", "Homeostat, on chip"
EAGER, COMPILED = "PyTorch eager (native, cuDNN)", "torch.compile"
PATHS: Mapping[str, Path] = {
    HOMEOSTAT: _STREAMING,
    HOMEOSTAT_ON_CHIP: _ON_CHIP,
    EAGER: _EAGER,
    COMPILED: _GENERATED,
}
"""The paths of the documentation's table."""


def moved(path: str, work: str, form: str) -> float:
    """Return how many S a path moves.

    Args:
        path: a name of `PATHS`.
        work: one of `WORKS`.
        form: one of `FORMS`.

    Example:
        >>> moved(HOMEOSTAT, "forward+backward", "relu"), moved(EAGER, "forward+backward", "relu")
        (8.0, 13.0)
    """
    chosen = PATHS[path]
    if work == "inference":
        return _count(chosen.inference[form])
    forward = _count(chosen.forward[form])
    return forward if work == "forward" else forward + _count(chosen.backward[form])


def _count(passes: tuple[Pass, ...]) -> float:
    tensors = (tensor for each in passes for tensor in (*each.reads, *each.writes))
    return sum(0.5 if tensor == MASK else 1.0 for tensor in tensors)


def streaming_floor(work: str, form: str) -> int:
    """Return the fewest S that a streaming implementation moves: what fractions are measured by.

    It is that of `homeostat bench`, twice its copies: with a residual the sign of y counts as free,
    as a mask of one bit an element would nearly be.

    Example:
        >>> streaming_floor("forward", "plain"), streaming_floor("forward+backward", "add+relu")
        (3, 10)
    """
    return round(2 * floor_of(work, form))


def markdown() -> str:
    """Return the table of docs/gpu.md: S moved by each path."""
    head = ("work", "fused", "the streaming floor", *PATHS)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for work in WORKS:
        for form in FORMS:
            cells = [streaming_floor(work, form), *(moved(path, work, form) for path in PATHS)]
            lines.append(f"| {work} | {form} | {' | '.join(f'{cell:g}' for cell in cells)} |")
    return "\n".join(lines)
