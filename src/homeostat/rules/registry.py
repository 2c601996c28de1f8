"""What a rule is, how it is registered, and how its page is read from its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from homeostat.errors import SpecError
from homeostat.models import BatchNormRecord, Graph, ModelRecord, Observation, Operation
from homeostat.rules.findings import Finding, RuleInfo, Severity, Skipped
from homeostat.rules.settings import Settings

Array = np.ndarray[Any, np.dtype[Any]]
Need = Literal["graph", "data", "labels", "batch size"]
Outcome = Finding | Skipped

SECTIONS = ("What it does", "Why is this bad", "What to do instead", "Fix safety")
"""The headings of a rule's docstring, in this order; the last may be missing."""

UNTOLD = {
    "moving_mean": "its moving mean",
    "moving_variance": "its moving variance",
    "stored_variance": "which kind of variance it stores",
    "updates": "how many updates there were",
    "trainable": "whether training moves gamma and beta",
    "tracking": "whether training moves the statistics",
}
"""Fields of a norm that have other words than their names."""

RULES: dict[str, Rule] = {}
"""Every rule by its identifier."""


@dataclass(frozen=True)
class ModelSubject:
    """A model before a rule, and what the rule says of it."""

    rule: RuleInfo
    model: ModelRecord
    observation: Observation | None
    settings: Settings

    @property
    def graph(self) -> Graph:
        """The model's graph; only for rules that need one."""
        if self.model.graph is None:
            raise SpecError("a rule reads the graph: expected needs=('graph',). Declare the need.")
        return self.model.graph

    @property
    def seen(self) -> Observation:
        """What data showed; only for rules that need data."""
        if self.observation is None:
            raise SpecError("a rule reads data: expected needs=('data',). Declare the need.")
        return self.observation

    def find(
        self,
        message: str,
        channels: Array | None = None,
        *,
        norm: str | None = None,
        severity: Severity | None = None,
        **figures: float,
    ) -> Finding:
        """Return a finding.

        Args:
            message: what is wrong. It holds no names that come from files.
            channels: which channels, booleans of shape (channels,); None for none in particular.
            norm: the norm's name; None for the one that is judged, or for the whole model.
            severity: if not the rule's own.
            **figures: the numbers behind the message.
        """
        which = () if channels is None or channels.all() else np.flatnonzero(channels).tolist()
        return Finding(
            self.rule.identifier,
            severity or self.rule.severity,
            norm if norm is not None else self.name,
            message,
            tuple(which),
            {name: float(value) for name, value in figures.items()},
        )

    def skip(self, reason: str) -> Skipped:
        """Say that the rule could not look, and why."""
        return Skipped(self.rule.identifier, self.name, reason)

    @property
    def name(self) -> str | None:
        """The norm that is judged; None for the whole model."""
        return None


@dataclass(frozen=True)
class NormSubject(ModelSubject):
    """A batch norm before a rule: its arrays in float64, and its place in the graph.

    A rule reads only the fields that it declared, so none of them is missing.
    """

    norm: BatchNormRecord

    @property
    def name(self) -> str:
        """The norm that is judged."""
        return self.norm.name

    @cached_property
    def gamma(self) -> Array:
        """Gamma, float64, shape (channels,)."""
        return self._array("gamma")

    @cached_property
    def beta(self) -> Array:
        """Beta, float64, shape (channels,)."""
        return self._array("beta")

    @cached_property
    def mean(self) -> Array:
        """The moving mean, float64, shape (channels,)."""
        return self._array("moving_mean")

    @cached_property
    def variance(self) -> Array:
        """The moving variance, float64, shape (channels,)."""
        return self._array("moving_variance")

    @property
    def epsilon(self) -> float:
        """Epsilon, for rules that declared it."""
        return self._number("epsilon")

    def suppose_epsilon(self, otherwise: float) -> tuple[float, str]:
        """Return epsilon, or what to take for it where it is not told, and a word on that.

        Args:
            otherwise: the framework's default with which the rule speaks less.
        """
        if self.norm.epsilon is not None:
            return self.epsilon, ""
        return otherwise, f" (not told, taken as {otherwise:g})"

    @property
    def momentum(self) -> float:
        """Momentum as the weight of the old value, for rules that declared it."""
        return self._number("momentum")

    @property
    def at_start(self) -> bool:
        """Whether the statistics are those that norms are built with: mean 0 and variance 1."""
        return bool(self.mean.size and (self.mean == 0).all() and (self.variance == 1).all())

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """The operations of the graph that apply the norm."""
        graph, norm = self.graph, self.norm
        if norm.operations:
            return tuple(graph[name] for name in norm.operations if name in graph)
        return graph.calls(norm.name)

    def find_nonfinite(self, names: Iterable[str]) -> Iterator[Finding]:
        """Yield a finding if some of the norm's arrays hold NaN or infinity."""
        bad = {
            name.replace("_", " "): ~np.isfinite(self._array(name))
            for name in names
            if name in self.norm.arrays
        }
        broken = {name: mask for name, mask in bad.items() if mask.any()}
        if broken:
            words = " and ".join(f"{name} at {count_channels(m)}" for name, m in broken.items())
            mask = np.logical_or.reduce(list(broken.values()))
            yield self.find(f"NaN or infinity in {words}.", mask, affected=np.count_nonzero(mask))

    def _array(self, name: str) -> Array:
        return self.norm.arrays[name].astype(np.float64)

    def _number(self, name: str) -> float:
        value = getattr(self.norm, name)
        if value is None:
            raise SpecError(f"a rule reads {name}: expected it among its fields. Declare it.")
        return float(value)


Judge = Callable[[Any], Iterator[Outcome]]


@dataclass(frozen=True)
class Rule:
    """A rule: its page, and the function that judges.

    Args:
        info: its page.
        judge: takes a `NormSubject`, or with ``whole`` a `ModelSubject`; yields findings.
        fields: the fields of `BatchNormRecord` that it reads. It is not asked about a norm that
            lacks one, and says so where the source does not tell.
        whole: whether it judges the model and not norm by norm.
    """

    info: RuleInfo
    judge: Judge
    fields: tuple[str, ...] = ()
    whole: bool = False

    def look(
        self, model: ModelRecord, observation: Observation | None, settings: Settings
    ) -> list[Outcome]:
        """Return what the rule says of a model, norm by norm in the order of the network."""
        missing = self._missing(model, observation, settings)
        if missing:
            return [Skipped(self.info.identifier, None, missing)]
        # Figures of a broken model overflow and divide by zero; findings say so, not NumPy.
        with np.errstate(all="ignore"):
            if self.whole:
                return list(self.judge(ModelSubject(self.info, model, observation, settings)))
            return [
                outcome
                for norm in model.norms
                for outcome in self._judge(
                    NormSubject(self.info, model, observation, settings, norm)
                )
            ]

    def _judge(self, subject: NormSubject) -> Iterable[Outcome]:
        norm = subject.norm
        lacking = [name for name in self.fields if getattr(norm, name) is None]
        untold = [UNTOLD.get(name, f"its {name}") for name in lacking if name in norm.unknown]
        if untold:
            return [
                subject.skip(
                    f"the source does not tell {' and '.join(untold)}. Audit the live model, or a "
                    "file that holds that too."
                )
            ]
        if lacking or norm.channels == 0:
            return ()
        if "graph" in self.info.needs and not subject.operations:
            return [subject.skip("the graph does not say where it is applied.")]
        return self.judge(subject)

    def _missing(
        self, model: ModelRecord, observation: Observation | None, settings: Settings
    ) -> str:
        needs = self.info.needs
        if "graph" in needs and model.graph is None:
            why = f" ({model.why_no_graph})" if model.why_no_graph else ""
            return f"the model's operations are not known{why}. Audit the live model."
        if "batch size" in needs and settings.batch_size is None:
            return "the batch size of training is not known. Give it with --batch-size."
        if ("data" in needs or "labels" in needs) and observation is None:
            return "there is no data. Give examples as training saw them with --data."
        behaviour = observation.behaviour if observation is not None else None
        if "labels" in needs and (behaviour is None or behaviour.inference_accuracy is None):
            return "there are no labels beside the data, or outputs are not classes. Add labels."
        return ""


def rule(
    identifier: str,
    severity: Severity,
    *,
    needs: tuple[Need, ...] = (),
    fields: tuple[str, ...] = (),
    whole: bool = False,
) -> Callable[[Judge], Judge]:
    """Register a function as a rule; its name is the rule's, its docstring the rule's page.

    Args:
        identifier: "BN" and three digits.
        severity: of findings that do not say otherwise.
        needs: what it needs of the model or its user.
        fields: which fields of a norm's record it reads.
        whole: whether it judges the whole model.

    Raises:
        SpecError: the docstring has not the form of a page, or the identifier is taken.
    """

    def register(judge: Judge) -> Judge:
        if identifier in RULES:
            raise SpecError(f"{identifier} is taken: expected a new identifier. Choose another.")
        page = read_page(inspect.getdoc(judge) or "")
        info = RuleInfo(identifier, judge.__name__.replace("_", "-"), severity, *page, needs=needs)
        RULES[identifier] = Rule(info, judge, fields, whole)
        return judge

    return register


def read_page(text: str) -> tuple[str, str, str, str, str]:
    """Read a rule's docstring: its summary and the text of its sections, a line a paragraph.

    Raises:
        SpecError: a section is missing, empty, unknown or out of order.
    """
    # A heading stands at the margin, its text is indented.
    head, *parts = re.split(r"^(\S[^\n]*):\n", text.strip() + "\n", flags=re.MULTILINE)
    headings, bodies = parts[::2], [_paragraphs(body) for body in parts[1::2]]
    known = SECTIONS[: max(len(headings), len(SECTIONS) - 1)]
    if tuple(headings) != known or not all(bodies) or "\n" in head.strip() or not head.strip():
        raise SpecError(
            f"a rule's docstring has the sections {headings}: expected a summary of one line and "
            f"{list(SECTIONS)}, none of them empty. Write them in this order."
        )
    return (head.strip(), *bodies, *([""] * (len(SECTIONS) - len(bodies))))  # type: ignore[return-value]


def _paragraphs(body: str) -> str:
    found = re.split(r"\n\s*\n", inspect.cleandoc("\n" + body).strip())
    return "\n\n".join(" ".join(part.split()) for part in found).strip()


def count_channels(mask: Array) -> str:
    """Return in words how many channels a mask holds.

    Example:
        >>> count_channels(np.array([True, False, True])), count_channels(np.array([True, True]))
        ('2 of 3 channels', 'all 2 channels')
    """
    number, total = int(np.count_nonzero(mask)), mask.size
    if number == total:
        return f"all {total} channels" if total > 1 else "its only channel"
    return f"{number} of {total} channels"
