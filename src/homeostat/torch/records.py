"""What `convert` did to each batch norm, and why it did not do more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class NormRecord:
    """What `convert` did to one batch norm.

    Args:
        name: its name in the model, the first of them where it has several.
        kind: the class it was of.
        replaced: whether it is Homeostat's now.
        reason: why it is not; "" where it is.
        activation: the activation that moved into it, or None.
        residual: whether an addition moved into it.
        not_fused: why no more moved into it; "" where nothing was left to move.
    """

    name: str
    kind: str
    replaced: bool
    reason: str = ""
    activation: Any = None
    residual: bool = False
    not_fused: str = ""

    @property
    def fused(self) -> str:
        """What moved into it, in words; "" for nothing."""
        activation = self.activation
        if isinstance(activation, dict):
            activation = f"{activation['name']}({activation['negative_slope']:g})"
        return " + ".join(filter(None, ("add" if self.residual else "", activation)))


@dataclass(frozen=True)
class ConversionReport:
    """One record for each batch norm of a model, in the model's order.

    Example:
        >>> print(ConversionReport((NormRecord("1", "BatchNorm2d", True, activation="relu"),)))
        1 of 1 batch norms replaced, 1 fused
        name  was          now        fused  not fused because
        1     BatchNorm2d  homeostat  relu
    """

    norms: tuple[NormRecord, ...]

    @property
    def replaced(self) -> tuple[NormRecord, ...]:
        """The records of the norms that are Homeostat's now."""
        return tuple(record for record in self.norms if record.replaced)

    @property
    def fused(self) -> tuple[NormRecord, ...]:
        """The records of the norms into which something moved."""
        return tuple(record for record in self.norms if record.fused)

    def __getitem__(self, name: str) -> NormRecord:
        for record in self.norms:
            if record.name == name:
                return record
        raise KeyError(f"no batch norm {name!r}: there are {[r.name for r in self.norms]}")

    def __str__(self) -> str:
        replaced, fused = len(self.replaced), len(self.fused)
        summary = f"{replaced} of {len(self.norms)} batch norms replaced, {fused} fused"
        if not self.norms:
            return summary
        rows = [("name", "was", "now", "fused", "not fused because")]
        for record in self.norms:
            now = "homeostat" if record.replaced else f"as it was: {record.reason}"
            rows.append(
                (record.name or "(model)", record.kind, now, record.fused, record.not_fused)
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join((summary, *lines))


class Converted(NamedTuple):
    """What `convert` returns: the model that it was given, and the report."""

    model: Any
    report: ConversionReport
