"""Say what is wrong with the batch norms of a model: records in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from homeostat.audit.comparison import with_labels
from homeostat.audit.observation import measure_alone, observe
from homeostat.errors import UnsupportedError
from homeostat.models import LiveModel, ModelRecord, Observation, adapt
from homeostat.rules import RULES, SEVERITIES, Audit, Finding, Settings, Skipped

__all__ = ["Audit", "audit", "examine", "judge", "observe", "with_labels"]

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
        >>> import numpy as np
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
    live = adapt(model)
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
    alone = measure_alone(live, shifted, first)
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


def _of_variables(variables: Mapping[Any, Any]) -> ModelRecord:
    from homeostat.models.variables import record_variables

    return record_variables({str(name): value for name, value in variables.items()})
