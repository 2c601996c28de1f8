"""The loops under threads, forks, odd memory and bounds checks."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba", reason="the CPU kernels need numba")
torch = pytest.importorskip("torch")
ops = pytest.importorskip("homeostat.ops.torch")

from homeostat.kernels import threads  # noqa: E402
from tests.command import run_homeostat  # noqa: E402
from tests.ops.adapters import kernels_for_all  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
LARGE = (16, 24, 40, 40)


def step(x: Any, activation: Any = "relu") -> list[bytes]:
    """Return a training step's results, bit by bit."""
    x = x.detach().requires_grad_()
    with kernels_for_all():
        y, batch = ops.normalize_batch(x, axis=1, activation=activation)
        y.sum().backward()
    return [t.detach().numpy().tobytes() for t in (y, x.grad, batch.mean, batch.variance)]


def draw(seed: int, last: bool = False) -> Any:
    x = torch.randn(LARGE, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last) if last else x


# What Python, and JAX where another test has loaded it, have to say of any fork.
forking = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning", "ignore:.*os.fork.. was called:RuntimeWarning"
)


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_four_threads_at_once_beside_one_that_hogs_the_interpreter(seconds: int) -> None:
    inputs = [draw(seed, last=seed % 2 == 0) for seed in range(4)]
    expected = [step(x) for x in inputs]
    end, stop = time.monotonic() + seconds, threading.Event()

    def hog() -> None:
        while not stop.is_set():
            sum(range(2000))

    def repeat(i: int) -> int:
        done = 0
        while time.monotonic() < end:
            with_relu = ops.normalize_batch(inputs[i], axis=1, activation="relu")[0]
            assert with_relu.numpy().tobytes() == expected[i][0]
            done += 1
        return done

    hogging = threading.Thread(target=hog)
    hogging.start()
    try:
        with kernels_for_all(), ThreadPoolExecutor(4) as pool:
            done = list(pool.map(repeat, range(4)))
    finally:
        stop.set()
        hogging.join()
    assert min(done) >= 1


def _forward() -> bytes:
    with kernels_for_all():
        return ops.normalize_batch(draw(0), axis=1, activation="relu")[0].numpy().tobytes()


def _in_child(expected: bytes) -> None:
    # Nothing of PyTorch's own that takes threads: its OpenMP does not outlive a fork.
    same = _forward() == expected
    helped = any(thread.name.startswith("homeostat") for thread in threading.enumerate())
    sys.exit(0 if same and helped else 1)


@pytest.mark.usefixtures("two_threads")
@forking
def test_a_forked_child_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Once on the threads of OpenMP, which does not notice a fork, and once on our own: as many as
    # the pool will ever start, since a copy of it starts no more.
    torch.set_num_threads(2 + (os.cpu_count() or 1))
    expected = _forward()
    monkeypatch.setattr(threads, "_openmp", 0)
    assert _forward() == expected
    monkeypatch.undo()
    assert threads._pool is not None, "no pool: nothing to fork"
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(expected,))
    child.start()
    child.join(120)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0


class Normalized(torch.utils.data.Dataset):
    """Examples that were normalized by the loops, in the worker that loads them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        torch.set_num_threads(2)
        with kernels_for_all():
            return ops.normalize_batch(draw(index), axis=1, activation="relu")[0]


@pytest.mark.usefixtures("two_threads")
@forking
def test_workers_of_a_data_loader_use_the_loops() -> None:
    data = Normalized()
    expected = [data[i] for i in range(len(data))]
    # Tensors are sent by file, since a container's shared memory may be small.
    torch.multiprocessing.set_sharing_strategy("file_system")
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, timeout=120)
    for found, wanted in zip(loader, expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_loops_run_on_the_threads_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of another kind beside OpenMP's, which wait actively, get half of each processor."""
    if not torch.backends.openmp.is_available() or sys.platform != "linux":
        pytest.skip("this PyTorch has no OpenMP")
    expected = step(draw(0))
    calls = []
    counting = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    )
    openmp = counting(threads._openmp)

    @counting
    def counted(*given: Any) -> None:
        calls.append(given[2])
        openmp(*given)

    monkeypatch.setattr(threads, "_openmp", ctypes.cast(counted, ctypes.c_void_p).value)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert step(draw(0)) == expected
    finally:
        torch.set_num_threads(before)
    assert calls == [3] * 4
    monkeypatch.setattr(threads, "_openmp", 0)
    assert step(draw(0)) == expected


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_thread_takes_its_own_share_first_and_then_helps(number: int) -> None:
    order: list[int] = []
    note = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(
        lambda _, part: order.append(part) or 0
    )
    telling = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: number)
    function, tell = (ctypes.cast(f, ctypes.c_void_p).value for f in (note, telling))
    shares = [[0, 1], [2, 3, 4], [5, 6, 7]]
    expected = [part for share in shares[number:] + shares[:number] for part in share]
    # By the number that it is told, and by how many came before.
    for told, came in ((tell, 0), (0, number)):
        order.clear()
        job = (ctypes.c_int64 * 9)(function, 0, 8, 3, told, came)
        threads._run_parts.ctypes(ctypes.addressof(job))
        assert order == expected


def test_a_library_without_openmp_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_openmp", 0)
    threads.use_openmp_of("/nowhere/lib.so")
    assert threads._openmp == 0


# Memory.

STRIDED = {
    "channels last": lambda: torch.randn(4, 6, 5, 3).permute(0, 3, 1, 2),
    "gaps": lambda: torch.randn(4, 6, 5, 3).transpose(0, 2)[..., ::2],
    "expanded": lambda: torch.randn(4, 1, 5, 3).expand(4, 6, 5, 3),
    "turned": lambda: torch.randn(3, 5, 6, 4).permute(3, 2, 1, 0),
    "an offset": lambda: torch.randn(4 * 6 * 5 * 3 + 3)[3:].view(4, 6, 5, 3),
    "one element": lambda: torch.randn(1, 1, 1, 1),
    "one channel": lambda: torch.randn(4, 1, 5, 3),
    "no batch": lambda: torch.randn(0, 6, 5, 3),
    "no pixels": lambda: torch.randn(4, 6, 0, 3),
}


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("of_dy", [True, False])
@pytest.mark.parametrize("strides", STRIDED)
def test_any_strides(strides: str, of_dy: bool, axis: int) -> None:
    strided = STRIDED[strides]()
    dense = torch.randn(strided.shape)
    x, dy = (dense, strided) if of_dy else (strided, dense)
    results = []
    for taken in (True, False):
        leaf = x.detach().requires_grad_()
        with kernels_for_all() if taken else ops.choice.kernels(False):
            y, _ = ops.normalize_batch(leaf, axis=axis, activation="relu", residual=x)
            results.append((y, *torch.autograd.grad(y, leaf, dy)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert found.stride() == wanted.stride() or not of_dy


def test_a_buffer_that_is_not_aligned() -> None:
    memory = bytearray(4 * 4096 + 1)
    x = torch.frombuffer(memory, dtype=torch.float32, offset=1, count=4096).view(64, 64)
    x.copy_(torch.randn(64, 64))
    assert x.data_ptr() % 4
    with kernels_for_all():
        found = ops.normalize_batch(x, activation="relu")[0]
        torch.testing.assert_close(found, ops.normalize_batch(x.clone(), activation="relu")[0])


def available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    rows, channels = 2**15 + 1, 2**16
    needed = 2 * 2 * rows * channels + 2**30
    if available_bytes() < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free memory")
    x = torch.zeros(rows, channels, dtype=torch.bfloat16)
    x[-1] = 2.0
    with kernels_for_all():
        y, batch = ops.normalize_batch(x, epsilon=0.0)
    assert torch.allclose(batch.mean, torch.full((channels,), 2.0 / rows))
    assert bool((y[-1] > 100).all())
    assert bool((y[-2] < 0).all())


# Other ways of running, each in a process of its own.

CHECK = """
import numpy as np
from homeostat import reference
from homeostat.kernels import batchnorm

def check(shape, slope, residual):
    rng = np.random.default_rng(0)
    x, dy, r = rng.normal(1.0, 2.0, (3, *shape)).astype(np.float32)
    options = {"axis": 1, "epsilon": 1e-3, "residual": r if residual else None}
    z, _ = reference.normalize_batch(x, **options)
    dy[np.abs(z) < 1e-4] = 0
    options["activation"] = None if slope is None else "relu"
    both = residual and slope is not None
    y, dx, g = np.full((3, *shape), np.nan, np.float32)
    sums = np.full((2, shape[1]), np.nan, np.float32)
    statistics, updates = np.ones((2, shape[1]), np.float32), np.array([0])
    batch = batchnorm.Batch(batchnorm.plan_of("float32", batchnorm.Shape(*shape)), 1e-3, slope)
    address = lambda array, there=True: array.ctypes.data if there else 0
    moving = batchnorm.Moving(*map(address, (*statistics, updates)), (0.5, 0.5, 0.5))
    batch.train(address(x), address(r, residual), address(y), 0, 0, 2, moving=moving)
    batch.gradients(
        address(x), address(dy), address(y, both), address(dx), address(g, both),
        *map(address, sums), 2,
    )
    exact = reference.backward(dy, x, **options)
    close = {"rtol": 1e-4, "atol": 1e-4}
    expected, _ = reference.normalize_batch(x, **options)
    np.testing.assert_allclose(y, expected, **close)
    np.testing.assert_allclose(dx, exact.x, **close)
    np.testing.assert_allclose(sums[1], exact.beta, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(statistics[0], 0.5 + 0.5 * x.mean((0, 2)), **close)
    assert updates[0] == 1
    if both:
        np.testing.assert_allclose(g, exact.residual, **close)

for shape in SHAPES:
    for slope, residual in ((None, False), (0.0, False), (0.0, True)):
        check(shape, slope, residual)
print("checked", len(SHAPES))
"""


def run(shapes: str, tmp_path: Path, **environment: str) -> str:
    code = f"SHAPES = {shapes}\n{textwrap.dedent(CHECK)}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **environment}, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # C functions have nobody to raise an error to: it is printed.
    assert "Error" not in done.stderr, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86's features")
@pytest.mark.parametrize("features", ["", "+avx2,+fma,+f16c"], ids=["SSE2", "AVX2"])
def test_the_loops_run_on_older_processors(tmp_path: Path, features: str) -> None:
    older = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    assert "checked 3" in run("[(67, 70, 1), (3, 17, 7), (3, 17, 49)]", tmp_path, **older)
    if "f16c" not in features:
        # The compiler alone would call a conversion that nobody has, which ends the process.
        done = run_homeostat("warmup", "--dtype", "float16", NUMBA_CACHE_DIR=str(tmp_path), **older)
        assert done.returncode == 0, done.stderr


COUNTS = "[*range(1, 71), 96, 128, 255, 256, 257, 300, 512, 768, 1000, 2048]"


def test_no_index_leaves_its_array(tmp_path: Path) -> None:
    """With bounds checking on, for every number of channels that the loops divide differently."""
    shapes = f"[(67, c, 1) for c in {COUNTS}] + [(3, c, 5) for c in {COUNTS}]"
    shapes += " + [(9000, 64, 1), (2, 3, 140_001)]"
    assert "checked 162" in run(shapes, tmp_path, NUMBA_BOUNDSCHECK="1")


PLANES = "planes.apply_piece, np.float32(1), ()"
ROWS = "apply_rows, np.ones(8, np.float32), (8,)"


@pytest.mark.parametrize(("apply", "size"), [(PLANES, 4096), (ROWS, 8), (ROWS, 4096)])
def test_bounds_checking_is_on_when_asked_for(tmp_path: Path, apply: str, size: int) -> None:
    """The test above could not fail otherwise, neither of single elements nor of vectors."""
    code = f"""
        import numba, numpy as np
        from homeostat.kernels import outputs, planes
        short, like = np.zeros({size} - 5, np.float32), np.zeros({size}, np.float32)
        apply_rows = numba.njit(lambda *of: outputs.apply(*of))
        apply, one, size = {apply}
        apply(like, like, False, one, one, one, np.float32(1), short, False, *size)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_BOUNDSCHECK": "1"},
    )  # fmt: skip
    assert "IndexError" in done.stderr


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/cache"])
def test_without_a_folder_to_keep_them_in_the_loops_still_work(tmp_path: Path, folder: str) -> None:
    assert "checked 1" in run("[(9, 3, 1)]", tmp_path, NUMBA_CACHE_DIR=folder)
