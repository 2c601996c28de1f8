"""The records that studies write and reports read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homeostat.errors import DataError

QUANTILES = (0.05, 0.15, 0.5, 0.85, 0.95)
"""Which quantiles of the last hidden layer's activation inputs a `Probe` holds."""


@dataclass(frozen=True)
class Probe:
    """What was seen of one network at one moment of its training.

    A number that was not finite, as after a diverged step, is None.

    Args:
        step: training steps done.
        validation_accuracy: fraction of the validation images that is classified right.
        loss: mean training loss since the probe before.
        gradient_norms: Euclidean norm of the loss's gradient for each layer's weights, the layer
            next to the input first.
        quantiles: `QUANTILES` of the inputs to the last hidden layer's activation.
    """

    step: int
    validation_accuracy: float
    loss: float | None
    gradient_norms: tuple[float | None, ...]
    quantiles: tuple[float | None, ...]


@dataclass(frozen=True)
class LessonRow:
    """One trained network of the MNIST lesson: its settings, its environment and its results.

    Args:
        data: name of the data.
        fingerprint: digest of the images and labels.
        activation: activation of the hidden layers.
        learning_rate: of gradient descent.
        start: name of the start weights, ``"normal"`` or ``"bad"``.
        batch_norm: whether the network has batch norm.
        seed: of the start weights and the order of the images.
        steps: training steps.
        batch_size: images in a step.
        backend: Keras's backend.
        device: the device that trained it.
        versions: package name to version.
        finished: when, in ISO 8601, UTC.
        wall_s: seconds for everything about this network.
        steps_per_second: of training alone, probes apart.
        test_accuracy: with the moving statistics.
        single_batch_statistics: accuracy when images are classified one at a time and normalized
            with their own statistics (the wrong mode); None without batch norm.
        single_moving_statistics: the same with the moving statistics.
        probes: in the order of training.
    """

    data: str
    fingerprint: str
    activation: str
    learning_rate: float
    start: str
    batch_norm: bool
    seed: int
    steps: int
    batch_size: int
    backend: str
    device: str
    versions: Mapping[str, str]
    finished: str
    wall_s: float
    steps_per_second: float
    test_accuracy: float
    single_batch_statistics: float | None
    single_moving_statistics: float | None
    probes: tuple[Probe, ...]

    @property
    def settings(self) -> tuple[Any, ...]:
        """What was trained, results and environment apart; equal settings need no second run."""
        return (
            *(self.fingerprint, self.backend, self.steps, self.batch_size, self.seed),
            *(self.activation, self.learning_rate, self.start, self.batch_norm),
        )


@dataclass(frozen=True)
class SpeedRow:
    """Training speed of the study beside `model.fit` on the same network, in steps per second.

    Args:
        data: name of the data.
        backend: Keras's backend.
        device: the device that trained.
        versions: package name to version.
        batch_size: images in a step.
        networks: how many networks the study trains at the same time.
        together: steps per second of those networks in all.
        alone: steps per second of one network trained by itself.
        fit: steps per second of `model.fit` at its defaults.
    """

    data: str
    backend: str
    device: str
    versions: Mapping[str, str]
    batch_size: int
    networks: int
    together: float
    alone: float
    fit: float

    @property
    def ratio(self) -> float:
        """How many times faster the study trains than `model.fit`."""
        return self.together / self.fit


Row = LessonRow | SpeedRow
_KINDS: dict[str, type[LessonRow] | type[SpeedRow]] = {"lesson": LessonRow, "speed": SpeedRow}


def to_record(row: Row) -> dict[str, Any]:
    """Return the row as plain values for JSON; a number that is not finite becomes None."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(row, cls))
    return {"kind": kind} | {f.name: _plain(getattr(row, f.name)) for f in dataclasses.fields(row)}


def _plain(value: Any) -> Any:
    if isinstance(value, Probe):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_record(record: Any) -> Row:
    """Read back what `to_record` wrote, every field checked.

    Raises:
        DataError: the record is of no known kind, or a field is missing or of the wrong type.
    """
    if not isinstance(record, dict) or record.get("kind") not in _KINDS:
        kind = record.get("kind") if isinstance(record, dict) else record
        raise DataError(
            f"a row is of kind {kind!r}: expected an object with 'kind' among {sorted(_KINDS)}. "
            "It may come from another version of Homeostat."
        )
    return _build(_KINDS[record["kind"]], record)


def _build(cls: type[Any], record: Any) -> Any:
    if not isinstance(record, dict):
        raise DataError(f"{record!r} is not an object: expected the fields of a {cls.__name__}.")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name not in record:
            raise DataError(f"the field {field.name!r} is missing: expected every field of a row.")
        values[field.name] = _READERS[str(field.type)](field.name, record[field.name])
    return cls(**values)


def _text(name: str, value: Any) -> str:
    return value if isinstance(value, str) else _refuse(name, value, "text")


def _flag(name: str, value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse(name, value, "true or false")


def _whole(name: str, value: Any) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole else _refuse(name, value, "a whole number")


def _number(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else _refuse(name, value, "a number")


def _maybe_number(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value)


def _list(name: str, value: Any) -> list[Any]:
    return value if isinstance(value, list) else _refuse(name, value, "a list")


def _numbers(name: str, value: Any) -> tuple[float | None, ...]:
    return tuple(_maybe_number(name, item) for item in _list(name, value))


def _probes(name: str, value: Any) -> tuple[Probe, ...]:
    return tuple(_build(Probe, item) for item in _list(name, value))


def _texts(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return _refuse(name, value, "an object")
    return {_text(name, key): _text(name, item) for key, item in value.items()}


def _refuse(name: str, value: Any, expected: str) -> Any:
    raise DataError(f"the field {name!r} is {value!r}: expected {expected}.")


_READERS = {
    "str": _text,
    "bool": _flag,
    "int": _whole,
    "float": _number,
    "float | None": _maybe_number,
    "tuple[float | None, ...]": _numbers,
    "tuple[Probe, ...]": _probes,
    "Mapping[str, str]": _texts,
}
