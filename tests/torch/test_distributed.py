"""Two processes on gloo: plain replicas, broadcast buffers, and synchronized statistics."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from homeostat import BatchNormSpec, reference
from homeostat.torch import BatchNorm1d, BatchNorm2d

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="no gloo in this PyTorch"),
]


def _start(rank: int, folder: str, work: Callable[..., dict[str, Any]], given: Any) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = work(rank, given)
    np.savez(f"{folder}/{rank}.npz", **{n: t.detach().numpy() for n, t in found.items()})
    distributed.destroy_process_group()


def replicas(folder: Path, work: Callable[..., dict[str, Any]], given: Any = None) -> list[Any]:
    """Return what ``work(rank, given)`` found in each of two processes."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_start, args=(rank, str(folder), work, given)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    return [np.load(folder / f"{rank}.npz") for rank in range(2)]


def _batches(rank: int) -> list[Any]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(6, 4, generator=generator) + rank for _ in range(3)]


def _data_parallel(rank: int, broadcast: Any) -> dict[str, Any]:
    bn = BatchNorm1d(4, activation="relu")
    with torch.no_grad():
        bn.bias += rank
    model = DistributedDataParallel(bn, broadcast_buffers=broadcast)
    for x in _batches(rank):
        model(x).square().sum().backward()
    found = {name: buffer.clone() for name, buffer in bn.named_buffers()}
    return found | {"bias": bn.bias, "gradient": bn.weight.grad}


@pytest.mark.parametrize("broadcast", [False, True])
def test_data_parallel_statistics(broadcast: bool, tmp_path: Path) -> None:
    """Each replica's own; with broadcast buffers they start every step as those of the first."""
    found = replicas(tmp_path, _data_parallel, broadcast)
    for rank, part in enumerate(found):
        expected = BatchNorm1d(4)
        for first, mine in zip(_batches(0), _batches(rank), strict=True):
            if broadcast:
                # What this replica made of the step before is overwritten.
                twin = BatchNorm1d(4)
                twin.load_state_dict(expected.state_dict())
                twin(mine)
                expected(first)
            else:
                expected(mine)
                twin = expected
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            np.testing.assert_allclose(part[name], getattr(twin, name), rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(part["bias"], np.zeros(4))
        np.testing.assert_allclose(part["gradient"], found[0]["gradient"])


ROWS = (5, 2)


def _shard(rank: int, arrays: Any, name: str) -> Any:
    start = sum(ROWS[:rank])
    return torch.tensor(arrays[name][start : start + ROWS[rank]])


def _synchronized(rank: int, given: Any) -> dict[str, Any]:
    arrays, options = given
    bn = BatchNorm2d(3, synchronized=True, activation="relu", **options)
    with torch.no_grad():
        bn.weight.copy_(torch.tensor(arrays["gamma"]))
        bn.bias.copy_(torch.tensor(arrays["beta"]))
    x, r = (_shard(rank, arrays, name).requires_grad_() for name in ("x", "residual"))
    for _ in range(2):
        y = bn(x, r)
    found = torch.autograd.grad(y, (x, r, *bn.parameters()), _shard(rank, arrays, "dy"))
    names = ("dx", "dresidual", "dgamma", "dbeta")
    outcome = {"y": y, **dict(zip(names, found, strict=True)), **dict(bn.named_buffers())}
    # One replica's NaN is every replica's.
    if rank == 0:
        x = torch.full_like(x, torch.nan)
    bn(x.detach())
    outcome["skipped_later"] = bn.skipped_updates
    # Eval needs no other replica.
    if rank == 0:
        bn.eval()(torch.randn(1, 3, 2, 2))
    return outcome


@pytest.mark.parametrize("options", [{}, {"renorm": True, "momentum": 0.3}], ids=str)
def test_synchronized_replicas_are_one_batch(options: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shape = (sum(ROWS), 3, 2, 4)
    arrays = {n: rng.standard_normal(shape).astype(np.float32) for n in ("x", "dy", "residual")}
    arrays["x"] += np.arange(sum(ROWS), dtype=np.float32)[:, None, None, None]
    arrays["gamma"] = rng.uniform(0.5, 1.5, 3).astype(np.float32)
    arrays["beta"] = rng.standard_normal(3).astype(np.float32)
    found = replicas(tmp_path, _synchronized, (arrays, options))

    spec = BatchNormSpec(
        axis=1, momentum=1 - options.get("momentum", 0.1), epsilon=1e-5, activation="relu",
        stored_variance="sample", renorm=options.get("renorm", False),
    )  # fmt: skip
    given = (spec, arrays["gamma"], arrays["beta"])
    x, r = arrays["x"], arrays["residual"]
    first = reference.train_step(x, reference.start((3,)), *given, residual=r)
    second = reference.train_step(x, first.state, *given, residual=r)
    exact = reference.step_gradients(arrays["dy"], x, first.state, *given, residual=r)
    close = {"rtol": 1e-4, "atol": 3e-5}
    whole = {n: np.concatenate([part[n] for part in found]) for n in ("y", "dx", "dresidual")}
    np.testing.assert_allclose(whole["y"], second.y, **close)
    np.testing.assert_allclose(whole["dx"], exact.x, **close)
    np.testing.assert_allclose(whole["dresidual"], exact.residual, **close)
    # Whoever trains sums, or averages, these over replicas, as DistributedDataParallel does.
    np.testing.assert_allclose(sum(part["dgamma"] for part in found), exact.gamma, **close)
    np.testing.assert_allclose(sum(part["dbeta"] for part in found), exact.beta, **close)
    for part in found:
        np.testing.assert_allclose(part["running_mean"], second.state.mean, rtol=1e-5)
        np.testing.assert_allclose(part["running_var"], second.state.variance, rtol=1e-5)
        # Natives count every batch with something in it, the skipped one too.
        assert part["num_batches_tracked"] == 3
        np.testing.assert_array_equal(part["skipped_later"], [1, 1, 1])


def _groups(rank: int, _: Any) -> dict[str, Any]:
    groups = [distributed.new_group([each]) for each in range(2)]
    bn = BatchNorm1d(4, synchronized=True, process_group=groups[rank])
    bn(_batches(rank)[0])
    return {"running_mean": bn.running_mean}


def test_a_group_is_synchronized_alone(tmp_path: Path) -> None:
    for rank, part in enumerate(replicas(tmp_path, _groups)):
        mean = _batches(rank)[0].mean(0) * 0.1
        np.testing.assert_allclose(part["running_mean"], mean, rtol=1e-5)


def test_one_process_is_synchronized_with_itself() -> None:
    x = torch.randn(6, 4)
    bn, plain = BatchNorm1d(4, synchronized=True), BatchNorm1d(4)
    torch.testing.assert_close(bn(x), plain(x))
    torch.testing.assert_close(bn.state_dict(), plain.state_dict())
