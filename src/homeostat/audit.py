"""Say what is wrong with the batch norms of a model: records in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from homeostat.data import Examples, unpack
from homeostat.errors import DataError, UnsupportedError
from homeostat.models import (
    Behaviour,
    LiveModel,
    ModelRecord,
    Observation,
    adapt,
    count_examples,
)
from homeostat.moments import Moments, merge
from homeostat.rules import RULES, SEVERITIES, Audit, Finding, Settings, Skipped

__all__ = ["Audit", "audit", "examine", "judge", "observe", "with_labels"]

Array = np.ndarray[Any, np.dtype[Any]]

KEPT_BATCHES = 256
"""How many batches' moments an observation keeps."""
ALONE_NORMS, ALONE_BATCHES = 16, 4
"""Of how many norms with shifted statistics, and on how many batches, the effect is measured."""


def audit(
    model: Any, data: Iterable[Any] | None = None, *, settings: Settings | None = None
) -> Audit:
    """Ask every rule about the batch norms of a model.

    Args:
        model: a Keras model, a `torch.nn.Module`, an adapter of one (`homeostat.models.adapt`), a
            `ModelRecord`, or a mapping of variables' names to arrays, such as a state dict.
        data: batches as `homeostat.data.unpack` reads them: inputs, (inputs, labels) or (inputs,
            labels, weights); of training's size and kind. It needs a live model.
        settings: which rules, from where on they speak; None for the defaults.

    Returns:
        The findings, the worst first, then in the order of the network; and the rules that could
        not look, with the reason.

    Raises:
        UnsupportedError: the model is none of these, or there is data for one that cannot run.
        DataError: the data is empty, or labels do not fit.
        SpecError: the settings name a rule that is not there.

    Example:
        >>> from homeostat.models import BatchNormRecord, ModelRecord
        >>> norm = BatchNormRecord(
        ...     "bn", "BatchNormalization", moving_mean=np.zeros(8), moving_variance=np.ones(8)
        ... )
        >>> found = audit(ModelRecord("net", "keras", "by hand", (norm,)))
        >>> [(finding.rule, finding.norm) for finding in found.findings]
        [('BN001', 'bn')]
        >>> found.worst()
        'error'
    """
    settings = settings or Settings()
    settings.check_rules(rule.info for rule in RULES.values())
    if isinstance(model, ModelRecord | Mapping):
        record = _of_variables(model) if isinstance(model, Mapping) else model
        if data is not None:
            raise UnsupportedError(
                "data is given for a model that cannot run: expected a live Keras model or "
                "torch.nn.Module. Pass the model itself, or leave the data out."
            )
        return judge(record, None, settings)
    live = cast("LiveModel", model) if _is_adapter(model) else adapt(model)
    record = live.record()
    return judge(record, None, settings) if data is None else examine(live, record, data, settings)


def examine(
    live: LiveModel, record: ModelRecord, data: Iterable[Any], settings: Settings | None = None
) -> Audit:
    """Ask every rule about a live model and data, and measure what each shifted norm does to it.

    Args:
        live: the model's adapter.
        record: what it says of itself now.
        data: batches as `homeostat.data.unpack` reads them.
        settings: which rules, from where on they speak; None for the defaults.

    Raises:
        DataError: there is no batch, or labels do not fit the examples.
    """
    first: list[Any] = []
    observation = observe(live, _keep_first(data, first))
    found = judge(record, observation, settings)
    shifted = _shifted(found)
    if not shifted:
        return found
    alone = _measure_alone(live, shifted, first)
    return judge(record, replace(observation, alone=alone), settings)


def judge(
    model: ModelRecord, observation: Observation | None = None, settings: Settings | None = None
) -> Audit:
    """Ask the rules that the settings choose about a record, and sort what they say.

    Args:
        model: what is known of the model.
        observation: what data showed; None without data.
        settings: which rules, from where on they speak; None for the defaults.
    """
    settings = settings or Settings()
    asked = [rule for rule in RULES.values() if settings.asks(rule.info)]
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    for rule in asked:
        for outcome in rule.look(model, observation, settings):
            if settings.ignores(rule.info, outcome.norm):
                continue
            if isinstance(outcome, Finding):
                findings.append(outcome)
            else:
                skipped.append(outcome)
    place = {norm.name: number for number, norm in enumerate(model.norms)}
    findings.sort(
        key=lambda found: (
            -SEVERITIES.index(found.severity),
            -1 if found.norm is None else place.get(found.norm, len(place)),
            found.rule,
        )
    )
    return Audit(
        model, tuple(findings), tuple(skipped), tuple(rule.info for rule in asked), observation
    )


def _keep_first(data: Iterable[Any], kept: list[Any]) -> Iterator[Any]:
    for batch in data:
        if len(kept) < ALONE_BATCHES:
            kept.append(batch)
        yield batch


def _shifted(found: Audit) -> list[str]:
    """Return the norms whose statistics are off, the worst first."""
    names = (
        finding.norm
        for finding in found.findings
        if finding.rule in ("BN040", "BN041") and finding.severity != "info"
    )
    return list(dict.fromkeys(name for name in names if name is not None))[:ALONE_NORMS]


def _measure_alone(
    live: LiveModel, names: Iterable[str], batches: Iterable[Any]
) -> dict[str, Behaviour]:
    """Return how outputs differ when one norm alone takes the batch's statistics, by its name."""
    comparisons = {name: _Comparison() for name in names}
    for batch in batches:
        examples = unpack(batch)
        if not count_examples(examples.inputs):
            continue
        moving = live.outputs(examples.inputs)
        for name, comparison in comparisons.items():
            one = live.outputs(examples.inputs, batch_statistics=[name])
            comparison.add(moving, one, examples)
    found = {name: comparison.behaviour() for name, comparison in comparisons.items()}
    return {name: behaviour for name, behaviour in found.items() if behaviour is not None}


def _of_variables(variables: Mapping[Any, Any]) -> ModelRecord:
    from homeostat.models.variables import record_variables

    return record_variables({str(name): value for name, value in variables.items()})


def _is_adapter(model: Any) -> bool:
    return all(callable(getattr(model, name, None)) for name in ("record", "observe", "outputs"))


def observe(live: LiveModel, data: Iterable[Any]) -> Observation:
    """Run data through a model and return what it showed; the model is left as it was.

    Each batch is run three times: for the moments of the norms' inputs, and for the outputs with
    moving and with the batch's statistics. Memory does not grow with the data.

    Args:
        live: the model's adapter.
        data: batches as `homeostat.data.unpack` reads them.

    Raises:
        DataError: there is no batch, or labels do not fit the examples.
    """
    statistics, comparison = _Statistics(), _Comparison()
    for batch in data:
        examples = unpack(batch)
        number = count_examples(examples.inputs)
        if not number:
            continue
        statistics.add(live.observe(examples.inputs, weights=examples.weights), number)
        comparison.add(
            live.outputs(examples.inputs),
            live.outputs(examples.inputs, batch_statistics=True),
            examples,
        )
    if not statistics.batches:
        raise DataError(
            "the data has no examples: expected at least one batch. Check where it comes from; an "
            "iterator can be used up already."
        )
    return statistics.observation(comparison.behaviour())


def with_labels(data: Iterable[Any], path: Path) -> Iterator[Examples]:
    """Yield batches with labels from a file beside them.

    Args:
        data: batches as `homeostat.data.unpack` reads them.
        path: a ``.npy`` file with the class of each example, or its scores, in the same order.

    Raises:
        DataError: the file cannot be read, or holds fewer or more labels than there are examples.
    """
    try:
        labels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"labels {path} cannot be read ({error}): expected a .npy file of numbers. Write it "
            "with numpy.save."
        ) from error
    total, used = (len(labels) if labels.ndim else 0), 0
    for batch in data:
        examples = unpack(batch)
        number = count_examples(examples.inputs)
        if used + number > total:
            break
        yield examples._replace(labels=np.asarray(labels[used : used + number]))
        used += number
    else:
        if used == total:
            return
    raise DataError(
        f"labels {path} holds {total:,} labels, which is not the number of examples: expected one "
        "for each. Give the labels of this data."
    )


class _Statistics:
    """What batches showed of the norms' inputs."""

    def __init__(self) -> None:
        self.batches = 0
        self.examples = 0
        self.pooled: dict[str, Moments] = {}
        self.kept: dict[str, list[Moments]] = {}
        self.elements: dict[str, float] = {}
        self.whole = 0

    def add(self, seen: Mapping[str, Moments], number: int) -> None:
        self.batches += 1
        self.examples += number
        # A batch is whole if none before had more examples.
        if number > self.whole:
            self.whole, self.elements = number, {}
        for name, moments in seen.items():
            if name in self.pooled:
                self.pooled[name] = merge(self.pooled[name], moments, np)
            else:
                self.pooled[name] = moments
            if self.batches <= KEPT_BATCHES:
                self.kept.setdefault(name, []).append(moments)
            if number == self.whole:
                least = float(np.min(moments.count))
                self.elements[name] = min(self.elements.get(name, least), least)

    def observation(self, behaviour: Behaviour | None) -> Observation:
        return Observation(
            self.pooled,
            self.batches,
            self.examples,
            self.elements,
            {name: tuple(kept) for name, kept in self.kept.items()},
            behaviour,
        )


class _Comparison:
    """Outputs with moving statistics beside those with the batch's."""

    def __init__(self) -> None:
        self.examples = 0
        self.squares = 0.0
        self.spread: list[Moments] = []
        self.agreed = 0
        self.classes = True
        self.right = [0, 0]
        self.labelled = 0

    def add(self, moving: Any, batch: Any, examples: Examples) -> None:
        kept = None if examples.weights is None else np.asarray(examples.weights) > 0
        ours, theirs = ([_keep(one, kept) for one in _arrays(all_)] for all_ in (moving, batch))
        if not theirs or not len(theirs[0]):
            return
        number = len(theirs[0])
        self.examples += number
        with np.errstate(all="ignore"):
            for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
                self.squares += float(np.sum((mine - other) ** 2))
                moments = Moments(float(number), other.mean(0), other.var(0))
                if place < len(self.spread):
                    self.spread[place] = merge(self.spread[place], moments, np)
                else:
                    self.spread.append(moments)
        self.classes &= len(theirs) == 1 and theirs[0].ndim == 2 and theirs[0].shape[1] > 1
        if not self.classes:
            return
        chosen = [one[0].argmax(1) for one in (ours, theirs)]
        self.agreed += int(np.sum(chosen[0] == chosen[1]))
        labels = _read_labels(examples.labels, kept, theirs[0].shape)
        if labels is not None:
            self.labelled += number
            for place, one in enumerate(chosen):
                self.right[place] += int(np.sum(one == labels))

    def behaviour(self) -> Behaviour | None:
        if not self.examples:
            return None
        total = sum(float(np.sum(one.variance)) * float(one.count) for one in self.spread)
        with np.errstate(all="ignore"):
            relative = np.sqrt(np.float64(self.squares) / total) if self.squares else 0.0
        labelled = self.classes and self.labelled == self.examples
        accuracies = [count / self.examples if labelled else None for count in self.right]
        return Behaviour(
            self.examples,
            float(relative),
            self.agreed / self.examples if self.classes else None,
            *accuracies,
        )


def _arrays(outputs: Any) -> list[Array]:
    """Return a model's outputs, one or many, as a list of arrays with examples first."""
    if isinstance(outputs, Mapping):
        return [array for one in outputs.values() for array in _arrays(one)]
    if isinstance(outputs, tuple | list):
        return [array for one in outputs for array in _arrays(one)]
    array = np.asarray(outputs, np.float64)
    return [array] if array.ndim else []


def _keep(array: Array, kept: Array | None) -> Array:
    return array if kept is None else array[kept]


def _read_labels(labels: Any, kept: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Return the class of each example; None without labels.

    Labels of shape (examples, classes) are scores, such as one-hot vectors.
    """
    if labels is None:
        return None
    found = np.asarray(labels)
    if kept is not None and len(found) == len(kept):
        found = found[kept]
    if found.shape == shape:
        return found.argmax(1)
    if found.shape in ((shape[0],), (shape[0], 1)) and found.dtype.kind in "iufb":
        return found.reshape(-1)
    raise DataError(
        f"labels of shape {found.shape} and dtype {found.dtype} do not fit outputs of shape "
        f"{shape}: expected a class for each example, shape ({shape[0]},), or scores of shape "
        f"{shape}. Pass labels in the order of the examples."
    )
