"""Statistics from data: what is written is the population's, and nothing is written by halves."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat import reference
from homeostat.errors import DataError, SpecError
from homeostat.models import adapt
from homeostat.moments import Moments
from homeostat.recalibrate import Pooled, recalibrate
from homeostat.torch import BatchNorm1d


def drifting(sizes: tuple[int, ...], channels: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Batches whose mean and spread change from one to the next."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(5.0 * i - 3, 1.0 + i, (size, channels)).astype(np.float32)
        for i, size in enumerate(sizes)
    ]


def network(norm: Any = nn.BatchNorm1d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 5), norm(5)
    )


def oracle(x: Any) -> Moments:
    return reference.moments(np.asarray(x, np.float64), -1)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=tolerance, atol=0)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 1e3, 1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_pooled_moments_are_those_of_all_elements(
    sizes: list[int], offset: float, seed: int
) -> None:
    batches = [b.astype(np.float64) + offset for b in drifting(tuple(sizes), seed=seed)]
    pooled = Pooled()
    for batch in batches:
        pooled.add(oracle(batch))
    whole = oracle(np.concatenate(batches))
    assert_close(pooled.moments.mean, whole.mean, 1e-9)
    np.testing.assert_allclose(pooled.moments.variance, whole.variance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm1d])
@pytest.mark.parametrize("order", ["as they come", "shuffled"])
def test_ragged_drifting_batches_give_the_populations_statistics(norm: Any, order: str) -> None:
    model = nn.Sequential(norm(3))
    batches = drifting((64, 64, 4, 1, 17))
    if order == "shuffled":
        batches = [batches[i] for i in (3, 1, 4, 0, 2)]
    done = recalibrate(model, batches)
    whole = oracle(np.concatenate(batches))
    assert_close(model[0].running_mean, whole.mean)
    count = len(np.concatenate(batches))
    assert_close(model[0].running_var, whole.variance * count / (count - 1))
    assert (done.batches, done.examples, done.left) == (5, 150, ())
    assert_close(done.norms[0].statistics.variance, whole.variance)


def test_what_update_bn_of_torch_gets_wrong() -> None:
    # Three batches of 64, 64 and 4 examples, the last far away: its mean counts as a third there.
    rng = np.random.default_rng(0)
    batches = [rng.normal(m, 1, (n, 2)).astype(np.float32) for n, m in ((64, 0), (64, 0), (4, 10))]
    whole = oracle(np.concatenate(batches))
    theirs = nn.Sequential(nn.BatchNorm1d(2))
    torch.optim.swa_utils.update_bn([torch.tensor(b) for b in batches], theirs)
    assert np.all(theirs[0].running_mean.numpy() > 3 * whole.mean)
    assert np.all(theirs[0].running_var.numpy() < whole.variance / 2)
    ours = nn.Sequential(nn.BatchNorm1d(2))
    recalibrate(ours, batches)
    assert_close(ours[0].running_mean, whole.mean)
    assert_close(ours[0].running_var, whole.variance * 132 / 131)


def test_together_every_norm_takes_its_batchs_statistics() -> None:
    model, batches = network(), drifting((8, 20, 3))
    recalibrate(model, batches)
    seen = []
    copied = copy.deepcopy(model).train()
    copied[3].eval()
    for batch in batches:
        with torch.no_grad():
            seen.append(copied[:5](torch.tensor(batch)).numpy())
    whole = oracle(np.concatenate(seen))
    assert_close(model[5].running_mean, whole.mean, 1e-5)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm1d])
def test_in_order_every_norm_is_behind_final_ones(norm: Any) -> None:
    model, batches = network(norm).eval(), drifting((8, 20, 3))
    seen: list[str] = []
    done = recalibrate(
        model, batches, method="in order", progress=lambda what, _: seen.append(what)
    )
    everything = torch.tensor(np.concatenate(batches))
    with torch.no_grad():
        first, last = model[:1](everything), model[:5](everything)
    assert_close(model[1].running_mean, oracle(first).mean, 1e-5)
    assert_close(model[5].running_mean, oracle(last).mean, 1e-5)
    assert_close(model[5].running_var, oracle(last).variance * 31 / 30, 1e-5)
    assert [norm.name for norm in done.norms] == ["1", "5"]
    assert seen == ["norm 1"] * 3 + ["norm 2 of 2"] * 3


def state_of(model: nn.Module) -> dict[str, Any]:
    modules = list(model.modules())
    return {
        **{name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in modules],
        "momenta": [getattr(module, "momentum", None) for module in modules],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules
        ],
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name]
        assert same, name


class LoaderError(Exception):
    """What a loader of a user may raise."""


def breaking(error: BaseException, after: int) -> Any:
    class Loader:
        passes = 0

        def __iter__(self) -> Iterator[np.ndarray]:
            self.passes += 1
            for number, batch in enumerate(drifting((4,) * 4)):
                if number == after and self.passes == passes:
                    raise error
                yield batch

    passes = 2 if after < 0 else 1
    after = abs(after)
    return Loader()


@pytest.mark.parametrize("error", [LoaderError("no more"), KeyboardInterrupt()])
@pytest.mark.parametrize(("method", "after"), [("together", 2), ("in order", 1), ("in order", -2)])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm1d])
def test_a_failure_leaves_the_model_as_it_was(
    error: BaseException, method: Any, after: int, norm: Any
) -> None:
    model = network(norm)
    model[0].eval()
    before = state_of(model)
    with pytest.raises(type(error)):
        recalibrate(model, breaking(error, after), method=method)
    assert_same(state_of(model), before)


def test_data_shorter_than_the_limit_is_fine() -> None:
    model = network()
    assert recalibrate(model, drifting((4, 4)), limit=100).batches == 2
    assert recalibrate(model, drifting((4, 4, 4)), limit=2).batches == 2


def test_weights_count() -> None:
    batches, model = drifting((6, 5)), nn.Sequential(nn.BatchNorm1d(3))
    weights = [np.float32([1, 0, 1, 1, 0, 1]), np.float32([0, 0, 1, 1, 1])]
    recalibrate(model, [(b, None, w) for b, w in zip(batches, weights, strict=True)])
    kept = np.concatenate([b[w > 0] for b, w in zip(batches, weights, strict=True)])
    assert_close(model[0].running_mean, oracle(kept).mean)


def test_channels_that_are_not_finite_are_left_out_of_their_batch() -> None:
    batches = drifting((6, 5, 7))
    batches[1][2, 0] = np.nan
    model = nn.Sequential(nn.BatchNorm1d(3))
    done = recalibrate(model, batches)
    assert done.norms[0].skipped == 1
    assert_close(model[0].running_mean[0], oracle(np.concatenate(batches[::2])).mean[0])
    assert_close(model[0].running_mean[1], oracle(np.concatenate(batches)).mean[1])


def test_norms_without_a_finite_batch_are_left_and_named() -> None:
    model = network()
    model[1].running_mean.fill_(7)
    done = recalibrate(model, [np.full((4, 3), np.inf, np.float32)])
    assert (done.norms, done.left) == ((), ("1", "5"))
    assert model[1].running_mean.eq(7).all()


def test_it_stops_when_the_figures_are_certain() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(2, 3, (100, 3)).astype(np.float32) for _ in range(200)]
    model = nn.Sequential(nn.BatchNorm1d(3))
    done = recalibrate(model, batches, tolerance=0.03)
    assert done.converged
    assert 8 <= done.batches < 60
    assert done.norms[0].error < 0.03
    whole = oracle(np.concatenate(batches))
    off = np.abs(np.asarray(model[0].running_mean) - whole.mean) / np.sqrt(whole.variance)
    assert np.all(off < 3 * 0.03)
    assert not recalibrate(model, batches[:8], tolerance=1e-6).converged


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    rng = np.random.default_rng(1)
    found, means = [], []
    for _ in range(300):
        pooled = Pooled()
        for _ in range(20):
            # Images of 9 like pixels: only images are independent.
            pooled.add(oracle(np.repeat(rng.normal(50, 2, (8, 1)), 9, axis=0)))
        found.append(pooled.error())
        means.append(pooled.moments.mean[0])
        variance = float(pooled.moments.variance[0])
    assert abs(np.std(means) - 2 / np.sqrt(160)) < 0.015
    # The error of a variance, relative to it, is about sqrt(2 / images); it is the larger one.
    assert np.median(found) == pytest.approx(np.sqrt(2 / 160), rel=0.15)
    assert variance > 0


def test_one_batch_tells_nothing_of_its_error() -> None:
    done = recalibrate(nn.Sequential(nn.BatchNorm1d(3)), drifting((9,)))
    assert np.isnan(done.norms[0].error)


def test_memory_does_not_grow_with_the_data() -> None:
    model = network()

    def peak(count: int) -> int:
        tracemalloc.start()
        recalibrate(model, (b for _ in range(count) for b in drifting((16,))))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(5)
    assert peak(160) < 1.5 * peak(20)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "one by one"}, SpecError, "'one by one' is not known"),
        ({"tolerance": 0}, SpecError, "tolerance=0 is out of range"),
        ({"batches": iter(drifting((4,))), "method": "in order"}, SpecError, "once"),
        ({"batches": []}, DataError, "no batch"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"batches": drifting((4,)), **options}
    model = network()
    before = state_of(model)
    with pytest.raises(error, match=message):
        recalibrate(model, **given)
    assert_same(state_of(model), before)


def test_an_adapter_is_taken_as_it_is() -> None:
    model = network()
    assert len(recalibrate(adapt(model), drifting((4, 4))).norms) == 2


def test_the_standard_error_of_two_batches_by_hand() -> None:
    pooled = Pooled()
    for mean in (0.0, 2.0):
        pooled.add(Moments(np.float64(10), np.array([mean]), np.array([3.0])))
    # The means are 1 from the pooled one, the pooled variance is 4; the squares about the first
    # mean, 3 and 7, are 2 from theirs. With shares of 1/2 and the factor 2 / (2 - 1):
    mean, variance = np.sqrt(2 * (2 * 0.25 * 1)) / 2, np.sqrt(2 * (2 * 0.25 * 4)) / 4
    assert pooled.error() == pytest.approx(max(mean, variance))
