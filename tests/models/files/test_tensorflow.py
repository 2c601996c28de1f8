"""Checkpoints and SavedModels that TensorFlow wrote, against what TensorFlow reads from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from homeostat.errors import DataError, ModelFileError
from homeostat.models.files import read_model_file
from homeostat.models.files.tables import masked_crc32c
from homeostat.models.files.wire import slice_key

NAMES = ("gamma", "beta", "moving_mean", "moving_variance")


def test_tf1_checkpoint(tensorflow_files: Path) -> None:
    expected = np.load(tensorflow_files / "tf1" / "expected.npz")
    record = read_model_file(tensorflow_files / "tf1" / "model.ckpt-3")
    assert record.framework == "tf1"
    assert record.source == "TensorFlow checkpoint"
    # bn10 behind bn2; of the slots and averages that Adam and the averaging keep, none.
    assert [norm.name for norm in record.norms] == ["bn2", "bn10", "parts/bn", "slim/BatchNorm"]
    for norm in record.norms:
        for name, array in norm.arrays.items():
            np.testing.assert_array_equal(array, expected[f"{norm.name}/{name}"])
        assert set(norm.arrays) == set(NAMES) - ({"gamma"} if norm.name == "bn2" else set())
        assert {"epsilon", "momentum", "stored_variance", "kind"} <= norm.unknown
        assert norm.epsilon is norm.momentum is norm.stored_variance is None
    assert record.norms[2].channels == 300
    # slim counts updates for the bias of its moving mean.
    assert [norm.updates for norm in record.norms] == [None, None, None, 3]
    assert ["updates" in norm.unknown for norm in record.norms] == [True, True, True, False]
    # bn2: 3 and renorm's 3, bn10: 4, slim's: 4, of 6 channels each; parts: 4 of 300.
    assert record.parameters == 14 * 6 + 1200
    assert any("averages of 9 variables" in note for note in record.notes)


@pytest.mark.parametrize(
    "name", ["", "model.ckpt-3.index", "model.ckpt-3.meta", "model.ckpt-3.data-00000-of-00001"]
)
def test_every_name_of_a_checkpoint(tensorflow_files: Path, name: str) -> None:
    record = read_model_file(tensorflow_files / "tf1" / name)
    assert len(record.norms) == 4
    assert record.name == ("model.ckpt-3" if name else "tf1")


OBJECTS = [
    ("keras/weights", "sequential/batch_normalization"),
    ("keras/saved", "sequential/batch_normalization"),
    ("keras/exported", "sequential/batch_normalization"),
    ("tf_keras/weights", "batch_normalization"),
    ("tf_keras/saved", "batch_normalization"),
    ("tf_keras/saved/variables", "batch_normalization"),
]


@pytest.mark.parametrize(("name", "first"), OBJECTS)
def test_checkpoints_of_objects(tensorflow_files: Path, name: str, first: str) -> None:
    path = tensorflow_files / "objects" / name
    expected = np.load(tensorflow_files / "objects" / name.split("/")[0] / "expected.npz")
    record = read_model_file(path)
    assert record.framework == "keras"
    assert record.source == f"TensorFlow {'SavedModel' if name[-1] == 'd' else 'checkpoint'}"
    # In the order of the network: the eleventh is behind the second.
    names = [first, *(f"{first}_{number}" for number in range(1, 11))]
    assert [norm.name for norm in record.norms] == names
    for norm, arrays in zip(record.norms, expected.values(), strict=True):
        for name, array in zip(NAMES, arrays, strict=True):
            np.testing.assert_array_equal(norm.arrays[name], array)
    assert record.parameters == 3 * 3 * 2 * 3 + 3 + 11 * 4 * 3 + 3 * 2 + 2


def copied(tensorflow_files: Path, folder: Path) -> Path:
    return Path(shutil.copytree(tensorflow_files / "tf1", folder / "copy"))


def test_a_folder_that_was_moved_names_where_it_was(tensorflow_files: Path, tmp_path: Path) -> None:
    folder = copied(tensorflow_files, tmp_path)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-3"\n')
    assert len(read_model_file(folder).norms) == 4


@pytest.mark.parametrize("name", ["../tf1/model.ckpt-4", "/etc/passwd", "sub/model", "", "\x00"])
def test_a_folder_that_names_no_checkpoint(
    tensorflow_files: Path, tmp_path: Path, name: str
) -> None:
    folder = copied(tensorflow_files, tmp_path)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    with pytest.raises(ModelFileError, match="which is not there"):
        read_model_file(folder)


def test_nothing_outside_the_folder_is_read(tensorflow_files: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    copied(tensorflow_files, tmp_path)
    (tmp_path / "inner" / "checkpoint").write_text('model_checkpoint_path: "../copy/model.ckpt-3"')
    with pytest.raises(ModelFileError, match="which is not there"):
        read_model_file(tmp_path / "inner")


def test_data_that_is_missing_or_cut(tensorflow_files: Path, tmp_path: Path) -> None:
    folder = copied(tensorflow_files, tmp_path)
    data = folder / "model.ckpt-3.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:100])
    with pytest.raises(ModelFileError, match="truncated or damaged"):
        read_model_file(folder)
    data.unlink()
    with pytest.raises(ModelFileError, match="is not a file"):
        read_model_file(folder)
    data.mkdir()
    with pytest.raises(ModelFileError, match="is not a file"):
        read_model_file(folder)


def test_checksums_of_arrays_and_of_the_index(tensorflow_files: Path, tmp_path: Path) -> None:
    folder = copied(tensorflow_files, tmp_path)
    expected = np.load(folder / "expected.npz")["bn10/gamma"]
    for name, match in (
        ("data-00000-of-00001", "checksum of 'bn10/gamma'"),
        ("index", "checksum of a block"),
    ):
        path = folder / f"model.ckpt-3.{name}"
        whole = path.read_bytes()
        place = whole.index(expected.tobytes()) if name != "index" else 40
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ModelFileError, match=match):
            read_model_file(folder)
        path.write_bytes(whole)
    assert len(read_model_file(folder).norms) == 4


def test_numbers_in_keys_sort_as_they_are() -> None:
    """What `slice_key` is for; TensorFlow's own keys are read in the partitioned checkpoint."""
    starts = [-(2**20), -8193, -8192, -65, -64, -1, 0, 1, 63, 64, 8191, 8192, 2**20, 2**27]
    keys = [slice_key("v", [(start, 1)]) for start in starts]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert slice_key("a\x00b", [(0, -1)]) == b"\x00a\x00\xffb\x00\x01\x01\x01\x80\x7f"


def test_checksum_is_castagnolis() -> None:
    # RFC 3720, B.4: 32 bytes of zeros have the checksum 0x8A9136AA.
    rotated = (masked_crc32c(bytes(32)) - 0xA282EAD8) & 0xFFFFFFFF
    assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == 0x8A9136AA


def test_a_prefix_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist.*without \.index"):
        read_model_file(tmp_path / "model.ckpt-1")
