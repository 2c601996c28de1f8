"""What an audit looks for: the rules that are asked, their thresholds, and when it fails."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self, get_args

from homeostat.errors import DataError, SpecError
from homeostat.rules.findings import SEVERITIES, RuleInfo, Severity
from homeostat.rules.thresholds import Thresholds

FailOn = Literal["error", "warning", "info", "never"]
FILE = "pyproject.toml"
TABLE = "tool.homeostat"


@dataclass(frozen=True)
class Settings:
    """The settings of an audit.

    A rule is chosen by its identifier, its name, or the start of its identifier. What fits more
    closely counts: with ``select=("BN001",)`` and ``ignore=("BN0",)``, BN001 is asked. Of two that
    fit alike, ``ignore`` counts.

    Args:
        select: rules to ask.
        ignore: rules not to ask.
        fail_on: the least severity at which an audit fails; ``"never"`` for none.
        batch_size: examples in a training step on each replica; None if not known.
        thresholds: from where on rules speak.
        per_norm_ignores: for patterns of norms' names (``*``, ``?`` and ``[...]``), the rules whose
            findings there are left out.

    Raises:
        SpecError: a value is not valid.

    Example:
        >>> Settings(batch_size=32).fails("warning")
        False
    """

    select: tuple[str, ...] = ("BN",)
    ignore: tuple[str, ...] = ()
    fail_on: FailOn = "error"
    batch_size: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    per_norm_ignores: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )

    def __post_init__(self) -> None:
        if self.fail_on not in get_args(FailOn):
            raise SpecError(
                f"fail-on={self.fail_on!r} is not known: expected one of {get_args(FailOn)}. "
                "Choose one of these."
            )
        size: Any = self.batch_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise SpecError(
                f"batch-size={size!r} is not valid: expected a whole number, at least 1. Give the "
                "examples in a training step on each replica."
            )

    def asks(self, rule: RuleInfo) -> bool:
        """Return whether a rule is to be asked."""
        return _closeness(self.select, rule) > _closeness(self.ignore, rule)

    def ignores(self, rule: RuleInfo, norm: str | None) -> bool:
        """Return whether a rule's findings at a norm are left out."""
        return norm is not None and any(
            fnmatchcase(norm, pattern) and _closeness(names, rule) > 0
            for pattern, names in self.per_norm_ignores.items()
        )

    def fails(self, worst: Severity | None) -> bool:
        """Return whether an audit whose worst finding this is fails."""
        if worst is None or self.fail_on == "never":
            return False
        return SEVERITIES.index(worst) >= SEVERITIES.index(self.fail_on)

    def changed(self, **changes: Any) -> Self:
        """Return the settings with those fields changed that are not None."""
        return replace(self, **{name: new for name, new in changes.items() if new is not None})

    def check_rules(self, known: Iterable[RuleInfo]) -> None:
        """Check that everything that chooses rules chooses some.

        Raises:
            SpecError: something fits no rule.
        """
        rules = tuple(known)
        chosen = [*self.select, *self.ignore]
        for names in self.per_norm_ignores.values():
            chosen += names
        for name in chosen:
            if not any(_closeness((name,), rule) for rule in rules):
                words = [word for rule in rules for word in (rule.identifier, rule.name)]
                raise SpecError(
                    f"rule {name!r} is not known: expected an identifier, its start or a name"
                    f"{_nearest(name, words)}. See them all with `homeostat rules`."
                )


def _closeness(names: Iterable[str], rule: RuleInfo) -> int:
    """Return the length of what fits a rule's identifier best; 0 for nothing."""
    found = 0
    for name in names:
        if name == rule.name:
            return len(rule.identifier)
        if name and rule.identifier.startswith(name):
            found = max(found, len(name))
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f", such as {found[0]!r}" if found else ""


def find_settings(start: Path | None = None) -> Settings:
    """Read the settings of the nearest ``pyproject.toml`` that has ``[tool.homeostat]``.

    Args:
        start: the folder to begin in, from where on to look upward; None for the working directory.

    Returns:
        Its settings, or the defaults where no file has any.

    Raises:
        DataError: a file cannot be read.
        SpecError: a setting is not known or not valid.
    """
    folder = (start or Path.cwd()).resolve()
    for parent in (folder, *folder.parents):
        if (parent / FILE).is_file():
            found = read_settings(parent / FILE)
            if found is not None:
                return found
    return Settings()


def read_settings(path: Path) -> Settings | None:
    """Read the settings in a TOML file; None if it has no ``[tool.homeostat]``.

    Raises:
        DataError: the file cannot be read.
        SpecError: a setting is not known or not valid.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected a TOML file. Mend it, or run in another "
            "folder."
        ) from error
    tool = tables.get("tool", {})
    if not isinstance(tool, Mapping) or "homeostat" not in tool:
        return None
    try:
        return parse_settings(tool["homeostat"])
    except SpecError as error:
        raise SpecError(f"{path}, [{TABLE}]: {error}") from error


def parse_settings(table: Any) -> Settings:
    """Read settings from a table with the keys of ``[tool.homeostat]``.

    Raises:
        SpecError: a setting is not known or not valid.

    Example:
        >>> parse_settings({"ignore": ["BN03"], "thresholds": {"mean-shift": 1}}).ignore
        ('BN03',)
    """
    found: dict[str, Any] = dict(_table(table, TABLE))
    keys = [one.name.replace("_", "-") for one in fields(Settings)]
    _check_keys(found, keys, "setting")
    for name in ("select", "ignore"):
        if name in found:
            found[name] = _rules(found[name], name)
    if "thresholds" in found:
        found["thresholds"] = _thresholds(found["thresholds"])
    if "per-norm-ignores" in found:
        patterns = _table(found["per-norm-ignores"], "per-norm-ignores")
        found["per-norm-ignores"] = {
            pattern: _rules(names, f"per-norm-ignores {pattern!r}")
            for pattern, names in patterns.items()
        }
    return Settings(**{name.replace("-", "_"): value for name, value in found.items()})


def _thresholds(table: Any) -> Thresholds:
    found = _table(table, "thresholds")
    _check_keys(found, [one.name.replace("_", "-") for one in fields(Thresholds)], "threshold")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise SpecError(
                f"threshold {name}={value!r} is not valid: expected a number, at least 0. See "
                "`homeostat rules` for what each means."
            )
    return Thresholds(**{name.replace("-", "_"): float(value) for name, value in found.items()})


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(
            f"{name}={value!r} is not a table: expected keys and values. Write [{name}]."
        )
    return value


def _rules(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise SpecError(
            f"{name}={value!r} is not valid: expected a list of rules, such as ['BN001', 'BN03']. "
            "Put them into brackets and quotes."
        )
    return tuple(value)


def _check_keys(found: Mapping[str, Any], known: list[str], noun: str) -> None:
    for name in found:
        if name not in known:
            raise SpecError(
                f"{noun} {name!r} is not known: expected one of {', '.join(known)}"
                f"{_nearest(name, known)}. Correct or remove it."
            )
