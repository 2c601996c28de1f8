"""What `fold` did to each batch norm, why it did not fold the others, and what that changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class NormFold:
    """What became of one batch norm.

    Args:
        name: its name in the model.
        kind: its class.
        into: the layer that does its work now; None where it was not folded.
        side: whether that layer is ``"before"`` or ``"after"`` it.
        remains: what stays in its place, such as "relu"; "" for nothing.
        operations: multiplications and additions saved for each example; None if not known.
        reason: why it was not folded; "" where it was.
    """

    name: str
    kind: str
    into: str | None = None
    side: str = ""
    remains: str = ""
    operations: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class FoldReport:
    """What `fold` did to a model.

    Errors are the largest difference of an output from the original's, relative to the largest
    number in the original's.

    Args:
        norms: one record for each batch norm, in the order of the network.
        random_error: error on random inputs.
        given_error: error on the given inputs; None without any.
        precision: what both were computed in, ``"float64"`` or the model's own.
        parameters_before: numbers that the original holds, statistics included.
        parameters_after: numbers that the folded model holds.
        seconds_before: median time of one inference of the original; None if not measured.
        seconds_after: median time of one inference of the folded model.
        examples: in the batch that was timed.
        notes: what else there is to know.

    Example:
        >>> one = NormFold("bn", "BatchNorm2d", "conv", "before", operations=800)
        >>> print(FoldReport((one, NormFold("bn2", "BatchNorm2d", reason="ReLU is before it"))))
        1 of 2 batch norms folded
        bn   BatchNorm2d  into conv, before it
        bn2  BatchNorm2d  not folded: ReLU is before it
        largest relative error, computed in float64: 0 on random inputs
        saved: 0 of 0 parameters, 800 multiplications and additions for each example
    """

    norms: tuple[NormFold, ...]
    random_error: float = 0.0
    given_error: float | None = None
    precision: str = "float64"
    parameters_before: int = 0
    parameters_after: int = 0
    seconds_before: float | None = None
    seconds_after: float | None = None
    examples: int = 0
    notes: tuple[str, ...] = ()

    @property
    def folded(self) -> tuple[NormFold, ...]:
        """The records of the norms that were folded."""
        return tuple(norm for norm in self.norms if norm.into is not None)

    @property
    def left(self) -> tuple[NormFold, ...]:
        """The records of the norms that were not folded."""
        return tuple(norm for norm in self.norms if norm.into is None)

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max(self.random_error, self.given_error or 0.0)

    @property
    def parameters(self) -> int:
        """How many parameters were saved."""
        return self.parameters_before - self.parameters_after

    @property
    def operations(self) -> int:
        """How many multiplications and additions are known to be saved for each example."""
        return sum(norm.operations or 0 for norm in self.folded)

    def __getitem__(self, name: str) -> NormFold:
        for norm in self.norms:
            if norm.name == name:
                return norm
        raise KeyError(f"no batch norm {name!r}: there are {[norm.name for norm in self.norms]}")

    def __str__(self) -> str:
        lines = [f"{len(self.folded)} of {len(self.norms)} batch norms folded"]
        widths = [max((len(row[i]) for row in map(_row, self.norms)), default=0) for i in range(2)]
        for name, kind, outcome in map(_row, self.norms):
            lines.append(f"{name:{widths[0]}}  {kind:{widths[1]}}  {outcome}")
        if self.folded:
            lines += [self._errors(), self._savings(), *self._times()]
        return "\n".join((*lines, *map(_shown, self.notes)))

    def _errors(self) -> str:
        given = "" if self.given_error is None else f", {self.given_error:.2g} on the given ones"
        return (
            f"largest relative error, computed in {self.precision}: {self.random_error:.2g} on "
            f"random inputs{given}"
        )

    def _savings(self) -> str:
        unknown = sum(norm.operations is None for norm in self.folded)
        more = f", not counting {unknown} of the norms, whose sizes vary" if unknown else ""
        return (
            f"saved: {self.parameters:,} of {self.parameters_before:,} parameters, "
            f"{self.operations:,} multiplications and additions for each example{more}"
        )

    def _times(self) -> list[str]:
        if self.seconds_before is None or self.seconds_after is None:
            return []
        return [
            f"inference of {self.examples} examples: {self.seconds_before * 1e3:.3g} ms before, "
            f"{self.seconds_after * 1e3:.3g} ms after "
            f"({self.seconds_before / self.seconds_after:.2f} times as fast)"
        ]


class Folded(NamedTuple):
    """What `fold` returns: a new model, and the report."""

    model: Any
    report: FoldReport


def _row(norm: NormFold) -> tuple[str, str, str]:
    if norm.into is None:
        outcome = f"not folded: {norm.reason}"
    else:
        outcome = f"into {norm.into}, {norm.side} it"
        outcome += f"; {norm.remains} stays" if norm.remains else ""
    return _shown(norm.name or "(model)"), _shown(norm.kind), _shown(outcome)


def _shown(text: str) -> str:
    """Return a text without what a terminal would obey: names come from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
