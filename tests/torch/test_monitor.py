from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from homeostat.errors import SpecError
from homeostat.torch import BatchNorm1d, BatchNorm2d, BatchNormMonitor
from tests.messages import has_three_parts
from tests.torch.networks import ResNet


class Rows:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[int, str], float] = {}
        self.histograms: dict[tuple[int, str], np.ndarray] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[step, tag] = value

    def add_histogram(self, tag: str, values: Any, step: int) -> None:
        self.histograms[step, tag] = values.numpy().copy()


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNorm2d])
def test_drift_is_against_the_statistics_before_the_batch(make: Any, rng: Any) -> None:
    bn, rows = make(3, momentum=0.5), Rows()
    monitor = BatchNormMonitor(nn.Sequential(bn), rows, every=2)
    for step in range(4):
        x = rng.normal(step, 1 + step, (8, 3, 4, 4)).astype("float32")
        mean, variance = bn.running_mean.double().numpy(), bn.running_var.double().numpy() + 1e-5
        shift = np.abs(x.mean((0, 2, 3), dtype="float64") - mean) / np.sqrt(variance)
        batch = x.astype("float64").var((0, 2, 3), ddof=1) + 1e-5
        ratio = np.abs(np.log(batch / variance))
        bn(torch.tensor(x))
        monitor.step()
        found = {tag: value for (at, tag), value in rows.scalars.items() if at == step}
        if step % 2:
            assert found == {}
            continue
        for what, channels in (("mean_shift", shift), ("log_variance_ratio", ratio)):
            assert found[f"batch_norm/0/{what}"] == pytest.approx(channels.mean(), rel=1e-4)
            assert found[f"batch_norm/0/{what}_max"] == pytest.approx(channels.max(), rel=1e-4)
        np.testing.assert_array_equal(rows.histograms[step, "batch_norm/0/gamma"], np.ones(3))
    assert len(rows.histograms) == 4


def test_skipped_updates_and_channels_that_are_not_finite() -> None:
    bn, rows = BatchNorm1d(2), Rows()
    with BatchNormMonitor(bn, rows, every=1) as monitor:
        bn(torch.tensor([[1.0, torch.nan], [3.0, 1.0]]))
        monitor.step()
    assert rows.scalars[0, "batch_norm/BatchNorm1d/skipped_updates"] == 1
    assert rows.scalars[0, "batch_norm/BatchNorm1d/mean_shift_max"] == pytest.approx(2, rel=1e-4)


def test_a_shared_norm_has_the_worst_of_its_calls() -> None:
    bn, rows = nn.BatchNorm1d(1, momentum=0.0), Rows()
    with BatchNormMonitor(nn.ModuleList([bn, bn]), rows, every=1) as monitor:
        for offset in (1.0, 5.0, 2.0):
            bn(torch.tensor([[offset - 1], [offset + 1]]))
        bn.eval()(torch.tensor([[90.0]]))
        monitor.step()
        monitor.step()
    assert rows.scalars[0, "batch_norm/0/mean_shift"] == pytest.approx(5, rel=1e-4)
    assert {step for step, _ in rows.scalars} == {0}


def test_training_is_as_without() -> None:
    def train(monitored: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = ResNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = BatchNormMonitor(model, Rows(), every=2) if monitored else None
        for _ in range(3):
            model(torch.randn(4, 3, 16, 16)).square().mean().backward()
            optimizer.step()
            if monitor:
                monitor.step()
        if monitor:
            monitor.close()
            assert len(monitor.writer.histograms) == 2 * 2 * 6
            assert not any(part._forward_pre_hooks for part in model.modules())
        return model.state_dict()

    for one, other in zip(train(True).values(), train(False).values(), strict=True):
        assert torch.equal(one, other)


def test_the_hooks_go_when_the_body_raises() -> None:
    bn = nn.BatchNorm1d(2)
    with pytest.raises(KeyboardInterrupt), BatchNormMonitor(bn, Rows()):
        raise KeyboardInterrupt
    assert not bn._forward_pre_hooks
    with pytest.raises(SpecError, match="every=0") as caught:
        BatchNormMonitor(bn, Rows(), every=0)
    assert has_three_parts(caught.value)


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with SummaryWriter(tmp_path) as writer, BatchNormMonitor(model, writer, every=1) as monitor:
        for _ in range(3):
            model(torch.randn(8, 3))
            monitor.step()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("batch_norm/1/mean_shift")] == [0, 1, 2]
    assert {"batch_norm/1/gamma", "batch_norm/1/beta"} == set(events.Tags()["histograms"])
