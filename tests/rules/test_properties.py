"""No rule raises on any record, whatever is missing, wrong or hostile in it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from markdown_it import MarkdownIt

from homeostat.audit import judge
from homeostat.models import (
    KINDS,
    BatchNormRecord,
    Behaviour,
    Graph,
    ModelRecord,
    Observation,
    Operation,
)
from homeostat.moments import Moments
from homeostat.report.audit.json import write_json
from homeostat.report.audit.markdown import write_markdown
from homeostat.rules import RULES, Settings
from tests.rules.cases import CASES

MARK = "@@<file>"
MARKDOWN = MarkdownIt("commonmark").enable("table")
NAMES = st.text(max_size=6).map(lambda text: f"{MARK}{text}")
NUMBERS = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1e-3, 0.9, 0.1, 1.0, -1.0]))
FLAGS = st.one_of(st.none(), st.booleans())
COUNTS = st.one_of(st.none(), st.integers(-1, 10**9))
DTYPES = [np.float16, np.float32, np.float64, np.int64]


def vectors(size: int) -> st.SearchStrategy[Any]:
    special = st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf, 1e-30, -1.0])
    return st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            size,
            elements=st.integers(-5, 5)
            if dtype is np.int64
            else st.one_of(special, arrays.from_dtype(np.dtype(dtype))),
        )
    )


@st.composite
def norms(draw: st.DrawFn, name: str, operations: list[str]) -> BatchNormRecord:
    size = draw(st.integers(0, 12))
    maybe = st.one_of(st.none(), vectors(size))
    fields = ["epsilon", "momentum", "updates", "moving_mean", "moving_variance", "training"]
    return BatchNormRecord(
        name,
        MARK,
        *(draw(maybe) for _ in range(4)),
        epsilon=draw(NUMBERS),
        momentum=draw(NUMBERS),
        cumulative=draw(st.booleans()),
        stored_variance=draw(st.sampled_from([None, "population", "sample"])),
        updates=draw(COUNTS),
        skipped=draw(COUNTS),
        dtype=draw(st.sampled_from([None, "float16", "bfloat16", "float32", "float64", MARK])),
        trainable=draw(FLAGS),
        tracking=draw(FLAGS),
        training=draw(FLAGS),
        synchronized=draw(FLAGS),
        activation=draw(st.sampled_from([None, MARK])),
        operations=tuple(draw(st.lists(st.sampled_from([*operations, MARK]), max_size=3))),
        unknown=frozenset(draw(st.lists(st.sampled_from(fields), max_size=3))),
    )


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    made: list[Operation] = []
    for number in range(draw(st.integers(1, 8))):
        before = [operation.name for operation in made]
        size = st.one_of(st.none(), st.integers(0, 16))
        made.append(
            Operation(
                f"{MARK}{number}",
                draw(st.sampled_from(KINDS)),  # type: ignore[arg-type]
                tuple(draw(st.lists(st.sampled_from(before), max_size=3))) if before else (),
                layer=draw(st.sampled_from(["", MARK, "bn"])),
                type=draw(st.sampled_from(["", MARK, "softmax"])),
                shape=draw(st.one_of(st.none(), st.lists(size, max_size=5).map(tuple))),
                bias=draw(FLAGS),
                padded=draw(FLAGS),
                rate=draw(NUMBERS),
            )
        )
    return Graph(tuple(made), (made[-1].name,))


@st.composite
def models(draw: st.DrawFn) -> ModelRecord:
    graph = draw(st.one_of(st.none(), graphs()))
    operations = [operation.name for operation in graph.operations] if graph else [MARK]
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    return ModelRecord(
        draw(NAMES),
        draw(st.sampled_from(["keras", "torch", "tf1", "onnx"])),
        MARK,
        tuple(draw(norms(name, operations)) for name in names),
        graph,
        parameters=draw(st.one_of(st.none(), st.integers(0))),
        distributed=draw(FLAGS),
        notes=tuple(draw(st.lists(NAMES, max_size=2))),
    )


@st.composite
def observations(draw: st.DrawFn, model: ModelRecord) -> Observation:
    def moments(size: int) -> Moments:
        count = st.one_of(st.floats(0, 1e9), st.sampled_from([0.0, 1.0, 8.0]))
        wide = arrays.arrays(np.float64, size, elements=st.floats())
        return Moments(draw(count), draw(wide), draw(wide))

    seen, batches, elements = {}, {}, {}
    for norm in model.norms:
        if draw(st.booleans()):
            size = norm.channels if draw(st.booleans()) and norm.channels is not None else 3
            seen[norm.name] = moments(size)
            number = draw(st.sampled_from([0, 1, 4, 9]))
            batches[norm.name] = (moments(size),) * number
            elements[norm.name] = draw(st.floats(0, 1e6))
    accuracy = st.one_of(st.none(), st.floats(0, 1))
    behaviour = Behaviour(
        draw(st.integers(0, 1000)),
        draw(st.floats()),
        draw(accuracy),
        draw(accuracy),
        draw(accuracy),
    )
    return Observation(
        seen,
        draw(st.integers(0, 100)),
        draw(st.integers(0, 10**6)),
        elements,
        batches,
        draw(st.sampled_from([None, behaviour])),
        dict.fromkeys(list(seen) if draw(st.booleans()) else [], behaviour),
    )


@given(st.data(), models(), st.one_of(st.none(), st.integers(1, 64)))
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_no_rule_raises(data: st.DataObject, model: ModelRecord, batch_size: int | None) -> None:
    observation = data.draw(st.one_of(st.none(), observations(model)))
    audit = judge(model, observation, Settings(batch_size=batch_size))
    names = {norm.name for norm in model.norms}
    for finding in audit.findings:
        assert finding.norm in names | {None}
        # What files say never gets into our sentences, which formats show as they are.
        assert MARK not in finding.message
        assert all(type(value) is float for value in finding.figures.values())
    assert all(MARK not in skipped.reason for skipped in audit.skipped)
    json.loads(write_json(audit))
    tags = set(re.findall(r"<(/?\w+)", MARKDOWN.render(write_markdown(audit))))
    assert "file" not in tags


def test_findings_do_not_depend_on_the_order_of_channels() -> None:
    order = np.random.default_rng(3).permutation(16)
    for case in CASES:
        turned = [
            norm.with_fields(**{name: array[order] for name, array in norm.arrays.items()})
            for norm in case.model.norms
        ]
        model = ModelRecord("n", "keras", "s", tuple(turned), case.model.graph)
        plain = ModelRecord("n", "keras", "s", case.model.norms, case.model.graph)
        for rule in RULES.values():
            if {"data", "labels"} & set(rule.info.needs):
                continue
            here, there = (rule.look(one, None, case.settings) for one in (plain, turned and model))
            assert [getattr(a, "message", "") for a in here] == [
                getattr(b, "message", "") for b in there
            ]
