"""Files that were made to do harm, and what reading needs: neither frameworks nor much time."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from homeostat.errors import DataError, ModelFileError
from homeostat.models.files import READERS, read_model_file
from homeostat.models.files.pickles import MAX_OPCODES, RefusedError, read_pickle
from homeostat.models.files.zips import members_of
from tests.command import run_python
from tests.models.files.networks import Network, trained


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, pickled: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", b"little")
        for name, content in members.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


CANARY = "canary"
HARMFUL: dict[str, tuple[bytes, str]] = {
    "system": (pickle.dumps(Calls(os.system, f"touch {CANARY}")), "posix.system"),
    "eval": (pickle.dumps({"a": Calls(eval, f"open({CANARY!r}, 'w')")}, 2), "__builtin__.eval"),
    "open": (pickle.dumps([Calls(open, CANARY, "w")]), "_?io.open"),
    "text": (b"cos\nsystem\n(S'touch canary'\ntR.", "os.system"),
    "instance": (b"(ios\nsystem\n.", "opcode INST"),
    "object": (b"(cos\nsystem\nS'touch canary'\no.", "os.system"),
    "stacked": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.", "os.system"),
    "new": (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
    "extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "dotted": (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "__init__"),
    "loads": (b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.", "_load_from_bytes"),
    "build": (b"\x80\x02ccollections\nOrderedDict\n)R}(X\x01\x00\x00\x00asb0b0.", "pickle cannot"),
}


@pytest.mark.parametrize("case", HARMFUL)
def test_no_pickle_runs_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled, wanted = HARMFUL[case]
    path = archive(tmp_path / "a.pt", pickled)
    with pytest.raises(ModelFileError, match=wanted):
        read_model_file(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]
    magic = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {}))
    path.write_bytes(magic + pickled)
    with pytest.raises(ModelFileError, match=wanted):
        read_model_file(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


def test_what_is_refused_tells_the_safe_way(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", HARMFUL["system"][0])
    with pytest.raises(ModelFileError) as caught:
        read_model_file(path)
    for word in (
        "nothing was run",
        "weights_only=True",
        "package.module:factory",
        "'posix.system'",
    ):
        assert word in str(caught.value)


def test_a_plain_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelFileError, match=r"not one of torch\.save"):
        read_model_file(tmp_path / "a.pkl")


def wide(levels: int, keys: int) -> bytes:
    """A pickle of mappings, each under many keys of the next."""
    made = b"\x80\x02}q\x00"
    for level in range(levels):
        items = (b"X\x01\x00\x00\x00%ch%c" % (20 + key, level) for key in range(keys))
        made += b"}(" + b"".join(items) + b"uq%c" % (level + 1)
    return made + b"."


EXHAUSTING: dict[str, Callable[[], bytes]] = {
    # 46 bytes like these make pickle.Unpickler allocate gigabytes; hashing the tuple, crash.
    "memo": lambda: b"\x80\x02Nr\xff\xff\xff\x7f.",
    "deep tuple as a key": lambda: b"\x80\x02}N" + b"\x85" * 10**6 + b"Ns.",
    "long bytes": lambda: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "long text": lambda: b"\x80\x02X\xff\xff\xff\x7fa.",
    "frame": lambda: b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "long number": lambda: b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "digits": lambda: b"I" + b"9" * 10**6 + b"\n.",
    "many": lambda: b"\x80\x02" + b"N0" * 10**6 * 2 + b"N.",
    "marks": lambda: b"\x80\x02" + b"(" * 10**6 + b"t" * 10**6 + b".",
    # Each list holds the one before it twice.
    "doubling": lambda: (
        b"\x80\x02]q\x00"
        + b"".join(
            b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200)
        )
        + b"."
    ),
    "doubling mappings": lambda: (
        b"\x80\x02}q\x00"
        + b"".join(
            b"}(X\x01\x00\x00\x00ah"
            + bytes([i])
            + b"X\x01\x00\x00\x00bh"
            + bytes([i])
            + b"uq"
            + bytes([i + 1])
            for i in range(200)
        )
        + b"."
    ),
    "wide mappings": lambda: wide(5, 100),
    "in itself": lambda: b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "nothing": lambda: b"",
    "no stop": lambda: b"\x80\x02N",
    "empty stack": lambda: b"\x80\x02.",
    "mark": lambda: b"\x80\x02(.",
    "surrogate": lambda: b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.",
}


@pytest.mark.parametrize("case", EXHAUSTING)
def test_pickles_that_exhaust(tmp_path: Path, case: str) -> None:
    path = archive(tmp_path / "a.pt", EXHAUSTING[case]())
    start = time.perf_counter()
    with pytest.raises(ModelFileError, match=r"pickle cannot be read|holds no state dict"):
        read_model_file(path)
    # Ten times what it takes.
    assert time.perf_counter() - start < 30


def test_opcodes_are_counted() -> None:
    with pytest.raises(ValueError, match="more than 3,000,000 opcodes"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * (MAX_OPCODES // 2 + 1) + b"N."), {}, repr)


def test_every_opcode_is_either_data_or_refused() -> None:
    """None does anything else, and none makes another exception."""
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin-1")
        for tail in (b"", b"\x01", b"1\n", b"\x00" * 8, b"a\nb\n"):
            for head in (b"", b"N", b"}", b"]", b"(", b")", b"NN", b"}NN", b"(N", b"}(NN"):
                with contextlib.suppress(ValueError, RefusedError):
                    read_pickle(io.BytesIO(head + code + tail + b"."), {}, repr)


def test_data_comes_back_as_it_was() -> None:
    data = {"a": [1, -(2**70), 2.5, None, True], "b": ("x", b"y", {"c": {}}), "d": (1, 2, 3, 4)}
    for protocol in range(3, 6):
        assert read_pickle(io.BytesIO(pickle.dumps(data, protocol)), {}, repr) == data
    shared = [1]
    found = read_pickle(io.BytesIO(pickle.dumps([shared, shared])), {}, repr)
    assert found[0] is found[1]


MEAN, VARIANCE = "bn.running_mean", "bn.running_var"


def tensors(path: Path, storages: dict[str, bytes], **arrays: tuple[Any, ...]) -> Path:
    """Write tensors, each a storage's key, its declared count, and offset, size and stride."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Stored):
                return ("storage", torch.FloatStorage, value.key, "cpu", value.count)
            return None

    class Stored:
        def __init__(self, key: Any, count: Any) -> None:
            self.key, self.count = key, count

    stream = io.BytesIO()
    Pickler(stream, 2).dump(
        {
            f"bn.{name}": Calls(
                torch._utils._rebuild_tensor_v2, Stored(key, count), *view, False, OrderedDict()
            )
            for name, (key, count, *view) in arrays.items()
        }
    )
    return archive(path, stream.getvalue(), **{f"data__{k}": v for k, v in storages.items()})


FOUR = np.arange(4, dtype="<f4").tobytes()
GOOD = ("0", 4, 0, (4,), (1,))
STORAGES: dict[str, tuple[tuple[Any, ...], str]] = {
    "missing": (("1", 4, 0, (4,), (1,)), "'1' has nothing in the archive"),
    "larger": (("0", 2**40, 0, (4,), (1,)), "has 16 bytes in the archive"),
    "negative": (("0", -4, 0, (4,), (1,)), "storage of -4 elements"),
    "count": (("0", "4", 0, (4,), (1,)), "storage of '4' elements"),
    "key": ((0, 4, 0, (4,), (1,)), "refers to no storage"),
    "path": (("../../etc/passwd", 4, 0, (4,), (1,)), "has nothing in the archive"),
    "offset": (("0", 4, 1, (4,), (1,)), "does not fit into its storage"),
    "negative offset": (("0", 4, -1, (4,), (1,)), "does not fit into its storage"),
    "stride": (("0", 4, 0, (4,), (2,)), "does not fit into its storage"),
    "negative stride": (("0", 4, 3, (4,), (-1,)), "shape that is none"),
    "size": (("0", 4, 0, (5,), (1,)), "does not fit into its storage"),
    "rank": (("0", 4, 0, (4,), (1, 1)), "does not fit into its storage"),
    "absurd": (("0", 4, 0, (2**62,), (0,)), "shape that is none"),
    "repeated": (("0", 4, 0, (2**40,), (0,)), "declares a batch norm of 1,099,511,627,776"),
    "text": (("0", 4, 0, "4", (1,)), "shape that is none"),
    "number": (("0", 4, "0", (4,), (1,)), "does not fit into its storage"),
}


@pytest.mark.parametrize("case", STORAGES)
def test_storages_and_views_are_checked(tmp_path: Path, case: str) -> None:
    bad, match = STORAGES[case]
    other = bad if case == "repeated" else GOOD
    path = tensors(tmp_path / "a.pt", {"0": FOUR}, running_mean=bad, running_var=other)
    with pytest.raises(ModelFileError, match=match):
        read_model_file(path)


def test_a_storage_that_is_right(tmp_path: Path) -> None:
    path = tensors(
        tmp_path / "a.pt",
        {"0": FOUR},
        running_mean=("0", 4, 1, (3,), (1,)),
        running_var=("0", 4, 2, (3,), (0,)),
    )
    (norm,) = read_model_file(path).norms
    assert norm.moving_mean is not None
    assert norm.moving_mean.tolist() == [1, 2, 3]
    assert norm.moving_variance is not None
    assert norm.moving_variance.tolist() == [2, 2, 2]


def test_wide_steps_are_not_read(tmp_path: Path) -> None:
    wide = ("0", 4096, 0, (4,), (1000,))
    path = tensors(tmp_path / "a.pt", {"0": bytes(4 * 4096)}, running_mean=wide, running_var=wide)
    with pytest.raises(ModelFileError, match="steps that are too wide"):
        read_model_file(path)


def test_big_endian_files(tmp_path: Path) -> None:
    path = tensors(tmp_path / "a.pt", {"0": FOUR}, running_mean=GOOD, running_var=GOOD)
    raw = (
        path.read_bytes()
        .replace(b"little", b"big   ")
        .replace(FOUR, np.arange(4, dtype=">f4").tobytes())
    )
    path.write_bytes(raw)
    (norm,) = read_model_file(path).norms
    assert norm.moving_mean is not None
    assert norm.moving_mean.tolist() == [0, 1, 2, 3]


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
