"""Audits of real networks, with the data that they were trained on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from homeostat.audit import audit, judge, observe
from homeostat.errors import DataError, SpecError, UnsupportedError
from homeostat.models import ModelRecord, adapt
from homeostat.rules import Audit, Settings, Thresholds
from tests.messages import has_three_parts
from tests.rules.cases import norm
from tests.rules.networks import BATCH, batches, convolutional, digits, train

SETTINGS = Settings(batch_size=BATCH)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return train(convolutional())


@pytest.fixture
def network(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


def found(audit: Audit, severity: str = "error") -> set[str]:
    return {finding.rule for finding in audit.findings if finding.severity == severity}


def test_a_healthy_network_is_clean(trained: nn.Module) -> None:
    seen = audit(trained, batches(), settings=SETTINGS)
    assert not found(seen, "error")
    assert not found(seen, "warning")
    assert found(seen, "info") == {"BN035"}
    behaviour = seen.observation.behaviour if seen.observation else None
    assert behaviour is not None
    assert behaviour.inference_accuracy is not None
    assert behaviour.inference_accuracy > 0.95
    assert {skipped.rule for skipped in seen.skipped} <= {"BN027", "BN042"}


def test_a_network_that_was_never_trained() -> None:
    seen = audit(convolutional().eval(), batches(), settings=SETTINGS)
    assert [one.norm for one in seen.findings if one.rule == "BN001"] == ["1", "4"]
    assert all("updates = 0" in one.message for one in seen.findings if one.rule == "BN001")


def test_a_network_trained_without_updates() -> None:
    forgetful = train(convolutional(), updates=False)
    seen = audit(forgetful, batches(), settings=SETTINGS)
    assert {"BN001", "BN041", "BN044"} <= found(seen)
    drop = next(one for one in seen.findings if one.rule == "BN044")
    images, classes = digits()
    with torch.no_grad():
        right = forgetful(torch.from_numpy(images[:1600])).argmax(1).numpy() == classes[:1600]
    assert drop.figures["inference"] == pytest.approx(right.mean(), abs=1e-9)
    assert drop.figures["batch"] > 0.95


def test_a_cold_start() -> None:
    seen = audit(train(convolutional(momentum=0.001), 4), settings=SETTINGS)
    assert found(seen) == {"BN020"}
    assert seen.findings[0].figures["weight"] == pytest.approx(0.999**100)


def test_dropout_before_a_norm() -> None:
    network = train(convolutional(dropout=0.5), 4)
    seen = audit(network, batches(), settings=SETTINGS)
    assert [(one.norm, one.severity) for one in seen.findings if one.rule == "BN032"] == [
        ("5", "warning")
    ]
    assert "BN041" not in {one.rule for one in seen.findings}
    # On data with dropout off, variances are 1.4 times smaller than those that it learned.
    strict = Settings(select=("BN041",), thresholds=Thresholds(log_variance_ratio=0.25))
    [shift] = audit(network, batches(), settings=strict).findings
    assert shift.norm == "5"
    assert -0.8 < shift.figures["worst"] < -0.3


def test_data_that_is_not_prepared_as_in_training(trained: nn.Module) -> None:
    seen = audit(trained, batches(scale=16), settings=SETTINGS)
    first = [one for one in seen.findings if one.norm == "1"]
    assert {"BN040", "BN041"} <= {one.rule for one in first if one.severity == "error"}


def test_a_conversion_that_kept_the_other_variance() -> None:
    """PyTorch's sample variances of batches of 8, taken for population variances."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64, momentum=0.02), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for epoch in range(3):
        for images, classes in batches(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), classes).backward()
            if epoch < 2:
                optimizer.step()
    live = adapt(network.eval())
    record, seen = live.record(), observe(live, batches(8))
    right = judge(record, seen, Settings(select=("BN042",)))
    assert not right.findings
    assert not right.skipped
    taken = record.norms[0].with_fields(stored_variance="population")
    wrong = judge(replace(record, norms=(taken,)), seen, Settings(select=("BN042",)))
    assert wrong.findings[0].figures["ratio"] == pytest.approx(8 / 7, rel=0.03)


def breaks(name: str) -> Any:
    def statistics(network: Any) -> None:
        network[1].running_mean[3] = float("nan")

    def negative(network: Any) -> None:
        network[1].running_var[2] = -1.0

    def weights(network: Any) -> None:
        network[4].weight.data[0] = float("inf")

    def killed(network: Any) -> None:
        network[4].weight.data.zero_()

    def momentum(network: Any) -> None:
        network[1].momentum = 0.99

    def far(network: Any) -> None:
        network[1].running_mean.fill_(1e6)

    def frozen(network: Any) -> None:
        for parameter in network[1].parameters():
            parameter.requires_grad = False

    return locals()[name]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("statistics", "BN002"),
        ("negative", "BN003"),
        ("far", "BN005"),
        ("weights", "BN010"),
        ("killed", "BN011"),
        ("momentum", "BN022"),
    ],
)
def test_what_breaks_a_network_is_found(network: nn.Module, change: str, rule: str) -> None:
    breaks(change)(network)
    speaking = {one.rule for one in audit(network).findings if one.severity != "info"}
    assert speaking == {rule}


@pytest.mark.parametrize("change", ["statistics", "negative", "weights", "far"])
def test_a_broken_network_is_run_without_a_crash(network: nn.Module, change: str) -> None:
    breaks(change)(network)
    seen = audit(network, batches(), settings=SETTINGS)
    assert found(seen)


def test_the_model_is_left_as_it_was(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    audit(network, batches(), settings=SETTINGS)
    assert not network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_shifts_are_those_of_the_pooled_inputs(trained: nn.Module) -> None:
    seen = audit(trained, batches(scale=3, size=100), settings=SETTINGS)
    images, _ = digits()
    with torch.no_grad():
        inputs = trained[0](torch.from_numpy(images[:1600] * 3)).double().numpy()  # type: ignore[index]
    mean, variance = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))
    first = trained[1]  # type: ignore[index]
    moving, spread = (
        getattr(first, name).double().numpy() for name in ("running_mean", "running_var")
    )
    shift = (mean - moving) / np.sqrt(spread + first.eps)
    ratio = np.log((variance * 6400 / 6399 + first.eps) / (spread + first.eps))
    figures = {one.rule: one.figures for one in seen.findings if one.norm == "1"}
    assert abs(figures["BN040"]["worst"]) == pytest.approx(np.abs(shift).max(), rel=1e-5)
    assert figures["BN041"]["root_mean_square"] == pytest.approx(
        np.sqrt(np.mean(ratio**2)), rel=1e-5
    )


def test_batches_are_pooled_by_count(trained: nn.Module) -> None:
    images, classes = digits()
    sizes = np.split(np.arange(1600), [64, 128, 132, 900])
    ragged = [(torch.from_numpy(images[part]), classes[part]) for part in sizes]
    live = adapt(trained)
    seen, whole = observe(live, ragged), observe(live, batches(1600))
    assert (seen.batches, seen.examples) == (5, 1600)
    # The first norm's inputs do not depend on batches.
    for one, other in zip(seen.inputs["1"], whole.inputs["1"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert seen.elements == {"1": 768 * 64, "4": 768 * 64}
    assert [float(np.max(m.count)) for m in seen.batch_moments["1"]] == [
        64 * len(part) for part in sizes
    ]


def test_labels_may_be_scores_and_weights_leave_examples_out(trained: nn.Module) -> None:
    images, classes = digits()
    inputs, wrong = torch.from_numpy(images[:100]), (classes[:100] + 1) % 10
    live = adapt(trained)
    right = np.eye(10)[classes[:100]]
    assert _accuracy(observe(live, [(inputs, right)])) > 0.9
    assert _accuracy(observe(live, [(inputs, wrong[:, None])])) < 0.1
    weights = np.r_[np.ones(50), np.zeros(50)].astype(np.float32)
    half = np.r_[classes[:50], wrong[50:]]
    assert _accuracy(observe(live, [(inputs, half, weights)])) > 0.9
    assert observe(live, [inputs]).behaviour.inference_accuracy is None  # type: ignore[union-attr]


def _accuracy(seen: Any) -> float:
    return seen.behaviour.inference_accuracy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "has no examples"),
        ([(torch.zeros(4, 1, 8, 8), np.zeros((4, 3)))], "do not fit outputs"),
        ([(torch.zeros(4, 1, 8, 8), np.array(["a", "b", "c", "d"]))], "do not fit outputs"),
    ],
)
def test_data_that_does_not_fit(trained: nn.Module, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        audit(trained, data)
    assert has_three_parts(raised.value)


def test_what_cannot_be_audited() -> None:
    with pytest.raises(UnsupportedError, match="no model that can be looked into"):
        audit(3)
    with pytest.raises(UnsupportedError, match="cannot run"):
        audit(ModelRecord("n", "keras", "s", (norm(),)), [np.zeros((2, 2))])
    with pytest.raises(SpecError, match="'BN9' is not known"):
        audit(ModelRecord("n", "keras", "s", ()), settings=Settings(select=("BN9",)))


def test_a_state_dict_is_audited(network: nn.Module) -> None:
    pytest.importorskip("homeostat.models.files.state_dict")
    network[1].running_var[2] = -1.0  # type: ignore[index]
    seen = audit(network.bfloat16().state_dict())
    assert [(one.rule, one.norm) for one in seen.findings] == [("BN003", "1")]


def test_settings_choose(network: nn.Module) -> None:
    breaks("statistics")(network)
    breaks("killed")(network)
    record = adapt(network).record()
    everything = judge(record)
    assert {"BN002", "BN011"} <= {one.rule for one in everything.findings}
    chosen = judge(record, None, Settings(select=("BN01",)))
    assert {rule.identifier[:4] for rule in chosen.rules} == {"BN01"}
    assert {one.rule for one in chosen.findings} == {"BN011"}
    at_one = judge(record, None, Settings(per_norm_ignores={"[1-2]": ("BN002", "BN03")}))
    assert {one.rule for one in at_one.findings} == {"BN011", "BN035"}


def test_what_each_shifted_norm_does(trained: nn.Module) -> None:
    data = list(batches(scale=16))
    given = iter(data)
    seen = audit(trained, given, settings=SETTINGS)
    assert next(given, None) is None
    assert seen.observation is not None
    shifted = {one.norm for one in seen.findings if one.rule in ("BN040", "BN041")}
    assert set(seen.observation.alone) <= shifted
    [finding] = [one for one in seen.findings if (one.rule, one.norm) == ("BN041", "1")]
    # The same by hand: the first norm alone takes the statistics of each of the first batches.
    changed, right, examples = 0, [0, 0], 0
    norm: Any = trained[1]  # type: ignore[index]
    for images, classes in data[:4]:
        with torch.no_grad():
            moving = trained(images).argmax(1)
            first = trained[0](images)  # type: ignore[index]
            x = nn.functional.batch_norm(
                first, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
            )
            one = trained[2:](x).argmax(1)  # type: ignore[index]
        changed += int((moving != one).sum())
        right[0] += int((moving == classes).sum())
        right[1] += int((one == classes).sum())
        examples += len(images)
    assert finding.figures["changed"] == pytest.approx(changed / examples)
    assert finding.figures["drop"] == pytest.approx((right[1] - right[0]) / examples)
    assert f"{changed / examples:.1%} of {examples:,} examples" in finding.message
    assert finding.figures["drop"] > 0.1


def test_a_healthy_network_is_not_measured_norm_by_norm(trained: nn.Module) -> None:
    seen = audit(trained, batches(), settings=SETTINGS)
    assert seen.observation is not None
    assert not seen.observation.alone
