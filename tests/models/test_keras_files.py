"""Reading Keras's files: real ones as Keras saved them, and hostile ones."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homeostat.errors import MissingExtraError, ModelFileError
from homeostat.models.files.hdf5 import read_hdf5
from homeostat.models.files.keras_archive import read_keras_archive
from tests.models.keras_saved import ROOT, differences, live, same, saved

h5py = pytest.importorskip("h5py")
__all__ = ["saved"]

ALL = ("gamma", "beta", "moving_mean", "moving_variance")


@pytest.mark.parametrize("name", ["nested", "ours", "ResNet50", "MobileNetV2"])
def test_an_archive_tells_what_the_live_model_does(saved: Path, name: str) -> None:
    assert differences(read_keras_archive(saved / f"{name}.keras"), live(saved, name)) == []


def test_what_an_archive_tells(saved: Path) -> None:
    record = read_keras_archive(saved / "nested.keras")
    assert (record.name, record.source) == ("nested.keras", "Keras archive")
    names = ["first", "inner/norm", "shared/norm", "steps/step", "last"]
    assert [norm.name for norm in record.norms] == names
    first, inner, shared, step, last = record.norms
    assert (first.momentum, first.epsilon, first.dtype) == (0.9, 1e-5, "float32")
    assert first.stored_variance == "population"
    assert inner.operations == ("inner/norm", "inner:1/norm")
    assert shared.operations == ("shared/norm", "shared:1/norm")
    assert step.gamma is None
    assert step.beta is not None
    assert last.beta is None
    assert (last.trainable, last.tracking, last.dtype) == (False, False, "float16")
    assert all(norm.unknown == {"updates"} for norm in record.norms)
    assert len({norm.gamma.tobytes() for norm in record.norms if norm.gamma is not None}) == 4


def test_homeostats_layers_in_an_archive(saved: Path) -> None:
    first, second, third = read_keras_archive(saved / "ours.keras").norms
    assert first.kind == "homeostat.keras.BatchNormalization"
    assert (first.activation, first.updates, first.skipped) == ("relu", 3, 3)
    assert (second.cumulative, second.momentum) == (True, None)
    assert (second.stored_variance, second.tracking, second.trainable) == ("sample", False, True)
    assert (third.skipped, third.gamma, third.stored_variance) == (None, None, "population")


@pytest.mark.parametrize(("name", "count"), [("ResNet50", 53), ("MobileNetV2", 52)])
def test_every_norm_of_a_network_is_behind_its_convolution(saved, name, count) -> None:
    start = time.perf_counter()
    record = read_keras_archive(saved / f"{name}.keras")
    assert time.perf_counter() - start < 3.0
    assert record.graph is not None
    assert len(record.norms) == count
    for norm in record.norms:
        producer = record.graph.producer(norm.operations[0])
        assert producer is not None
        assert producer.kind in ("conv", "depthwise_conv")
        assert producer.shape is not None
        assert producer.shape[-1] == norm.channels
        assert producer.bias is (name == "ResNet50")
    assert record.parameters == {"ResNet50": 25_636_712, "MobileNetV2": 3_538_984}[name]


def test_a_norm_inside_a_layer_that_does_not_tell_is_found_by_its_arrays(saved: Path) -> None:
    record = read_keras_archive(saved / "inside.keras")
    known = {norm.name: norm for norm in live(saved, "inside").norms}
    assert [norm.name for norm in record.norms] == ["norm", "block/hidden"]
    hidden = record.norms[1]
    assert hidden.epsilon is None
    assert {"epsilon", "momentum"} <= hidden.unknown
    assert all(same(hidden.arrays[name], known["block/hidden"].arrays[name]) for name in ALL)
    assert "block/hidden" in record.notes[0]


def test_a_file_of_weights_tells_arrays_and_what_it_does_not_tell(saved: Path) -> None:
    record = read_hdf5(saved / "MobileNetV2.weights.h5")
    known = {norm.name: norm for norm in live(saved, "MobileNetV2").norms}
    assert record.graph is None
    assert record.why_no_graph
    assert [norm.name for norm in record.norms] == [norm.name for norm in known.values()]
    assert all(
        same(norm.arrays[k], known[norm.name].arrays[k]) for norm in record.norms for k in ALL
    )
    assert {"epsilon", "momentum", "trainable"} <= record.norms[0].unknown
    step = {norm.name: norm for norm in read_hdf5(saved / "nested.weights.h5").norms}["inner/norm"]
    assert step.stored_variance == "population"
    assert read_hdf5(saved / "nested.weights.h5").parameters == live(saved, "nested").parameters


def test_a_weights_file_with_one_of_gamma_and_beta(saved: Path) -> None:
    norms = {norm.name: norm for norm in read_hdf5(saved / "inside.weights.h5").norms}
    assert set(norms) == {"norm", "block/hidden"}
    path = saved / "three.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/batch_normalization/vars")
        for index in range(3):
            group[str(index)] = np.full(2, index, "float32")
        for index in range(2):
            file[f"layers/layer_normalization/vars/{index}"] = np.ones(2, "float32")
    (norm,) = read_hdf5(path).norms
    assert norm.name == "batch_normalization"
    assert norm.moving_variance is not None
    assert norm.moving_variance.tolist() == [2, 2]
    assert {"gamma", "beta", "stored_variance"} <= norm.unknown


def test_a_legacy_file_of_keras_3(saved: Path) -> None:
    record, known = read_hdf5(saved / "nested.h5"), live(saved, "nested")
    # Its configuration does not tell the shapes that nested layers were built for.
    found = [each for each in differences(record, known) if each[0] != "graph"]
    assert found == []
    assert [o.name for o in record.graph.operations] == [o.name for o in known.graph.operations]


@pytest.mark.parametrize("name", ["old.keras", "old.h5"])
def test_files_of_keras_2(saved: Path, name: str) -> None:
    read = read_keras_archive if name.endswith(".keras") else read_hdf5
    record, values = read(saved / name), live(saved, "old")
    names = ["first", "inner/norm", "shared/norm", "steps/step", "last"]
    assert [norm.name for norm in record.norms] == names
    assert same(record.norms[0].gamma, values["first/gamma:0"])
    assert same(record.norms[3].moving_variance, values["steps/moving_variance:0"])
    assert same(record.norms[4].moving_mean, values["last/moving_mean:0"])
    # Its fused operation, for images, stores the sample variance.
    stored = [norm.stored_variance for norm in record.norms]
    assert stored[:4] == ["sample", "sample", "sample", "population"]
    assert stored[4] == ("population" if name == "old.keras" else None)
    assert record.norms[2].operations == ("shared/norm", "shared:1/norm")
    assert record.norms[4].dtype == "float16"
    assert record.parameters == values["count"]


def test_legacy_weights_alone(saved: Path) -> None:
    record, values = read_hdf5(saved / "old_weights.h5"), live(saved, "old")
    assert record.source == "legacy Keras weights"
    first = record.norms[0]
    assert (first.name, first.epsilon) == ("first", None)
    assert same(first.moving_mean, values["first/moving_mean:0"])
    last = next(norm for norm in record.norms if norm.name == "last")
    assert last.beta is None
    assert "beta" not in last.unknown


def test_no_framework_is_needed(saved: Path) -> None:
    script = """
import sys
for name in ("keras", "tensorflow", "torch", "jax", "tf_keras"):
    sys.modules[name] = None
from pathlib import Path
from homeostat.models.files.hdf5 import read_hdf5
from homeostat.models.files.keras_archive import read_keras_archive
folder = Path(sys.argv[1])
print(len(read_keras_archive(folder / "ResNet50.keras").norms))
print(len(read_hdf5(folder / "old.h5").norms), len(read_hdf5(folder / "nested.weights.h5").norms))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["53", "5", "4"], done.stderr


def test_without_h5py_the_extra_is_named(saved: Path) -> None:
    script = """
import importlib.machinery, sys
finders = sys.meta_path[:]
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "h5py":
            return None
        return next((s for f in finders if (s := f.find_spec(name, path, target))), None)
sys.meta_path[:] = [Hidden()]
from pathlib import Path
from homeostat.models.files.hdf5 import read_hdf5
read_hdf5(Path(sys.argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved / "old.h5")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert MissingExtraError.__name__ in done.stderr
    assert "homeostat[audit]" in done.stderr


def test_a_compressed_archive_is_read_in_memory(saved: Path, tmp_path: Path) -> None:
    path = repacked(saved / "nested.keras", tmp_path, compression=zipfile.ZIP_DEFLATED)
    assert differences(read_keras_archive(path), live(saved, "nested")) == []
    assert list(tmp_path.iterdir()) == [path]


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.0e8], "float32")
    path = tmp_path / "brain.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/batch_normalization/vars")
        for index in range(4):
            upper = (values.view("<u4") >> 16).astype("<u2").view("V2")
            group.create_dataset(str(index), data=upper).attrs["dtype"] = "bfloat16"
    (norm,) = read_hdf5(path).norms
    assert norm.gamma is not None
    np.testing.assert_allclose(norm.gamma, values, rtol=1e-2)


@pytest.mark.parametrize(("stored", "told"), [(7, 7), (0, 0), (-5, None)])
def test_steps_are_told_unless_they_cannot_be(saved: Path, tmp_path: Path, stored, told) -> None:
    content = io.BytesIO(zipfile.ZipFile(saved / "nested.keras").read("model.weights.h5"))
    with h5py.File(content, "r+") as file:
        file.require_group("optimizer/vars").attrs["name"] = "vars"
        file["optimizer/vars"].pop("0", None)
        file["optimizer/vars/0"] = np.int64(stored)
    weights = {"model.weights.h5": content.getvalue()}
    assert read_keras_archive(repacked(saved / "nested.keras", tmp_path, **weights)).steps == told


# What is hostile.


def repacked(source: Path, folder: Path, *, compression=zipfile.ZIP_STORED, **members) -> Path:
    """Write an archive again, with other members; "" names the ones to leave out."""
    path = folder / "hostile.keras"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        contents = {name: old.read(name) for name in old.namelist()} | members
        for name, content in contents.items():
            if content is not None:
                new.writestr(name, content)
    return path


def archives(folder: Path, source: Path) -> dict[str, Path]:
    config = json.loads(zipfile.ZipFile(source).read("config.json"))
    deep = '{"class_name": "Sequential", "config": {"name": "a", "layers": [' * 5000
    no_layers = {"class_name": "Sequential", "config": {"name": "a", "layers": [1]}}
    swapped = json.dumps(config).replace('"scale": true', '"scale": false')
    return {
        "leads out": {"../../escaped": b"x"},
        "lacks": {"model.weights.h5": None},
        "nested too deeply|recursion": {"config.json": deep.encode()},
        "is not told": {"config.json": json.dumps(no_layers).encode()},
        "JSON": {"config.json": b"\xff\xfe{"},
        "larger than": {"config.json": b" " * ((1 << 26) + 1)},
        "vectors in the file": {"config.json": swapped.encode()},
        "epsilon": {"config.json": json.dumps(config).replace("1e-05", '"x"').encode()},
        "momentum": {"config.json": json.dumps(config).replace("0.9,", "NaN,").encode()},
        "HDF5|signature": {"model.weights.h5": b"no such thing"},
    }


@pytest.mark.parametrize("case", range(10))
def test_hostile_archives(saved: Path, tmp_path: Path, case: int) -> None:
    words, members = list(archives(tmp_path, saved / "nested.keras").items())[case]
    path = repacked(saved / "nested.keras", tmp_path, compression=zipfile.ZIP_DEFLATED, **members)
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(ModelFileError, match=words) as raised:
        read_keras_archive(path)
    assert str(path) in str(raised.value)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_zip_bomb_is_not_unpacked(saved: Path, tmp_path: Path) -> None:
    path = repacked(saved / "nested.keras", tmp_path, compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    # The uncompressed size, in the archive's directory.
    entry = content.rfind(b"PK\x01\x02", 0, content.rfind(b"model.weights.h5"))
    content[entry + 24 : entry + 28] = (3_900_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="of memory"):
        read_keras_archive(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files(saved: Path, tmp_path: Path, share: float) -> None:
    for name, read in (("nested.keras", read_keras_archive), ("old.h5", read_hdf5)):
        content = (saved / name).read_bytes()
        path = tmp_path / name
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ModelFileError):
            read(path)


def tricks(folder: Path) -> dict[str, Callable[[Any], None]]:
    """Return what makes HDF5 files lead elsewhere, or into the void, by the words of the error."""
    other = folder / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3)

    def soft(file):
        file["layers/batch_normalization/vars/0"] = h5py.SoftLink("/elsewhere")

    def external(file):
        file["layers/batch_normalization/vars"] = h5py.ExternalLink(str(other), "/")

    def storage(file):
        file.create_dataset("layers/a/vars/0", (3,), "f4", external=[(str(other), 0, 12)])

    def virtual(file):
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(other), "secret", (3,))
        file.create_virtual_dataset("layers/a/vars/0", layout)

    def circle(file):
        inner = file.create_group("layers/vars")
        inner["again"] = file["layers"]

    def absurd(file):
        file.create_dataset("layers/a/vars/0", (1 << 60,), "f4", chunks=(1 << 20,))

    def filtered(file):
        # Its number alone: the library would look for a shared library that it names.
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((3,))
        plist.set_filter(32123, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((3,))
        group = file.create_group("layers/a/vars")
        h5py.h5d.create(group.id, b"0", h5py.h5t.NATIVE_FLOAT, space, plist)

    def chunked(file):
        file.create_dataset("layers/a/vars/0", (3,), "f4", maxshape=(None,), chunks=(1 << 28,))

    def deep(file):
        file.create_group("layers/" + "a/" * 200)

    def dots(file):
        file.create_group("layers").id.links.create_hard(b"..", file.id, b"layers")

    def many(file):
        file.create_group("vars").attrs.create("weight_names", np.full(200_000, b"a"), None)

    return {
        "SoftLink": soft,
        "ExternalLink": external,
        "other files": storage,
        "in other files": virtual,
        "another name": circle,
        "too small": absurd,
        "packed": filtered,
        "packed|too small": chunked,
        "deeper": deep,
        "larger": many,
    }


@pytest.mark.parametrize("case", range(10))
def test_hostile_hdf5(tmp_path: Path, case: int) -> None:
    words, make = list(tricks(tmp_path).items())[case]
    path = tmp_path / "hostile.weights.h5"
    # Large attributes need the newer format.
    with h5py.File(path, "w", libver="latest") as file:
        make(file)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelFileError, match=words):
        read_hdf5(path)
    assert sorted(tmp_path.iterdir()) == before


def small() -> bytearray:
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        group = opened.create_group("layers/batch_normalization/vars")
        group.attrs["name"] = "norm"
        for index in range(4):
            group.create_dataset(str(index), data=np.ones(3, "f4"), track_times=False)
    return bytearray(file.getvalue())


@pytest.mark.slow
# With HDF5 1.14.6 the first ends a process that opens it, and with the second it never returns.
@pytest.mark.parametrize(("at", "byte"), [(3945, 255), (4016, 0)])
def test_bytes_that_break_the_hdf5_library(tmp_path: Path, at: int, byte: int) -> None:
    path, content = tmp_path / "broken.weights.h5", small()
    path.write_bytes(content)
    assert [norm.name for norm in read_hdf5(path).norms] == ["norm"]
    content[at] = byte
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        read_hdf5(path)


def test_mutated_files_end_in_a_record_or_an_error(saved: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    for name, read in (("nested.keras", read_keras_archive), ("old.h5", read_hdf5)):
        content = np.frombuffer((saved / name).read_bytes(), np.uint8)
        told = np.flatnonzero(content)
        for _ in range(12):
            mutated = content.copy()
            mutated[rng.choice(told, 3)] = rng.integers(0, 256, 3)
            path = tmp_path / name
            path.write_bytes(mutated.tobytes())
            try:
                read(path)
            except ModelFileError as error:
                assert "expected" in str(error)  # noqa: PT017


def test_a_folder_of_modules_beside_the_file_is_not_imported(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "old.h5", tmp_path)
    for name in ("h5py", "numpy", "json", "zipfile"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    script = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from pathlib import Path\n"
        "from homeostat.models.files.hdf5 import read_hdf5\n"
        "import os; os.chdir(sys.argv[1])\n"
        "print(len(read_hdf5(Path('old.h5')).norms))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["5"], done.stderr
    assert not (tmp_path / "ran").exists()


def test_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.ones(3)
    with pytest.raises(ModelFileError, match="no layers"):
        read_hdf5(path)
    with pytest.raises(ModelFileError, match=r"nothing\.keras"):
        read_keras_archive(tmp_path / "nothing.keras")
    with pytest.raises(ModelFileError, match=r"nothing\.h5"):
        read_hdf5(tmp_path / "nothing.h5")
