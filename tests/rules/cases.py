"""For each rule, records on which it speaks and records on which it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from homeostat.models import (
    BatchNormRecord,
    Behaviour,
    Graph,
    ModelRecord,
    Observation,
    Operation,
)
from homeostat.moments import Moments
from homeostat.rules import Settings, Severity

CHANNELS = 16
_RANDOM = np.random.default_rng(0)
MEAN = _RANDOM.normal(0, 0.5, CHANNELS).astype(np.float32)
VARIANCE = _RANDOM.uniform(0.5, 2.0, CHANNELS).astype(np.float32)
GAMMA = _RANDOM.uniform(0.5, 1.5, CHANNELS).astype(np.float32)


def norm(name: str = "bn", **changes: Any) -> BatchNormRecord:
    """Return a healthy norm, with some fields changed."""
    healthy = BatchNormRecord(
        name,
        "BatchNormalization",
        gamma=GAMMA,
        beta=MEAN / 2,
        moving_mean=MEAN,
        moving_variance=VARIANCE,
        epsilon=1e-3,
        momentum=0.9,
        stored_variance="population",
        updates=1000,
        skipped=0,
        dtype="float32",
        trainable=True,
        tracking=True,
        training=False,
        synchronized=False,
    )
    return healthy.with_fields(**changes)


def chain(*kinds: Any, output: bool = False) -> Graph:
    """Return a graph of one operation after the other, and a last one that gives the output."""
    operations = [Operation("x", "input", shape=(None, 8, 8, 3))]
    for kind in (*kinds, *(() if output else (Operation("end", "dense"),))):
        operation = kind if isinstance(kind, Operation) else Operation(kind, kind)
        inputs = operation.inputs or (operations[-1].name,)
        operations.append(replace(operation, inputs=inputs))
    return Graph(tuple(operations), (operations[-1].name,))


CONV = Operation("conv", "conv", bias=False)
BN = Operation("bn", "batch_norm", shape=(None, 8, 8, CHANNELS))
CONV_BN = chain(CONV, BN)


def model(*norms: BatchNormRecord, graph: Graph | None = None, **fields: Any) -> ModelRecord:
    return ModelRecord("net", "keras", "by hand", norms or (norm(),), graph, **fields)


def observed(
    mean: Any = None, variance: Any = None, behaviour: Behaviour | None = None, **fields: Any
) -> Observation:
    """Return what 20 batches of 100 elements of a channel showed; by default what is stored."""
    mean = np.asarray(MEAN if mean is None else mean, np.float64)
    variance = np.asarray(VARIANCE if variance is None else variance, np.float64)
    stray = np.random.default_rng(1).normal(0, 0.05, (20, CHANNELS))
    batches = tuple(
        Moments(100.0, mean + one * np.sqrt(variance), variance * np.exp(one)) for one in stray
    )
    return Observation(
        {"bn": Moments(2000.0, mean, variance)}, 20, 2000, {"bn": 100.0}, {"bn": batches}, behaviour
    )


def small_batches(factor: float) -> Observation:
    """Return what batches of 8 elements showed of a norm whose variances are `factor` of theirs."""
    random = np.random.default_rng(2)
    # A moving average of some batches is off by a few percent at each channel.
    variance = np.asarray(VARIANCE, np.float64) / factor * np.exp(random.normal(0, 0.03, CHANNELS))
    stray = np.exp(random.normal(0, 0.02, (400, CHANNELS)))
    batches = tuple(Moments(8.0, MEAN.astype(np.float64), variance * one) for one in stray)
    pooled = Moments(3200.0, MEAN.astype(np.float64), variance)
    return Observation({"bn": pooled}, 400, 3200, {"bn": 8.0}, {"bn": batches})


def some(value: float, array: Any, number: int = 1) -> Any:
    """Return an array with its first few values changed."""
    changed = np.array(array)
    changed[:number] = value
    return changed


@dataclass(frozen=True, eq=False)
class Case:
    """A model, what data showed of it, and how bad a rule finds it; None for not at all."""

    rule: str
    about: str
    severity: Severity | None
    model: ModelRecord
    observation: Observation | None = None
    settings: Settings = field(default_factory=Settings)
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    channels: tuple[int, ...] | None = None


ZEROS, ONES = np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32)
FRESH: dict[str, Any] = {
    "gamma": ONES, "beta": ZEROS, "moving_mean": ZEROS, "moving_variance": ONES, "updates": 0,
}  # fmt: skip
UNCOUNTED: dict[str, Any] = {
    "updates": None, "unknown": frozenset({"updates"}), "moving_variance": VARIANCE + 1,
}  # fmt: skip
BATCH = Settings(batch_size=8)


def cases_of(rule: str, *cases: tuple[Any, ...], **named: Any) -> list[Case]:
    return [Case(rule, *case, **named) for case in cases]


def behaves(**fields: Any) -> Observation:
    return observed(behaviour=Behaviour(**{"examples": 1000, "difference": 0.1, **fields}))


CASES: list[Case] = [
    *cases_of(
        "BN001",
        ("built and never trained", "error", model(norm(**FRESH))),
        ("trained without updates", "error", model(norm(**{**FRESH, "gamma": GAMMA}))),
        ("updated once", None, model(norm(moving_mean=some(1e-9, ZEROS), moving_variance=ONES))),
        ("mean 0 alone", None, model(norm(moving_mean=ZEROS))),
        ("no statistics", None, model(norm(moving_mean=None, moving_variance=None))),
    ),
    Case(
        "BN002", "NaN in two means", "error", model(norm(moving_mean=some(np.nan, MEAN, 2))),
        channels=(0, 1), figures={"affected": 2},
    ),
    Case("BN002", "infinite", "error", model(norm(moving_variance=some(np.inf, VARIANCE)))),
    Case("BN002", "finite", None, model()),
    Case("BN002", "gamma is another rule's", None, model(norm(gamma=some(np.nan, GAMMA)))),
    Case(
        "BN003", "negative", "error", model(norm(moving_variance=some(-0.5, VARIANCE))),
        channels=(0,), figures={"worst": -0.5},
    ),
    Case("BN003", "zero", None, model(norm(moving_variance=some(0.0, VARIANCE)))),
    Case(
        "BN004", "three dead", "info", model(norm(moving_variance=some(1e-9, VARIANCE, 3))),
        channels=(0, 1, 2),
    ),
    Case("BN004", "half dead", "warning", model(norm(moving_variance=some(0.0, VARIANCE, 8)))),
    Case("BN004", "small, not dead", None, model(norm(moving_variance=some(2e-6, VARIANCE)))),
    Case(
        "BN004", "epsilon not told", "info",
        model(norm(epsilon=None, moving_variance=some(1e-9, VARIANCE), unknown={"epsilon"})),
    ),
    Case(
        "BN005", "far off", "warning", model(norm(moving_mean=some(5e3, MEAN))), channels=(0,)
    ),
    Case("BN005", "float16", "warning", model(norm(moving_mean=some(200, MEAN), dtype="float16"))),
    Case("BN005", "bfloat16", "error", model(norm(moving_mean=some(1e3, MEAN), dtype="bfloat16"))),
    Case(
        "BN005", "epsilon not told", "warning",
        model(norm(epsilon=None, moving_mean=some(5e3, MEAN), unknown={"epsilon"})),
    ),
    Case("BN005", "float32", None, model(norm(moving_mean=some(200, MEAN)))),
    Case("BN010", "NaN", "error", model(norm(gamma=some(np.nan, GAMMA))), channels=(0,)),
    Case("BN010", "infinite beta", "error", model(norm(beta=some(-np.inf, GAMMA)))),
    Case("BN010", "finite", None, model()),
    Case("BN011", "one", "info", model(norm(gamma=some(0, GAMMA))), channels=(0,)),
    Case("BN011", "all", "warning", model(norm(gamma=ZEROS))),
    Case("BN011", "built so", None, model(norm(**{**FRESH, "gamma": ZEROS}))),
    Case("BN011", "small", None, model(norm(gamma=some(1e-6, GAMMA)))),
    Case("BN012", "tiny", "warning", model(norm(gamma=GAMMA * 1e-4))),
    Case("BN012", "small", None, model(norm(gamma=GAMMA * 0.01))),
    Case("BN012", "one of them", None, model(norm(gamma=some(1e-5, GAMMA)))),
    Case(
        "BN013", "nothing in float16", "info",
        model(norm(epsilon=1e-9, dtype="float16", moving_variance=some(1e-9, VARIANCE))),
    ),
    Case(
        "BN013", "subnormal sum in float16", "info",
        model(norm(epsilon=1e-5, dtype="float16", moving_variance=some(0, VARIANCE))),
    ),
    Case("BN013", "subnormal epsilon", "info", model(norm(epsilon=1e-5, dtype="float16"))),
    Case(
        "BN013", "nothing in float32", "error",
        model(norm(epsilon=0.0, moving_variance=some(0, VARIANCE))), channels=(0,),
    ),
    Case(
        "BN013", "subnormal sum", "warning",
        model(norm(epsilon=1e-40, moving_variance=some(0, VARIANCE))), channels=(0,),
    ),
    Case("BN013", "negative", "error", model(norm(epsilon=-1e-3))),
    Case("BN013", "enough", None, model(norm(epsilon=1e-3, dtype="float16"))),
    Case("BN013", "PyTorch's", None, model(norm(epsilon=1e-5))),
    Case("BN014", "small inputs", "warning", model(norm(moving_variance=VARIANCE * 1e-3))),
    Case("BN014", "few", None, model(norm(moving_variance=some(1e-3, VARIANCE, 7)))),
    Case("BN014", "dead", None, model(norm(moving_variance=some(0, VARIANCE, 14)))),
    Case("BN015", "one differs", "info", model(norm("a"), norm("b"), norm("c", epsilon=1e-5))),
    Case(
        "BN015", "and it matters", "warning",
        model(norm("a"), norm("b"), norm("c", epsilon=1e-5, moving_variance=VARIANCE / 300)),
    ),
    Case("BN015", "the same", None, model(norm("a"), norm("b"))),
    Case(
        "BN020", "30 updates", "warning", model(norm(updates=30)), figures={"weight": 0.9**30},
    ),
    Case("BN020", "5 updates", "error", model(norm(updates=5, moving_variance=ONES * 2))),
    Case("BN020", "44 updates", None, model(norm(updates=44))),
    Case("BN020", "loaded", None, model(norm(updates=5, moving_variance=some(0.01, VARIANCE)))),
    Case("BN020", "cumulative", None, model(norm(updates=5, cumulative=True))),
    Case(
        "BN020", "5 steps of the optimizer", "warning",
        model(norm(**UNCOUNTED), steps=5),
        figures={"updates": 5},
    ),
    Case(
        "BN020", "steps after another training", None,
        model(
            norm(**UNCOUNTED), norm("other", moving_variance=some(0.01, VARIANCE)), steps=5,
        ),
    ),
    Case(
        "BN020", "frozen while the optimizer took steps", None,
        model(norm(**UNCOUNTED, tracking=False), steps=5),
    ),
    Case("BN020", "debiased", None, model(norm(updates=5, debiased=True))),
    Case("BN021", "last batch", "warning", model(norm(momentum=0.0))),
    Case("BN021", "three batches", "warning", model(norm(momentum=0.5)), figures={"memory": 3}),
    Case("BN021", "enough", None, model(norm(momentum=0.7))),
    Case("BN021", "does not move", None, model(norm(momentum=0.0, tracking=False))),
    Case("BN022", "0.1", "warning", model(norm(momentum=0.1)), figures={"meant": 0.9}),
    Case("BN022", "0.01", "warning", model(norm(momentum=1 - 0.99)), figures={"meant": 0.99}),
    Case("BN022", "0.9", None, model(norm(momentum=0.9))),
    Case("BN022", "0.5", None, model(norm(momentum=0.5))),
    Case("BN023", "many", "warning", model(norm(skipped=100)), figures={"share": 100 / 1100}),
    Case("BN023", "few", "info", model(norm(skipped=1))),
    Case("BN023", "none", None, model(norm(skipped=0))),
    Case("BN024", "parameters frozen", "warning", model(norm(trainable=False))),
    Case("BN024", "statistics frozen", "info", model(norm(tracking=False))),
    Case("BN024", "both frozen", None, model(norm(trainable=False, tracking=False))),
    Case("BN024", "neither", None, model()),
    Case("BN025", "no statistics", "warning", model(norm(moving_mean=None, moving_variance=None))),
    Case("BN025", "one left", "warning", model(norm(training=True), norm("other"))),
    Case(
        "BN025", "others are frozen", "info",
        model(norm(training=True), norm("other", tracking=False)),
    ),
    Case("BN025", "all in training", "info", model(norm(training=True))),
    Case("BN025", "inference", None, model()),
    Case("BN026", "positions of 8 x 8", None, model(graph=CONV_BN), None, BATCH),
    Case(
        "BN026", "dense", "warning",
        model(graph=chain("dense", replace(BN, shape=(None, CHANNELS)))), None, BATCH,
        figures={"elements": 8},
    ),
    Case(
        "BN026", "one element", "error",
        model(graph=chain("dense", replace(BN, shape=(None, CHANNELS)))),
        None, Settings(batch_size=1),
    ),
    Case("BN026", "two images", "warning", model(graph=CONV_BN), None, Settings(batch_size=2)),
    Case(
        "BN026", "frozen", None, model(norm(tracking=False), graph=CONV_BN), None,
        Settings(batch_size=2),
    ),
    Case("BN027", "apart", "warning", model(distributed=True)),
    Case("BN027", "large", "info", model(distributed=True), None, Settings(batch_size=32)),
    Case("BN027", "together", None, model(norm(synchronized=True), distributed=True)),
    Case("BN027", "one device", None, model(distributed=False)),
    Case("BN030", "bias", "info", model(graph=chain(replace(CONV, bias=True), BN))),
    Case("BN030", "none", None, model(graph=CONV_BN)),
    Case(
        "BN030", "used elsewhere", None,
        model(
            graph=chain(
                replace(CONV, bias=True), BN, Operation("add", "add", inputs=("bn", "conv"))
            )
        ),
    ),
    Case("BN031", "behind", "info", model(graph=chain("conv", "activation", BN))),
    Case("BN031", "before", None, model(graph=chain("conv", BN, "activation"))),
    Case(
        "BN032", "half", "warning",
        model(graph=chain(Operation("drop", "dropout", rate=0.5), "conv", BN)),
        figures={"ratio": 2.0},
    ),
    Case(
        "BN032", "a tenth", "info",
        model(graph=chain(Operation("drop", "dropout", rate=0.1), "activation", "conv", BN)),
    ),
    Case("BN032", "behind", None, model(graph=chain("conv", BN, "dropout"))),
    Case("BN032", "a norm between", None, model(graph=chain("dropout", "conv", "other_norm", BN))),
    Case(
        "BN032", "off", None, model(graph=chain(Operation("drop", "dropout", rate=0.0), "conv", BN))
    ),
    Case("BN033", "last", "info", model(graph=chain("dense", BN, output=True))),
    Case(
        "BN033", "softmax", "info",
        model(
            graph=chain("dense", BN, Operation("s", "activation", type="Softmax"), output=True)
        ),
    ),
    Case(
        "BN033", "a backbone", None,
        model(graph=chain("conv", BN, Operation("r", "activation", type="relu"), output=True)),
    ),
    Case("BN033", "inside", None, model(graph=CONV_BN)),
    Case(
        "BN034", "two inputs", "warning",
        model(
            norm(operations=("bn", "bn_1")),
            graph=chain(BN, "conv", replace(BN, name="bn_1", layer="bn")),
        ),
        figures={"uses": 2},
    ),
    Case("BN034", "told by the layer", "warning", model(
        graph=chain(BN, "conv", replace(BN, name="bn_1", layer="bn")),
    )),
    Case("BN034", "the same input", None, model(
        norm(operations=("bn", "bn_1")),
        graph=chain("conv", BN, replace(BN, name="bn_1", layer="bn", inputs=("conv",))),
    )),
    Case("BN034", "once", None, model(graph=CONV_BN)),
    Case(
        "BN035", "behind a convolution", "info", model(graph=CONV_BN),
        figures={"norms": 1, "bytes": 3 * CHANNELS * 4, "operations": 64 * CHANNELS},
    ),
    Case(
        "BN035", "and a bias", "info", model(graph=chain(replace(CONV, bias=True), BN)),
        figures={"bytes": 4 * CHANNELS * 4},
    ),
    Case("BN035", "behind an activation", None, model(graph=chain("conv", "activation", BN))),
    Case("BN035", "shared convolution", None, model(
        graph=chain(CONV, BN, replace(CONV, name="conv_1", layer="conv"))
    )),
    Case("BN040", "the same", None, model(), observed()),
    Case("BN040", "all shifted", "error", model(), observed(MEAN + 3), figures={"affected": 16}),
    Case(
        "BN040", "a quarter", "warning",
        model(), observed(np.where(np.arange(16) < 4, MEAN + 1.2 * np.sqrt(VARIANCE), MEAN)),
        channels=(0, 1, 2, 3),
    ),
    Case(
        "BN040", "and what it does", "error",
        model(), replace(observed(MEAN + 3), alone={"bn": Behaviour(100, 0.5, 0.75, 0.5, 0.875)}),
        figures={"change": 0.5, "changed": 0.25, "drop": 0.375},
    ),
    Case(
        "BN040", "in a network of numbers", "error",
        model(), replace(observed(MEAN + 3), alone={"bn": Behaviour(100, 0.5)}),
        figures={"change": 0.5},
    ),
    Case("BN040", "one", "info", model(), observed(some(5.0, MEAN)), channels=(0,)),
    Case(
        "BN040", "beside one that is not finite", "error",
        model(norm(moving_mean=some(np.nan, MEAN), moving_variance=ONES, epsilon=0.0)),
        observed(MEAN + 3),
        channels=tuple(range(1, 16)), figures={"affected": 15, "worst": 3, "root_mean_square": 3},
    ),
    Case("BN040", "a little", None, model(), observed(MEAN + 0.3 * np.sqrt(VARIANCE))),
    Case("BN041", "the same", None, model(), observed()),
    Case("BN041", "ten times", "error", model(), observed(None, VARIANCE * 10)),
    Case("BN041", "a third", "warning", model(), observed(None, VARIANCE / 3)),
    Case("BN041", "a half more", None, model(), observed(None, VARIANCE * 1.5)),
    Case("BN042", "sample taken for population", "warning", model(), small_batches(8 / 7)),
    Case("BN042", "population", None, model(), small_batches(1.0)),
    Case(
        "BN042", "population taken for sample", "warning",
        model(norm(stored_variance="sample")), small_batches(1.0),
    ),
    Case(
        "BN042", "sample", None, model(norm(stored_variance="sample")), small_batches(8 / 7)
    ),
    Case("BN042", "something else", None, model(), small_batches(1.5)),
    Case("BN043", "agree", None, model(), behaves(agreement=0.97)),
    Case("BN043", "some", "warning", model(), behaves(agreement=0.7)),
    Case("BN043", "chance", "error", model(), behaves(agreement=0.1)),
    Case("BN043", "values", "warning", model(), behaves(difference=0.8)),
    Case("BN043", "close values", None, model(), behaves(difference=0.2)),
    Case("BN043", "NaN", "error", model(), behaves(difference=np.nan)),
    Case(
        "BN043", "inference is better", "info",
        model(), behaves(agreement=0.3, inference_accuracy=0.9, batch_accuracy=0.3),
    ),
    Case(
        "BN044", "chance", "error",
        model(), behaves(agreement=0.1, inference_accuracy=0.1, batch_accuracy=0.98),
    ),
    Case(
        "BN044", "some", "warning",
        model(), behaves(agreement=0.92, inference_accuracy=0.9, batch_accuracy=0.96),
    ),
    Case(
        "BN044", "within the noise", None,
        model(),
        behaves(examples=50, agreement=0.9, inference_accuracy=0.9, batch_accuracy=0.94),
    ),
]  # fmt: skip
