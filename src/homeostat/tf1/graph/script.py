"""Run a script to see the graphs that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.tf1.graph.steps import Step, step_of
from homeostat.tf1.origin import user_line
from homeostat.tf1.run import ScriptStopped, run_script
from homeostat.tf1.walk import reached_by
from homeostat.tf1.watch import before_every_run, operations_in


@dataclass
class Recorded:
    """What a script made.

    Args:
        graphs: the graphs that sessions ran, or else those that were built, in their order; each
            with the training steps that were taken in it, and the operations that were run apart
            from training.
        code: the script's exit code; 0 if it was stopped.
        stopped_at: the line at whose training step the script was stopped; "" if it was not.
    """

    graphs: list[tuple[Any, list[Step], set[Any]]] = field(default_factory=list)
    code: int = 0
    stopped_at: str = ""


def record_script(
    script: str | Path, arguments: Sequence[str] = (), *, whole: bool = False
) -> Recorded:
    """Run a script and keep the graphs that it makes.

    Args:
        script: path of a Python file or a notebook.
        arguments: the script's ``sys.argv[1:]``.
        whole: run it to its end; otherwise only up to its first training step, which is not run.

    Returns:
        What it made, also if it failed.

    Raises:
        DataError: there is no such script.
        UnsupportedError: the script is Python 2.
    """
    recorder = _Recorder(whole)
    with before_every_run(recorder.see), _built(recorder.build):
        try:
            code = run_script(script, arguments, check="off")
        except ScriptStopped:
            code = 0
    recorder.build(tf.get_default_graph())
    seen = recorder.ran or recorder.built
    graphs = [
        (graph, recorder.steps.get(graph, []), recorder.apart.get(graph, set()))
        for graph in seen
        if graph.get_operations()
    ]
    return Recorded(graphs, code, recorder.stopped_at)


class _Recorder:
    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._known: set[Any] = set()
        self.stopped_at = ""
        self.ran: list[Any] = []
        self.built: list[Any] = []
        self.steps: dict[Any, list[Step]] = {}
        self.apart: dict[Any, set[Any]] = {}

    def build(self, graph: Any) -> None:
        if graph not in self.built and not graph.building_function:
            self.built.append(graph)

    def see(self, graph: Any, fetches: Any) -> list[Any]:
        if self.stopped_at:
            # The script caught it, or another thread goes on.
            raise ScriptStopped
        if graph not in self.ran:
            self.ran.append(graph)
        operations = operations_in(graph, fetches)
        if operations in self._known:
            return []
        self._known.add(operations)
        step = step_of(graph, operations, user_line())
        if step is None:
            self.apart.setdefault(graph, set()).update(reached_by(operations))
        else:
            self.steps.setdefault(graph, []).append(step)
            if not self._whole:
                self.stopped_at = step.taken_at
                raise ScriptStopped
        return []


@contextmanager
def _built(tell: Callable[[Any], None]) -> Iterator[None]:
    """Tell of every graph that operations are put into inside the ``with`` block."""
    original = tf.Graph.as_default

    def as_default(self: Any) -> Any:
        tell(self)
        return original(self)

    tf.Graph.as_default = as_default
    try:
        yield
    finally:
        tf.Graph.as_default = original
