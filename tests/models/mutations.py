"""Ways to damage a file: of bytes, and of what a format makes of them."""

from __future__ import annotations

import io
import json
import pickletools
import random
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

from homeostat.models.files.tables import masked_crc32c
from homeostat.models.files.wire import read_varint

Mutation = Callable[[random.Random, bytes], bytes]
CANARY = "a-canary-that-code-would-touch"
SIZES = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
# Opcodes that call os.system, in three ways, and others that no data needs.
HARMFUL = (
    f"cos\nsystem\n(S'touch {CANARY}'\ntR".encode(),
    b"\x8c\x02os\x8c\x06system\x93\x8c"
    + bytes([len(f"touch {CANARY}")])
    + f"touch {CANARY}".encode()
    + b"\x85R",
    f"(S'touch {CANARY}'\nios\nsystem\n".encode(),
    f"c__builtin__\neval\n(S'open({CANARY!r}, \"w\")'\ntR".encode(),
    *(b"b", b"Q", b"\x81", b"\x92", b"r\xff\xff\xff\x7f", b"\x85" * 2000, b"2" * 50, b"0" * 5),
)


def place(rng: random.Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = place(rng, data)
    return start, min(len(data), start + rng.choice((1, 2, 8, 64, 512, 4096)))


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: place(rng, data)]


def behead(rng: random.Random, data: bytes) -> bytes:
    return data[span(rng, data)[1] :]


def cut(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    return data[:start] + data[end:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 3, 50)) + data[end:]


def splice(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    to = place(rng, data)
    return data[:to] + data[start:end] + data[to + end - start :]


def swap_sizes(rng: random.Random, data: bytes) -> bytes:
    """Put a number that is often a limit in the place of one, in any width and order."""
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(SIZES) % 2 ** (8 * width)
    start = place(rng, data)
    order = rng.choice(("little", "big"))
    return data[:start] + value.to_bytes(width, order) + data[start + width :]


def append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice((1, 100, 10_000)))


ANY: tuple[Mutation, ...] = (
    *(flip, overwrite, truncate, behead, cut, repeat, splice, swap_sizes, append),
)


def mutate_value(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Change something somewhere in a value of JSON."""
    strange: list[Any] = [None, -1, 2**63, 1e300, "", "x" * 3000, "\ud800", [], {}, True]
    strange += [[2**40, 2**40], "../../etc/passwd", "<img src=x onerror=alert(1)>", "a\x00b"]
    if not value or depth > 6 or rng.random() < 0.15:
        return rng.choice(strange)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        changed = dict(value)
        kept = changed.pop(key)
        new = rng.choice((key, key, key, *map(str, strange)))
        return changed | {new: mutate_value(rng, kept, depth + 1)}
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], mutate_value(rng, value[at], depth + 1), *value[at + 1 :]]
    return rng.choice(strange)


def mutate_header(rng: random.Random, data: bytes) -> bytes:
    """Change the header of a safetensors file, and tell its new length."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return flip(rng, data)
    text = json.dumps(mutate_value(rng, header)).encode("utf-8", "replace")
    text = rng.choice((text, text, b"[" * 10**5, text[:-1] + b',"a":{},"a":{}}'))
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def mutate_opcodes(rng: random.Random, data: bytes) -> bytes:
    """Change, drop, repeat or add opcodes of a pickle."""
    try:
        places = [at or 0 for _, _, at in pickletools.genops(data)]
    except ValueError:
        return flip(rng, data)
    at = rng.choice(places)
    following = [*places[places.index(at) + 1 :], len(data)]
    to = following[min(len(following) - 1, rng.choice((0, 0, 0, 1, 5, 20)))]
    change = rng.randrange(5)
    if change == 0:
        return data[:at] + data[to:]
    if change == 1:
        return data[:to] + data[at:to] * rng.choice((1, 10, 1000)) + data[to:]
    if change == 2:
        code = rng.choice(pickletools.opcodes).code.encode("latin-1")
        return data[:at] + code + data[at + 1 :]
    if change == 3:
        other = rng.choice(places)
        return data[:at] + data[other : other + 30] + data[at:]
    return data[:at] + rng.choice(HARMFUL) + data[at:]


def mutate_members(rng: random.Random, data: bytes) -> bytes:
    """Change, drop, rename, repeat or compress members of an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    # What was damaged before need not be an archive any more, in whatever way.
    except Exception:
        return flip(rng, data)
    if not members:
        return data
    at = rng.randrange(len(members))
    name, content = members[at]
    change = rng.randrange(6)
    if change == 0:
        del members[at]
    elif change == 1:
        strange = (f"../{name}", f"/{name}", name.upper(), f"{name}/data.pkl", "x" * 5000)
        members[at] = rng.choice(strange), content
    elif change == 2:
        members.append((name.replace("data", "date"), content))
    else:
        chosen = mutate_opcodes if name.endswith(".pkl") else rng.choice(ANY)
        members[at] = name, chosen(rng, content)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, warnings.catch_warnings():
        # A name twice is one of the damages.
        warnings.simplefilter("ignore")
        for each, content in members:
            kind = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
            archive.writestr(each, content, kind)
    return out.getvalue()


def mutate_table(rng: random.Random, data: bytes) -> bytes:
    """Change a block of a table and tell its new checksum, so that it is looked into."""
    try:
        _, at = read_varint(data, len(data) - 48)
        _, at = read_varint(data, at)
        index, at = read_varint(data, at)
        size, _ = read_varint(data, at)
        chosen = rng.choice(((index, size), (0, index - 5)))
    except ValueError:
        return flip(rng, data)
    start, end = chosen[0], chosen[0] + chosen[1]
    if not 0 <= start < end <= len(data) - 53:
        return flip(rng, data)
    block = rng.choice((flip, overwrite, swap_sizes, splice))(rng, data[start:end])
    block = block[: end - start].ljust(end - start, b"\x00") + b"\x00"
    return data[:start] + block + masked_crc32c(block).to_bytes(4, "little") + data[end + 5 :]


def mutate_message(rng: random.Random, data: bytes) -> bytes:
    """Change fields of an ONNX model that its protocol buffer allows to be anything."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return flip(rng, data)
    for _ in range(rng.choice((1, 2, 5))):
        tensor = rng.choice([*model.graph.initializer] or [model.graph.initializer.add()])
        node = rng.choice([*model.graph.node] or [model.graph.node.add()])
        change = rng.randrange(9)
        if change == 0:
            sizes = (-1, 0, 1, 3, 2**31, 2**62)
            tensor.dims[:] = rng.choices(sizes, k=rng.randrange(4))
        elif change == 1:
            tensor.data_type = rng.randrange(30)
        elif change == 2:
            tensor.name = rng.choice(("", "x" * 3000, rng.choice(node.input or [""])))
        elif change == 3:
            tensor.data_location = 1
            entry = tensor.external_data.add()
            entry.key = rng.choice(("location", "offset", "length"))
            entry.value = rng.choice(("../a", "/etc/passwd", "-1", "9" * 400, "a.onnx", "1_0"))
        elif change == 4:
            tensor.ClearField(rng.choice(("raw_data", "dims", "name", "data_type")))
        elif change == 5:
            kinds = ("BatchNormalization", "Conv", "Add", "MatMul", "Constant", "")
            node.op_type = rng.choice(kinds)
        elif change == 6 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(("", "x", tensor.name))
        elif change == 7:
            model.graph.node.append(node)
        elif node.attribute:
            rng.choice(node.attribute).type = rng.randrange(15)
    return model.SerializeToString()
