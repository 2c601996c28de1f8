"""Watch `Session.run` for training steps that forget the updates of batch norms."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import MissingUpdatesError, MissingUpdatesWarning, SpecError
from homeostat.tf1.origin import user_line
from homeostat.tf1.records import BatchNormCall
from homeostat.tf1.updates import UpdateReport, report_on, trained_by
from homeostat.tf1.walk import operation_of, reached_by

CHECKS = ("off", "warn", "error")
"""What to do about a training step that forgets updates."""

_KEPT = "_homeostat_watches"

# Session, InteractiveSession and what MonitoredSession holds all run by this class's method.
_SESSION = next(each for each in tf.Session.__mro__ if "run" in vars(each))


@contextmanager
def watch_updates(
    check: str = "warn", *, fix: bool = False, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Check every training step that runs inside the ``with`` block, in any session.

    Each new set of fetches that assigns a trainable variable is checked as by `check_updates`
    before it first runs. What `Session.run` returns is what it returns without the watch.

    Args:
        check: ``"warn"`` to say once which layers are forgotten, ``"error"`` to raise instead of
            running the step, ``"off"`` for neither.
        fix: run the forgotten updates with the step, and say so once; there is nothing left to
            warn of or to raise then.
        say: takes what there is to say; a `MissingUpdatesWarning` without it.

    Raises:
        SpecError: ``check`` is none of the three.
        MissingUpdatesError: from `Session.run`, with ``check="error"``.
    """
    if check not in CHECKS:
        raise SpecError(
            f"check={check!r} is not known: expected one of {', '.join(CHECKS)}. Use 'warn' to be "
            "told of forgotten updates, 'error' to stop at them."
        )
    if check == "off" and not fix:
        yield
        return
    with before_every_run(_Watch(check, fix, say or _warn).forgotten):
        yield


@contextmanager
def before_every_run(ask: Callable[[Any, Any], list[Any]]) -> Iterator[None]:
    """Ask before everything that any session runs, or will run by a callable, inside the block.

    Args:
        ask: takes a session's graph and fetches; returns what to run with them. What it raises,
            `Session.run` raises.
    """
    originals = _SESSION.run, _SESSION.make_callable
    _SESSION.run = _asking_run(_SESSION.run, ask)
    _SESSION.make_callable = _asking_callable(_SESSION.make_callable, ask)
    try:
        yield
    finally:
        _SESSION.run, _SESSION.make_callable = originals


def _asking_run(original: Callable[..., Any], ask: Callable[[Any, Any], list[Any]]) -> Any:
    @functools.wraps(original)
    def run(session: Any, fetches: Any, *rest: Any, **named: Any) -> Any:
        besides = ask(session.graph, fetches)
        if not besides:
            return original(session, fetches, *rest, **named)
        return original(session, [fetches, besides], *rest, **named)[0]

    return run


def _asking_callable(original: Callable[..., Any], ask: Callable[[Any, Any], list[Any]]) -> Any:
    @functools.wraps(original)
    def make_callable(session: Any, fetches: Any, *rest: Any, **named: Any) -> Any:
        besides = ask(session.graph, fetches)
        if not besides:
            return original(session, fetches, *rest, **named)
        both = original(session, [fetches, besides], *rest, **named)
        return lambda *feeds, **options: both(*feeds, **options)[0]

    return make_callable


@dataclass
class _Graph:
    """What was found in a graph, so that fetches are looked at once and calls told once.

    Args:
        missing: the calls that some fetches, by their operations, forget.
        apart: calls whose updates ran apart from any training.
        told: calls that were told of.
    """

    missing: dict[frozenset[Any], tuple[BatchNormCall, ...]] = field(default_factory=dict)
    apart: set[BatchNormCall] = field(default_factory=set)
    told: set[BatchNormCall] = field(default_factory=set)


class _Watch:
    def __init__(self, check: str, fix: bool, say: Callable[[str], None]) -> None:
        self._check, self._fix, self._say = check, fix, say
        self._lock = threading.Lock()

    def forgotten(self, graph: Any, fetches: Any) -> list[Any]:
        """Return the updates to run with some fetches, having said what there is to say."""
        operations = operations_in(graph, fetches)
        with self._lock:
            found = self._found_in(graph)
            if operations not in found.missing:
                _look(graph, operations, found)
            missing = tuple(x for x in found.missing[operations] if x not in found.apart)
            if not missing:
                return []
            if self._check == "error" and not self._fix:
                raise MissingUpdatesError(_refusal(missing))
            if not found.told.issuperset(missing):
                found.told.update(missing)
                self._tell(missing)
        if not self._fix:
            return []
        return [operation_of(update) for call in missing for update in call.updates]

    def _found_in(self, graph: Any) -> _Graph:
        # The graph keeps it, so that it goes when the graph goes.
        if not hasattr(graph, _KEPT):
            setattr(graph, _KEPT, {})
        return getattr(graph, _KEPT).setdefault(self, _Graph())

    def _tell(self, missing: tuple[BatchNormCall, ...]) -> None:
        report = str(UpdateReport(missing))
        if self._fix:
            report += "\nThey are run with this step all the same, as you asked for a fix."
        self._say(
            f"The training step at {user_line()} forgets updates that no Session.run of their own "
            f"ran before. {report}"
        )


def _look(graph: Any, operations: frozenset[Any], found: _Graph) -> None:
    """Find what some fetches forget, or update apart from training."""
    reached = reached_by(operations)
    report = report_on(graph, reached)
    trains = bool(trained_by(graph, reached))
    found.missing[operations] = report.missing if trains else ()
    if not trains:
        found.apart.update(report.updated, report.repeated)


def _refusal(missing: tuple[BatchNormCall, ...]) -> str:
    return (
        f"the training step at {user_line()} forgets updates: expected that it updates the batch "
        "norms that it trains, or that a Session.run of their own ran the updates before. "
        f"{UpdateReport(missing)}\nNothing was run."
    )


def _warn(text: str) -> None:
    warnings.warn(text, MissingUpdatesWarning, stacklevel=5)


def operations_in(graph: Any, fetches: Any) -> frozenset[Any]:
    """Return the operations of what a session was asked to run; none if it cannot run that."""
    try:
        return frozenset(_operations(graph, fetches))
    except (KeyError, TypeError, ValueError):
        # Session.run says it better.
        return frozenset()


def _operations(graph: Any, fetches: Any) -> Iterator[Any]:
    """Yield the operations of fetches, in whatever structure `Session.run` takes."""
    if isinstance(fetches, list | tuple):
        for each in fetches:
            yield from _operations(graph, each)
    elif isinstance(fetches, Mapping):
        yield from _operations(graph, list(fetches.values()))
    elif hasattr(type(fetches), "__attrs_attrs__"):
        fields = type(fetches).__attrs_attrs__
        yield from _operations(graph, [getattr(fetches, field.name) for field in fields])
    else:
        # A sparse tensor is several tensors.
        for each in tf.nest.flatten(fetches, expand_composites=True):
            yield operation_of(graph.as_graph_element(each))
