"""The columns of the table: what is called, in whose process, and what it needs installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from homeostat.errors import MissingExtraError, SpecError

FRAMEWORKS = ("torch", "jax", "tensorflow")
"""Each has a process of its own, and a module of its own beside this one."""

COPY, AGAIN = "copy", "again"
"""The two controls of every process: one copy of the tensor, and one of ours once more."""

TRAINED = ("torch", "homeostat.torch")
"""The columns whose batch norms whole networks are trained with."""


@dataclass(frozen=True)
class Column:
    """One candidate.

    Args:
        name: what the table calls it.
        framework: whose process it runs in.
        packages: what must be installed besides the framework.
    """

    name: str
    framework: str
    packages: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is Homeostat's."""
        return self.name.startswith("homeostat")

    @property
    def missing(self) -> str | None:
        """What is not installed, in words, or None."""
        absent = [name for name in (self.framework, *self.packages) if not _installed(name)]
        return f"not installed: {', '.join(absent)}" if absent else None


COLUMNS = (
    Column("torch", "torch"),
    Column("torch.compile", "torch"),
    Column("keras", "torch", ("keras",)),
    Column("homeostat.torch", "torch"),
    Column("homeostat.keras", "torch", ("keras",)),
    Column("flax.nnx", "jax", ("flax",)),
    Column("flax.linen", "jax", ("flax",)),
    Column("keras", "jax", ("keras",)),
    Column("homeostat.jax", "jax"),
    Column("homeostat.keras", "jax", ("keras",)),
    Column("tf fused", "tensorflow"),
    Column("tf-keras", "tensorflow", ("tf_keras",)),
    Column("keras", "tensorflow", ("keras",)),
    Column("homeostat.tensorflow", "tensorflow"),
    Column("homeostat.keras", "tensorflow", ("keras",)),
)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def select_frameworks(wanted: Iterable[str]) -> tuple[str, ...]:
    """Return those of the frameworks that are installed.

    Args:
        wanted: names; none for all.

    Raises:
        SpecError: a name is not a framework's.
        MissingExtraError: none of them is installed.
    """
    wanted = tuple(wanted) or FRAMEWORKS
    for name in wanted:
        if name not in FRAMEWORKS:
            raise SpecError(f"framework {name!r} is not known: expected {', '.join(FRAMEWORKS)}.")
    found = tuple(name for name in FRAMEWORKS if name in wanted and _installed(name))
    if not found:
        raise MissingExtraError(
            f"nothing to measure: {' and '.join(wanted)} not installed. Expected the extra of at "
            f"least one. Run: pip install 'homeostat[{wanted[0]}]'"
        )
    return found


def select_columns(framework: str, wanted: Iterable[str] = ()) -> tuple[Column, ...]:
    """Return a framework's columns, installed or not.

    Args:
        framework: whose process.
        wanted: names; none for all.

    Raises:
        SpecError: a name is no column's, in no framework.
    """
    wanted = tuple(wanted)
    known = {column.name for column in COLUMNS}
    for name in wanted:
        if name not in known:
            raise SpecError(f"column {name!r} is not known: expected {', '.join(sorted(known))}.")
    return tuple(
        column
        for column in COLUMNS
        if column.framework == framework and (not wanted or column.name in wanted)
    )
