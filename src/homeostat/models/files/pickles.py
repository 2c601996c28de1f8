"""A reader of pickles that makes data alone and calls nothing that a pickle names.

`pickle.Unpickler` is not used, whatever its `find_class` allows: 46 bytes make it allocate 4 GB
(a memo with a large index), and a deep tuple as a dictionary's key overflows its stack.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_OPCODES = 3_000_000

_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        "BYTEARRAY8",
    )
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = frozenset(("PROTO", "FRAME"))
_MARK = object()


class RefusedError(Exception):
    """A pickle wants something that is not among what it may name."""


@dataclass(frozen=True)
class Named:
    """What a pickle names: ``"torch._utils._rebuild_tensor_v2"``."""

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """What a pickle would have made by calling something; nothing was called."""

    name: str


class _Reader:
    """The stack, the memo and what to do for each opcode."""

    def __init__(
        self, makers: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]
    ) -> None:
        self.makers, self.persistent = makers, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, opcode: str, argument: Any) -> None:
        """Do what one opcode says."""
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode not in _NOTHING:
            do = _ACTIONS.get(opcode)
            if do is None:
                raise ValueError(f"it has the opcode {opcode}")
            do(self, argument)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it takes more than it has put down")
        found = self.stack[-count:]
        del self.stack[-count:]
        if any(each is _MARK for each in found):
            raise ValueError("it takes a mark for a value")
        return found

    def _pop_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise ValueError("it has no mark")

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def pop(self, _: Any) -> None:
        if not self.stack:
            raise ValueError("it takes more than it has put down")
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def copy_top(self, _: Any) -> None:
        (top,) = self._pop(1)
        self.stack += (top, top)

    def put(self, index: Any) -> None:
        (top,) = self._pop(1)
        self.stack.append(top)
        self.memo[len(self.memo) if index is None else int(index)] = top

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    def make_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def make_list(self, _: Any) -> None:
        self.stack.append(self._pop_to_mark())

    def make_dict(self, _: Any) -> None:
        found: dict[Any, Any] = {}
        _set_items(found, self._pop_to_mark())
        self.stack.append(found)

    def append(self, _: Any) -> None:
        _add(self._target(1), self._pop(1))

    def appends(self, _: Any) -> None:
        found = self._pop_to_mark()
        _add(self._target(0), found)

    def set_item(self, _: Any) -> None:
        _set_items(self._target(2), self._pop(2))

    def set_items(self, _: Any) -> None:
        found = self._pop_to_mark()
        _set_items(self._target(0), found)

    def _target(self, below: int) -> Any:
        if len(self.stack) <= below:
            raise ValueError("it adds to nothing")
        return self.stack[-1 - below]

    def name(self, argument: Any) -> None:
        self._name(str(argument).replace(" ", ".", 1))

    def stack_name(self, _: Any) -> None:
        module, name = self._pop(2)
        self._name(f"{module}.{name}")

    def _name(self, name: str) -> None:
        if name not in self.makers:
            raise RefusedError(name)
        self.stack.append(Named(name))

    def call(self, _: Any) -> None:
        what, arguments = self._pop(2)
        if not isinstance(what, Named) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        self.stack.append(self.makers[what.name](*arguments))

    def build(self, _: Any) -> None:
        # The state of an object: nothing that is made here has any.
        self._pop(1)
        self._target(0)

    def persistent_id(self, _: Any) -> None:
        (identifier,) = self._pop(1)
        self.stack.append(self.persistent(identifier))


_ACTIONS: Mapping[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader.mark,
    "POP": _Reader.pop,
    "POP_MARK": _Reader.pop_mark,
    "DUP": _Reader.copy_top,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Reader.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Reader.get),
    "TUPLE": _Reader.make_tuple,
    "LIST": _Reader.make_list,
    "DICT": _Reader.make_dict,
    "APPEND": _Reader.append,
    "APPENDS": _Reader.appends,
    "ADDITEMS": _Reader.appends,
    "SETITEM": _Reader.set_item,
    "SETITEMS": _Reader.set_items,
    "GLOBAL": _Reader.name,
    "STACK_GLOBAL": _Reader.stack_name,
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "BUILD": _Reader.build,
    "BINPERSID": _Reader.persistent_id,
}


def _add(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Inert):
        raise ValueError("it appends to what is no list")


def _set_items(target: Any, values: list[Any]) -> None:
    if len(values) % 2 or not isinstance(target, dict | Inert):
        raise ValueError("it sets items of what is no dictionary")
    if isinstance(target, dict):
        # Any other key is of no use here, and could be costly to hash.
        pairs = zip(values[::2], values[1::2], strict=True)
        target.update((key, value) for key, value in pairs if _is_plain(key))


def _is_plain(key: Any) -> bool:
    return type(key) in (str, int, float, bool, bytes)


def read_pickle(
    stream: BinaryIO,
    makers: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any],
) -> Any:
    """Return the data of one pickle, and leave the stream behind it.

    Args:
        stream: where it begins.
        makers: for each name that it may use, what to put in the place of a call of that.
        persistent: returns what a persistent identifier stands for.

    Raises:
        RefusedError: it names something else.
        ValueError: it is damaged, too long, or has an opcode for which there is no use.

    Example:
        >>> import io, pickle
        >>> read_pickle(io.BytesIO(pickle.dumps({"epoch": 3})), {}, repr)
        {'epoch': 3}
        >>> import os
        >>> read_pickle(io.BytesIO(pickle.dumps(os.system)), {}, repr)
        Traceback (most recent call last):
        ...
        homeostat.models.files.pickles.RefusedError: posix.system
    """
    reader = _Reader(makers, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise ValueError(f"it has more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                break
            reader.take(opcode.name, argument)
        (found,) = reader._pop(1)
    except (KeyError, TypeError, IndexError, OverflowError, AttributeError) as error:
        raise ValueError(f"it does not fit together ({error!s:.100})") from error
    return found
