from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from homeostat.data import Examples, open_batches, unpack
from homeostat.errors import DataError

X = np.arange(10 * 3 * 2, dtype=np.float32).reshape(10, 3, 2)
Y = np.arange(10)


def together(batches: Any) -> tuple[np.ndarray, list[int]]:
    arrays = [batch.inputs for batch in batches]
    return np.concatenate(arrays), [len(array) for array in arrays]


def test_npy_is_read_in_batches_again_and_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    batches = open_batches(str(tmp_path / "x.npy"), 4)
    for _ in range(2):
        found, sizes = together(batches)
        np.testing.assert_array_equal(found, X)
        assert sizes == [4, 4, 2]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_has_inputs_labels_and_weights(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", x=X, y=Y, weights=np.ones(10, np.float32), other=np.zeros(3))
    batches = list(open_batches(str(tmp_path / "d.npz"), 4))
    np.testing.assert_array_equal(np.concatenate([b.inputs for b in batches]), X)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), Y)
    assert [len(b.weights) for b in batches] == [4, 4, 2]


def test_npz_with_one_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", whatever=X)
    np.testing.assert_array_equal(together(open_batches(str(tmp_path / "d.npz")))[0], X)


def test_npz_is_not_read_whole(tmp_path: Path) -> None:
    import tracemalloc

    np.savez(tmp_path / "d.npz", x=np.zeros((4096, 4096), np.float32))
    tracemalloc.start()
    for batch in open_batches(str(tmp_path / "d.npz"), 16):
        assert batch.inputs.shape == (16, 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # The whole is 64 MiB, a batch 256 KiB.


def test_shards_in_the_order_of_their_names(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", X[6:])
    np.save(tmp_path / "a.npy", X[:6])
    found, sizes = together(open_batches(str(tmp_path), 4))
    np.testing.assert_array_equal(found, X)
    assert sizes == [4, 2, 4]


def make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).save(folder / name)


@pytest.mark.parametrize("first", [False, True])
def test_images_and_their_classes(tmp_path: Path, first: bool) -> None:
    make_images(tmp_path)
    (batch,) = open_batches(str(tmp_path), channels_first=first)
    assert batch.inputs.shape == ((3, 3, 5, 4) if first else (3, 5, 4, 3))
    assert batch.labels.tolist() == [0, 0, 1]
    expected = np.asarray(Image.open(tmp_path / "dog/1.png"), np.float32) / 255
    found = batch.inputs[2].transpose(1, 2, 0) if first else batch.inputs[2]
    np.testing.assert_array_equal(found, expected)


def test_images_are_resized_when_asked(tmp_path: Path) -> None:
    make_images(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "dog" / "2.png")
    with pytest.raises(DataError, match="differ in size"):
        list(open_batches(str(tmp_path)))
    (batch,) = open_batches(str(tmp_path), image_size=(6, 8))
    assert batch.inputs.shape == (4, 6, 8, 3)


MODULE = """
import numpy as np
calls = []
def batches():
    calls.append(1)
    for n in (3, 2):
        yield np.ones((n, 2)), np.zeros(n)
def double(inputs):
    return inputs * 2
def nothing():
    return 3
number = 4
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "mydata.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "mydata"
    sys.modules.pop("mydata", None)


def test_a_function_of_the_users_own_is_called_for_each_pass(module: str) -> None:
    batches = open_batches(f"{module}:batches", transform=f"{module}:double")
    for _ in range(2):
        assert [batch.inputs.sum() for batch in batches] == [12, 8]
    assert len(sys.modules[module].calls) == 2
    assert [len(b.labels) for b in open_batches(f"{module}:batches", limit=1)] == [3]


def test_what_a_batch_holds() -> None:
    assert unpack([X]) == Examples(X)
    assert unpack((X, Y, Y)).weights is Y
    assert unpack(((X, X), Y)).inputs == (X, X)
    with pytest.raises(DataError, match="has 4 parts"):
        unpack((X, X, X, X))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.npy", "does not exist"),
        ("text.txt", "is no data"),
        ("text.npy", "cannot be read"),
        ("text.npz", "cannot be read"),
        ("objects.npy", "cannot be read"),
        ("objects.npz", "Python objects"),
        ("number.npy", "single number"),
        ("empty.npy", "gives no batch"),
        ("uneven.npz", r"arrays of \[5, 10\]"),
        ("names.npz", "inputs under one of"),
        ("cut.npz", "cannot be read"),
        ("folder", "no image"),
        ("nowhere:batches", "'nowhere' is not there"),
        ("mydata:typo", "no attribute 'typo'"),
        ("mydata:number", "not a function"),
        ("mydata:nothing", "type int"),
    ],
)
def test_bad_data(module: str, tmp_path: Path, source: str, message: str) -> None:
    for name in ("text.txt", "text.npy", "text.npz"):
        (tmp_path / name).write_text("no data")
    (tmp_path / "folder").mkdir()
    np.save("objects.npy", np.array([{}]))
    np.savez("objects.npz", x=np.array([{}]))
    np.save("number.npy", np.float32(3))
    np.save("empty.npy", np.zeros((0, 3)))
    np.savez("uneven.npz", x=X, y=Y[:5])
    np.savez("names.npz", first=X, second=X)
    np.savez("whole.npz", x=X)
    Path("cut.npz").write_bytes(Path("whole.npz").read_bytes()[:-60])
    with pytest.raises(DataError, match=message):
        list(open_batches(source))


def test_sizes_and_limits() -> None:
    with pytest.raises(DataError, match="batch size 0"):
        open_batches("x.npy", 0)
    with pytest.raises(DataError, match="limit 0"):
        open_batches("x.npy", limit=0)


def test_a_broken_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        list(open_batches(str(tmp_path)))
