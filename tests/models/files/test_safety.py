"""Files that were made to do harm, and what reading needs: neither frameworks nor much time."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from homeostat.errors import DataError, ModelFileError
from homeostat.models.files import READERS, read_model_file
from homeostat.models.files.zips import members_of
from tests.command import run_python
from tests.models.files.networks import Network, trained


def rezipped(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> Path:
    out = path.with_name(f"other-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        change(old, new)
    return out


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(trained(Network(1)).state_dict(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_zip_bombs_and_damaged_archives(checkpoint: Path) -> None:
    def compress(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)

    with pytest.raises(ModelFileError, match="is compressed or encrypted"):
        read_model_file(rezipped(checkpoint, compress))

    def bomb(_: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        new.writestr("a/data.pkl", bytes(1 << 25), zipfile.ZIP_DEFLATED)

    with pytest.raises(ModelFileError, match=r"data\.pkl has 33,554,432 bytes"):
        read_model_file(rezipped(checkpoint, bomb))

    def many(_: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        new.writestr("a/data.pkl", b"")
        new.writestr("b/data.pkl", b"")

    with pytest.raises(ModelFileError, match=r"members called data\.pkl"):
        read_model_file(rezipped(checkpoint, many))
    with pytest.raises(ModelFileError, match=r"members called data\.pkl"):
        read_model_file(rezipped(checkpoint, lambda old, new: new.writestr("x", b"")))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_members_of_one_name(checkpoint: Path) -> None:
    def twice(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        for name in [*old.namelist(), old.namelist()[0]]:
            new.writestr(name, old.read(name))

    with pytest.raises(ModelFileError, match="a member's name is there twice"):
        read_model_file(rezipped(checkpoint, twice))


def test_members_that_are_not_where_the_directory_says(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    name = checkpoint.stem.encode() + b"/data.pkl"
    place = whole.index(name, directory) - 46 + 42
    for offset in (b"\x05\x00\x00\x00", b"\xff\xff\xff\x7f"):
        checkpoint.write_bytes(whole[:place] + offset + whole[place + 4 :])
        with pytest.raises(ModelFileError, match=r"not where its directory says|truncated"):
            read_model_file(checkpoint)


def test_a_directory_that_is_too_long(tmp_path: Path) -> None:
    end = b"PK\x05\x06" + bytes(4) + b"\x01\x00" * 2 + (1 << 25).to_bytes(4, "little") + bytes(6)
    with (tmp_path / "a.pt").open("wb") as file:
        file.write(b"PK\x03\x04" + bytes(1 << 25) + end)
    with pytest.raises(ModelFileError, match=r"directory should have 33,554,432 bytes"):
        read_model_file(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "onnx", "h5", "keras", "index", "x"])
def test_files_that_are_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    for content in (b"", b"PK", b"\x80", b"PK\x03\x04", b"\x00" * 50, b"text\n", b"\xff" * 9):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match="expected"):
            read_model_file(path)


@pytest.mark.parametrize("cut", [0.2, 0.9, 0.999])
def test_truncated_files(checkpoint: Path, cut: float) -> None:
    save_file(trained(Network(1)).state_dict(), checkpoint.with_suffix(".safetensors"))
    for path in (checkpoint, checkpoint.with_suffix(".safetensors")):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(cut * len(whole))])
        with pytest.raises(ModelFileError, match="expected"):
            read_model_file(path)


def test_what_is_inside_counts_and_not_the_suffix(checkpoint: Path) -> None:
    expected = [norm.name for norm in read_model_file(checkpoint).norms]
    for name in ("a.safetensors", "a.onnx", "a.bin", "a"):
        other = checkpoint.with_name(name)
        other.write_bytes(checkpoint.read_bytes())
        assert [norm.name for norm in read_model_file(other).norms] == expected


def test_paths(tmp_path: Path, checkpoint: Path) -> None:
    for path in ("missing.pt", "x" * 5000, "a\x00b"):
        with pytest.raises(DataError, match="does not exist"):
            read_model_file(path)
    with pytest.raises(ModelFileError, match=r"is a folder.*Give one of its files: 'a\.pt'"):
        read_model_file(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ModelFileError, match="is not a file"):
        read_model_file(tmp_path / "pipe.pt")
    with pytest.raises(ModelFileError, match="is not a file"):
        read_model_file("/dev/zero")
    (tmp_path / "link.pt").symlink_to(checkpoint)
    assert read_model_file(tmp_path / "link.pt").norms


def test_names_that_nobody_can_write(tmp_path: Path) -> None:
    for name, match in (("\ud800.running_mean", "valid text"), ("x" * 9999, "at most 2,000")):
        torch.save({name: torch.ones(3)}, tmp_path / "a.pt")
        with pytest.raises(ModelFileError, match=match) as caught:
            read_model_file(tmp_path / "a.pt")
        str(caught.value).encode()
    names = [f"<img src=x>\n\x1b[31m.{name}" for name in ("running_mean", "running_var")]
    torch.save(dict.fromkeys(names, torch.ones(3)), tmp_path / "a.pt")
    assert read_model_file(tmp_path / "a.pt").norms[0].name == "<img src=x>\n\x1b[31m"


_BLOCKED = """
import sys
blocked = {"torch", "tensorflow", "keras", "tf_keras", "jax", "safetensors", "onnx", "h5py"}
class Refuses:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in blocked:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Refuses())
from homeostat.models import open_model
for path in sys.argv[1:]:
    print(len(open_model(path).norms))
assert not blocked & set(sys.modules)
"""


def test_no_framework_is_needed(checkpoint: Path, tensorflow_files: Path) -> None:
    state = trained(Network(1)).state_dict()
    save_file(state, checkpoint.with_suffix(".safetensors"))
    torch.save(state, checkpoint.with_suffix(".pth"), _use_new_zipfile_serialization=False)
    paths = [checkpoint.with_suffix(suffix) for suffix in (".pt", ".pth", ".safetensors")]
    paths += [tensorflow_files / name for name in ("tf1", "objects/keras/exported")]
    done = run_python("-c", _BLOCKED, *map(str, paths))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "4", "4", "4", "11"]


def test_weights_are_not_read(tmp_path: Path) -> None:
    """100 MB of weights beside one norm take no longer than the norm does, and no memory."""
    state = trained(Network(1)).state_dict() | {"big.weight": torch.zeros(25_000_000)}
    torch.save(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "a.safetensors")
    script = (
        "import resource, sys, time\n"
        "from homeostat.models import open_model\n"
        "for path in sys.argv[1:]:\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    start = time.perf_counter()\n"
        "    assert len(open_model(path).norms) == 4\n"
        "    seconds = time.perf_counter() - start\n"
        "    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    paths = [tmp_path / name for name in ("a.safetensors", "a.pt", "a.pth")]
    done = run_python("-c", script, *map(str, paths))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        seconds, kilobytes = map(float, line.split())
        assert seconds < 1
        assert kilobytes < 30_000


def test_the_table_of_formats_names_what_is_there() -> None:
    import importlib

    for module, function in READERS.values():
        if module in ("keras_archive", "hdf5"):
            continue
        found = importlib.import_module(f"homeostat.models.files.{module}")
        assert callable(getattr(found, function))


def test_what_a_reader_stumbles_over_is_the_files_fault(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (MemoryError(), RecursionError("deep"), UnicodeDecodeError("a", b"", 0, 1, "b")):

        def stumble(*_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("homeostat.models.files.torch_file.read_torch", stumble)
        with pytest.raises(ModelFileError, match=type(error).__name__):
            read_model_file(checkpoint)


def test_members_are_found_as_zipfile_finds_them(checkpoint: Path) -> None:
    from homeostat.models.files.arrays import Source

    with Source(checkpoint) as source, zipfile.ZipFile(checkpoint) as archive:
        found = {name: member.size for name, member in members_of(source).items()}
        assert found == {entry.filename: entry.file_size for entry in archive.infolist()}
