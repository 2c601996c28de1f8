"""`tf.contrib.training`: hyperparameters with names, types and a text form."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from homeostat.errors import SpecError

# name=value or name[index]=value, where a value is a [list] or all up to the next comma.
_ASSIGNMENT = re.compile(
    r"\s*(?P<name>[A-Za-z_]\w*)\s*(?:\[\s*(?P<index>\d+)\s*\])?\s*="
    r"\s*(?:\[(?P<list>[^\]]*)\]|(?P<value>[^,\[]*))\s*(?:,|$)"
)
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class HParams:
    """Hyperparameters: named values that keep the type they were given first.

    Args:
        **values: the name and first value of each; a list has one type for all of its elements.

    Raises:
        SpecError: a name is taken by a method of this class, or a list mixes types.

    Example:
        >>> hparams = HParams(learning_rate=0.1, layers=[64, 32], name="digits")
        >>> hparams.parse("learning_rate=0.01,layers=[128,64,32]").learning_rate
        0.01
        >>> hparams.values()
        {'learning_rate': 0.01, 'layers': [128, 64, 32], 'name': 'digits'}
        >>> hparams.set_hparam("learning_rate", 1)
        >>> hparams.learning_rate
        1.0
    """

    def __init__(self, **values: Any) -> None:
        # The type of each hyperparameter (of its elements, for a list), and whether it is a list.
        self._types: dict[str, tuple[type, bool]] = {}
        for name, value in values.items():
            self.add_hparam(name, value)

    def add_hparam(self, name: str, value: Any) -> None:
        """Add a hyperparameter; its type is from now on the type of this value.

        Args:
            name: its name, no name of a method and not added before.
            value: a number, a bool, a text, None, or a list of one of these types.

        Raises:
            SpecError: the name is taken, or the list is mixed.
        """
        if name in self._types or hasattr(type(self), name):
            raise SpecError(
                f"The name {name!r} is taken: expected a name that HParams does not have. "
                "Choose another name, or call set_hparam to change a value."
            )
        elements = list(value) if isinstance(value, list | tuple) else [value]
        kinds = {type(element) for element in elements}
        if len(kinds) > 1:
            raise SpecError(
                f"{name}={value!r} mixes types: expected elements of one type. "
                "Make all of its elements ints, floats, bools or texts."
            )
        several = isinstance(value, list | tuple)
        self._types[name] = (kinds.pop() if kinds else type(None), several)
        setattr(self, name, list(value) if several else value)

    def set_hparam(self, name: str, value: Any) -> None:
        """Change the value of a hyperparameter that exists.

        Args:
            name: its name.
            value: of its type (an int will do for a float), or a list for a list.

        Raises:
            SpecError: no such hyperparameter, or a value of another type.
        """
        kind, several = self._type_of(name)
        if several != isinstance(value, list | tuple) and kind is not type(None):
            expected = f"a list of {kind.__name__}" if several else f"one {kind.__name__}"
            raise SpecError(
                f"{name}={value!r} does not fit: expected {expected}. Give it the form it had "
                "when it was added."
            )
        if isinstance(value, list | tuple):
            setattr(self, name, [_cast(name, kind, element) for element in value])
        else:
            setattr(self, name, _cast(name, kind, value))

    def del_hparam(self, name: str) -> None:
        """Remove a hyperparameter, if it is there."""
        if self._types.pop(name, None) is not None:
            delattr(self, name)

    def parse(self, values: str) -> HParams:
        """Change hyperparameters by a text such as ``"a=1,b=2.5,c=[1,2],d[0]=3"``.

        Args:
            values: assignments to hyperparameters that exist, separated by commas.

        Returns:
            Itself. Nothing is changed if any part of the text is wrong.

        Raises:
            SpecError: text that is no assignment, an unknown name, a name that is assigned twice,
                or a value that its type cannot read.
        """
        before = self.values()
        try:
            assigned: set[tuple[str, str | None]] = set()
            for found in _assignments(values):
                self._assign(found, assigned)
        except SpecError:
            for name, value in before.items():
                setattr(self, name, value)
            raise
        return self

    def _assign(self, found: re.Match[str], assigned: set[tuple[str, str | None]]) -> None:
        name, index = found["name"], found["index"]
        kind, several = self._type_of(name)
        if {(name, index), (name, None)} & assigned:
            raise SpecError(
                f"{name} is assigned twice: expected each name once. Remove one of the two."
            )
        assigned.add((name, index))
        if index is not None:
            self._assign_element(name, int(index), found)
        elif found["list"] is not None:
            texts = [text.strip() for text in found["list"].split(",") if text.strip()]
            self.set_hparam(name, [_read(name, kind, text) for text in texts])
        elif several:
            # A list may be given its only element without brackets.
            self.set_hparam(name, [_read(name, kind, found["value"].strip())])
        else:
            self.set_hparam(name, _read(name, kind, found["value"].strip()))

    def _assign_element(self, name: str, index: int, found: re.Match[str]) -> None:
        kind, several = self._types[name]
        elements = list(getattr(self, name)) if several else []
        if found["value"] is None or index >= len(elements):
            raise SpecError(
                f"{found[0].rstrip(',')!r} names no element: expected {name}[index]=value with an "
                f"index below {len(elements)}. Assign the whole list as {name}=[...]."
            )
        elements[index] = _read(name, kind, found["value"].strip())
        self.set_hparam(name, elements)

    def parse_json(self, values_json: str) -> HParams:
        """Change hyperparameters by a JSON object of names and values; return itself."""
        return self.override_from_dict(json.loads(values_json))

    def override_from_dict(self, values_dict: Mapping[str, Any]) -> HParams:
        """Change hyperparameters by a mapping of names to values.

        Args:
            values_dict: values for hyperparameters that exist.

        Returns:
            Itself.

        Raises:
            SpecError: as for `set_hparam`.
        """
        for name, value in values_dict.items():
            self.set_hparam(name, value)
        return self

    def values(self) -> dict[str, Any]:
        """Return the hyperparameters as a dict, in the order in which they were added."""
        return {name: getattr(self, name) for name in self._types}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a hyperparameter, or `default` where there is none of that name."""
        return getattr(self, key) if key in self._types else default

    def to_json(
        self,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Return the hyperparameters as a JSON object; the arguments are those of `json.dumps`."""
        return json.dumps(self.values(), indent=indent, separators=separators, sort_keys=sort_keys)

    def _type_of(self, name: str) -> tuple[type, bool]:
        try:
            return self._types[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._types, n=1)
            hint = f"Did you mean {near[0]}" if near else f"Add it with add_hparam({name!r}, ...)"
            raise SpecError(
                f"There is no hyperparameter {name!r}: expected one of {sorted(self._types)}. "
                f"{hint}{'?' if near else '.'}"
            ) from None

    def __contains__(self, key: object) -> bool:
        return key in self._types

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HParams) and self.values() == other.values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.values().items())
        return f"HParams({inside})"


def _assignments(text: str) -> Iterable[re.Match[str]]:
    position = 0
    while position < len(text.rstrip()):
        found = _ASSIGNMENT.match(text, position)
        if found is None:
            raise SpecError(
                f"{text[position:]!r} is no assignment: expected name=value, name=[value,...] or "
                "name[index]=value, separated by commas. Correct the text."
            )
        yield found
        position = found.end()


def _read(name: str, kind: type, text: str) -> Any:
    try:
        if kind is bool:
            return _TRUTHS[text.lower()]
        return text if kind is type(None) else kind(text)
    except (KeyError, ValueError):
        raise SpecError(
            f"{name}={text} cannot be read: expected {_article(kind)}. Correct the text, or add "
            f"{name} with a value of another type."
        ) from None


def _cast(name: str, kind: type, value: Any) -> Any:
    """Return a value as the type of its hyperparameter, where nothing is lost."""
    if kind is type(None) or value is None or type(value) is kind:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    # NumPy's integers are not Python's, but hold the same numbers.
    if kind in (int, float) and hasattr(value, "item") and isinstance(value.item(), int | kind):
        return kind(value.item())
    raise SpecError(
        f"{name}={value!r} does not fit: expected {_article(kind)}. Give it a value of its type, "
        "or remove it and add it anew."
    )


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiou' else 'a'} {kind.__name__}"
