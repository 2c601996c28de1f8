"""Pickles that were made to do harm, and the storages that they speak of."""

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

from homeostat.errors import ModelFileError
from homeostat.models.files import read_model_file
from homeostat.models.files.pickles import MAX_OPCODES, RefusedError, read_pickle


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
