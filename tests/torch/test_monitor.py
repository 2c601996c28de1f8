"""What `BatchNormMonitor` writes while a module trains, read back as TensorBoard reads it."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from homeostat import DataError, HomeostatWarning, SpecError, reference
from homeostat.torch import BatchNorm1d, BatchNorm2d, BatchNormMonitor, SyncBatchNorm
from tests.messages import has_three_parts
from tests.torch.networks import ResNet

EventAccumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator"
).EventAccumulator
EPSILON, MOMENTUM = 1e-3, 0.2
KINDS: dict[str, Any] = {"native": nn.BatchNorm1d, "homeostat": BatchNorm1d}
STATISTICS = ("mean_shift", "log_variance_ratio")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Threads of tiny batches wait for each other longer than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(folder: Path) -> Any:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return events


def scalars(folder: Path, tag: str) -> dict[int, float]:
    from tensorboard.util.tensor_util import make_ndarray

    events = read(folder)
    if tag not in events.Tags()["tensors"]:
        return {}
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}


def tags(folder: Path) -> set[str]:
    return set(read(folder).Tags()["tensors"])


def root(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def run(
    model: Any,
    batches: Iterable[Any],
    folder: Any,
    *,
    every: int = 1,
    epochs: int = 1,
    forward: Callable[..., Any] | None = None,
) -> None:
    """Train, as people do, and watch."""
    optimizer = torch.optim.SGD(list(model.parameters()), 0.01)
    with BatchNormMonitor(model, folder, observe_every=every) as monitor:
        for _ in range(epochs):
            for batch in batches:
                optimizer.zero_grad()
                (forward or model)(torch.tensor(batch)).square().mean().backward()
                optimizer.step()
                monitor.step()
            monitor.end_epoch()


@pytest.fixture
def batches(rng: np.random.Generator) -> np.ndarray:
    """Twelve batches of 16, whose mean and spread move."""
    steps = np.arange(12)[:, None, None]
    values = rng.normal(size=(12, 16, 5)) * (1 + 0.1 * steps) + 3 + 0.2 * steps
    return values.astype("float32")


def expected(batches: Any, weight_of: Callable[[int], float] = lambda _: MOMENTUM) -> Any:
    """Shift and log ratio of each batch against the averages before it, in float64."""
    mean, variance, found = np.zeros(5), np.ones(5), []
    for step, batch in enumerate(batches):
        moments, weight = reference.moments(batch), weight_of(step)
        sample = moments.sample_variance(np)
        scale = variance + EPSILON
        shift = (moments.mean - mean) / np.sqrt(scale)
        found.append((shift, np.log((sample + EPSILON) / scale)))
        mean += weight * (moments.mean - mean)
        variance += weight * (sample - variance)
    return found


def same(folder: Path, truth: Any, name: str = "0", *, every: int = 1, rel: float = 1e-4) -> None:
    """Compare what was written with what NumPy says."""
    for index, tag in enumerate(STATISTICS):
        found, largest = (scalars(folder, f"{name}/{tag}{end}") for end in ("", "_max"))
        assert list(found) == list(largest) == list(range(0, len(truth), every))
        for step, value in found.items():
            assert value == pytest.approx(root(truth[step][index]), rel=rel, abs=1e-4)
            most = np.abs(truth[step][index]).max()
            assert largest[step] == pytest.approx(most, rel=rel, abs=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "native sync", "homeostat sync"])
@pytest.mark.parametrize("every", [1, 5])
def test_drift_is_that_of_each_batch_against_the_statistics_before_it(
    kind: str, every: int, batches: Any, tmp_path: Path
) -> None:
    if kind == "native sync":
        # Its forward is for accelerators; the statistics are those that it stores.
        norm: Any = nn.SyncBatchNorm(5, EPSILON, MOMENTUM)
        norm.forward = lambda x: nn.BatchNorm1d.forward(norm, x)
        norm._check_input_dim = lambda x: None
    else:
        make = {**KINDS, "homeostat sync": SyncBatchNorm}[kind]
        norm = make(5, EPSILON, MOMENTUM)
    run(nn.Sequential(norm), batches, tmp_path, every=every)
    same(tmp_path, expected(batches), every=every)


@pytest.mark.parametrize(
    ("kind", "options", "weight_of"),
    [
        ("native", {"momentum": None}, lambda step: 1 / (step + 1)),
        ("homeostat", {"momentum": None}, lambda step: 1 / (step + 1)),
        (
            "homeostat",
            {"momentum": 0.1, "zero_debias": True},
            lambda step: 0.1 / (1 - 0.9 ** (step + 1)),
        ),
    ],
)
def test_drift_of_averages_whose_weights_change(
    kind: str, options: Any, weight_of: Any, batches: Any, tmp_path: Path
) -> None:
    run(nn.Sequential(KINDS[kind](5, eps=EPSILON, **options)), batches, tmp_path)
    same(tmp_path, expected(batches, weight_of), rel=1e-3)


def test_drift_under_renorm(batches: Any, tmp_path: Path) -> None:
    run(BatchNorm1d(5, EPSILON, MOMENTUM, renorm=True), batches[:2], tmp_path)
    first, second = (reference.moments(batch) for batch in batches[:2])
    stddev = 0.8 * np.sqrt(1 + EPSILON) + 0.2 * np.sqrt(first.sample_variance(np) + EPSILON)
    shift, ratio = (scalars(tmp_path, f"BatchNorm1d/{tag}")[1] for tag in STATISTICS)
    assert shift == pytest.approx(root((second.mean - 0.2 * first.mean) / stddev), rel=1e-3)
    logs = np.log((second.sample_variance(np) + EPSILON) / stddev**2)
    assert ratio == pytest.approx(root(logs), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_that_runs_twice_in_a_step_shows_the_average(
    kind: str, batches: Any, tmp_path: Path
) -> None:
    norm = KINDS[kind](5, EPSILON, MOMENTUM)
    run(norm, batches, tmp_path, forward=lambda x: norm(x) + norm(2 * x))
    mean = (0.2 * 0.8 * batches[0].mean(0) + 0.2 * 2 * batches[0].mean(0)) / (1 - 0.8**2)
    found = scalars(tmp_path, f"BatchNorm1d/{STATISTICS[0]}")
    assert found[0] == pytest.approx(root(mean / np.sqrt(1 + EPSILON)), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing(kind: str, batches: Any, tmp_path: Path) -> None:
    norm = KINDS[kind](5, EPSILON, MOMENTUM)
    part = nn.Sequential(nn.Identity(), norm)
    run(part, batches[:1], tmp_path, forward=lambda x: checkpoint(part, x, use_reentrant=False))
    # PyTorch's own moves a second time in the backward.
    assert int(norm.num_batches_tracked) == (2 if kind == "native" else 1)
    same(tmp_path, expected(batches[:1]), "1")


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, batches: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 5), KINDS[kind](5, EPSILON, MOMENTUM))
    seen = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            seen.append(model[0](x).detach())
            return model[1](seen[-1])

    run(model, batches[:1], tmp_path, forward=forward)
    assert seen[0].dtype == torch.bfloat16
    same(tmp_path, expected([seen[0].double().numpy()]), "1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_model_stays_one_graph(kind: str, batches: Any, tmp_path: Path) -> None:
    model = nn.Sequential(KINDS[kind](5, EPSILON, MOMENTUM), nn.ReLU())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(compiled, batches, tmp_path, every=5)
    same(tmp_path, expected(batches), every=5)


def test_data_parallel_names_are_those_of_the_model(batches: Any, tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        norm = nn.BatchNorm1d(5, EPSILON, MOMENTUM)
        model = nn.parallel.DistributedDataParallel(nn.Sequential(norm))
        run(model, batches, tmp_path / "logs")
    finally:
        torch.distributed.destroy_process_group()
    same(tmp_path / "logs", expected(batches))


def test_wrappers_inside_a_model_are_no_part_of_names(tmp_path: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    block = checkpoint_wrapper(nn.Sequential(nn.BatchNorm1d(2)))
    run(nn.Sequential(block), [np.ones((3, 2), "float32")], tmp_path)
    assert "0.0/mean_shift" in tags(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_gamma_and_beta_are_written_after_each_epoch(
    kind: str, batches: Any, tmp_path: Path
) -> None:
    from tensorboard.util.tensor_util import make_ndarray

    norm = KINDS[kind](5)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(5.0))
    run(nn.Sequential(norm), batches, tmp_path, epochs=2)
    written = read(tmp_path).Tensors("0/gamma")
    assert [event.step for event in written] == [12, 24]
    buckets = make_ndarray(written[-1].tensor_proto)
    assert buckets[:, 2].sum() == 5
    assert buckets[0, 0] == pytest.approx(norm.weight.min().item(), rel=1e-5)
    assert buckets[-1, 1] == pytest.approx(norm.weight.max().item(), rel=1e-5)
    assert "0/beta" in tags(tmp_path)


def test_skipped_updates_are_counted_and_leave_no_drift(batches: Any, tmp_path: Path) -> None:
    batches[2, 3, 2] = np.nan
    model = BatchNorm1d(5, EPSILON, MOMENTUM)
    # The NaN is gone from the statistics, but not from the gradients.
    with pytest.warns(HomeostatWarning, match="BN010 nonfinite-parameters after epoch 1"):
        run(model, batches, tmp_path, forward=lambda x: model(x).nan_to_num())
    skipped = scalars(tmp_path, "BatchNorm1d/skipped_updates")
    assert [skipped[step] for step in range(12)] == [0, 0, *[1] * 10]
    shift = expected(np.nan_to_num(batches))[2][0]
    kept = [0, 1, 3, 4]
    found = scalars(tmp_path, "BatchNorm1d/mean_shift")[2]
    assert found == pytest.approx(root(shift[kept]), rel=1e-4)


def test_statistics_that_are_not_finite_are_warned_of_once(batches: Any, tmp_path: Path) -> None:
    batches[2, 3, 2] = np.inf
    with pytest.warns(HomeostatWarning, match="after epoch 1: ") as caught:
        run(nn.Sequential(nn.BatchNorm1d(5)), batches, tmp_path, epochs=3)
    ours, rule = (each for each in caught if each.category is HomeostatWarning)
    assert ours.filename == rule.filename == __file__
    assert has_three_parts(ours.message)
    assert str(ours.message).startswith("'0': moving statistics hold NaN or infinity")
    assert str(rule.message).startswith("'0': BN010 nonfinite-parameters after epoch 1")


def test_what_rules_find_is_warned_of_once(batches: Any, tmp_path: Path) -> None:
    batches[:, :, :4] = 3.0
    with pytest.warns(HomeostatWarning, match="'0': BN004 vanishing-variance") as caught:
        run(nn.Sequential(nn.BatchNorm1d(5, momentum=0.9)), batches, tmp_path, epochs=2)
    assert len([each for each in caught if each.category is HomeostatWarning]) == 1


def forgotten(model: Any) -> None:
    model.eval()


def unused(model: Any) -> None:
    model[0].register_module("auxiliary", nn.BatchNorm1d(5))


@pytest.mark.parametrize(("do", "name"), [(forgotten, "0"), (unused, "0.auxiliary")])
def test_statistics_that_never_move_are_warned_of(
    do: Any, name: str, batches: Any, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1))
    do(model)
    told = rf"'{name}': moving statistics did not move in epoch 1: .* model.train\(\)"
    with pytest.warns(HomeostatWarning, match=f"^{told}"):
        run(model, batches, tmp_path)
    assert f"{name}/mean_shift" not in tags(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BatchNorm1d(5, frozen_statistics=True),
        lambda: BatchNorm1d(5, inference_mode=True),
        lambda: nn.BatchNorm1d(5, momentum=0.0),
        lambda: nn.BatchNorm1d(5).eval(),
    ],
    ids=["frozen statistics", "inference mode", "momentum 0", "eval mode of its own"],
)
def test_statistics_that_are_to_stay_are_not_warned_of(
    make: Any, batches: Any, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", HomeostatWarning)
        run(nn.Sequential(make(), nn.Linear(5, 1)), batches, tmp_path)
        model = nn.Sequential(nn.BatchNorm1d(5).requires_grad_(False), nn.Linear(5, 1)).eval()
        run(model, batches, tmp_path)
        # Nothing is trained, so nothing should have moved.
        BatchNormMonitor(nn.BatchNorm1d(2), tmp_path).end_epoch()
    assert "0/mean_shift" not in tags(tmp_path)
    assert "0/gamma" in tags(tmp_path)


def test_validation_at_the_end_of_an_epoch_changes_nothing(batches: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(5, EPSILON, MOMENTUM))
    with warnings.catch_warnings(), BatchNormMonitor(model, tmp_path, 1) as monitor:
        warnings.simplefilter("error", HomeostatWarning)
        for epoch in range(2):
            model.train()
            for batch in batches[6 * epoch : 6 * epoch + 6]:
                model(torch.tensor(batch))
                monitor.step()
            model.eval()(torch.full((4, 5), 1e6))
            monitor.end_epoch()
    same(tmp_path, expected(batches))


@pytest.mark.parametrize("kind", ["native", "homeostat"])
def test_the_model_is_not_touched(kind: str, tmp_path: Path) -> None:
    def train(*, watched: bool) -> Any:
        torch.manual_seed(0)
        model: Any = ResNet()
        if kind == "homeostat":
            from homeostat.torch import convert

            model = convert(model).model
        optimizer, outputs = torch.optim.SGD(model.parameters(), 0.1), []
        monitor = BatchNormMonitor(model, tmp_path, 2) if watched else None
        for _ in range(3):
            y = model(torch.randn(4, 3, 16, 16))
            y.square().mean().backward()
            optimizer.step()
            outputs.append(y)
            if monitor:
                monitor.step()
        for part in model.modules():
            assert not part._forward_hooks
            assert not part._forward_pre_hooks
        # While it is watched a model can be copied, saved and pickled.
        assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()
        assert type(pickle.loads(pickle.dumps(model))) is type(model)  # noqa: S301
        torch.save(model.state_dict(), io.BytesIO())
        assert all(part.training for part in model.modules())
        return [*outputs, *model.state_dict().values()]

    for one, other in zip(train(watched=True), train(watched=False), strict=True):
        assert torch.equal(one, other)
    norms = [name for name, part in ResNet().named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert {f"{name}/mean_shift" for name in norms} <= tags(tmp_path)


def test_steps_that_are_not_observed_read_nothing(batches: Any, tmp_path: Path) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    model = nn.Sequential(nn.BatchNorm1d(5))
    with BatchNormMonitor(model, tmp_path, observe_every=4) as monitor:
        counts = []
        for batch in batches:
            model(torch.tensor(batch))
            calls.clear()
            with Counting():
                monitor.step()
            counts.append(len(calls))
    # The statistics are copied after the step before, and after an observed one.
    assert [step for step, count in enumerate(counts) if count] == [0, 3, 4, 7, 8, 11]


def test_a_momentum_that_changes_between_leaves_a_step_out(batches: Any, tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(5, EPSILON, 0.5)
    with BatchNormMonitor(norm, tmp_path, 1) as monitor:
        for step, batch in enumerate(batches[:4]):
            norm.momentum = 0.5 if step < 2 else 0.1
            norm(torch.tensor(batch))
            monitor.step()
    assert list(scalars(tmp_path, "BatchNorm1d/mean_shift")) == [0, 1, 3]


def test_lazy_norms_are_seen_once_they_have_channels(batches: Any, tmp_path: Path) -> None:
    run(nn.Sequential(nn.LazyBatchNorm1d(EPSILON, MOMENTUM), nn.Linear(5, 1)), [], tmp_path)
    model = nn.Sequential(nn.LazyBatchNorm1d(EPSILON, MOMENTUM))
    with BatchNormMonitor(model, tmp_path, 1) as monitor:
        for batch in batches[:3]:
            model(torch.tensor(batch))
            monitor.step()
    assert list(scalars(tmp_path, "0/mean_shift")) == [1, 2]


def test_half_precision_and_bfloat16_are_written(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(1, 2, (64, 5)).astype("float32")
    model = nn.Sequential(BatchNorm1d(5, EPSILON, MOMENTUM, dtype=torch.bfloat16))
    run(model, [x], tmp_path, forward=lambda x: model(x.bfloat16()).float())
    same(tmp_path, expected([torch.tensor(x).bfloat16().double().numpy()]), rel=1e-3)
    assert "0/gamma" in tags(tmp_path)


def test_training_that_goes_on_counts_on(batches: Any, tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(5)
    for first in (0, 12):
        with BatchNormMonitor(norm, tmp_path, 5, first_step=first) as monitor:
            for batch in batches:
                norm(torch.tensor(batch))
                monitor.step()
    assert sorted(scalars(tmp_path, "BatchNorm1d/mean_shift")) == [0, 5, 10, 15, 20]


def test_a_given_summary_writer_stays_open(batches: Any, tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    model = nn.Sequential(BatchNorm1d(5, EPSILON, MOMENTUM))
    with SummaryWriter(tmp_path) as writer:
        run(model, batches, writer)
        writer.add_scalar("loss", 1.0, 12)
    events = read(tmp_path)
    truth = [root(shift) for shift, _ in expected(batches)]
    found = [event.value for event in events.Scalars("0/mean_shift")]
    np.testing.assert_allclose(found, truth, rtol=1e-4)
    assert len(events.Scalars("loss")) == 1
    assert {"0/gamma", "0/beta"} == set(events.Tags()["histograms"])


def test_what_was_written_is_there_when_the_body_raises(batches: Any, tmp_path: Path) -> None:
    norm = BatchNorm2d(5)
    monitor = BatchNormMonitor(norm, tmp_path, observe_every=1)

    def train() -> None:
        with monitor:
            norm(torch.tensor(batches[0])[:, :, None, None])
            monitor.step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert list(scalars(tmp_path, "BatchNorm2d/mean_shift")) == [0]
    # A closed one does nothing.
    monitor.step()
    monitor.end_epoch()
    monitor.close()


@pytest.mark.parametrize("every", [0, -1, 2.5, True, None])
def test_every_how_many_steps_must_be_a_positive_integer(every: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="observe_every") as caught:
        BatchNormMonitor(nn.BatchNorm1d(2), tmp_path, observe_every=every)
    assert has_three_parts(caught.value)


def test_what_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no event file can be written"):
        BatchNormMonitor(nn.BatchNorm1d(2), tmp_path / "file" / "logs")
    with pytest.raises(SpecError, match="log_dir is a int") as caught:
        BatchNormMonitor(nn.BatchNorm1d(2), 3)
    assert has_three_parts(caught.value)


def test_without_tensorboard_it_says_what_to_install() -> None:
    script = (
        "import sys\n"
        "sys.modules['tensorboard'] = None\n"
        "from homeostat.torch import BatchNormMonitor\n"
        "BatchNormMonitor(None, 'logs')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtraError" in done.stderr
    assert "pip install 'homeostat[tensorboard]'" in done.stderr
