from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from homeostat.errors import SpecError
from homeostat.tf1.contrib.training import HParams
from tests.messages import has_three_parts


@pytest.fixture
def hparams():
    return HParams(a=1, b=2.5, c=[1, 2], name="x", on=False, free=None)


def test_values_are_attributes(hparams):
    assert (hparams.a, hparams.b, hparams.c, hparams.name) == (1, 2.5, [1, 2], "x")
    assert list(hparams.values()) == ["a", "b", "c", "name", "on", "free"]
    assert "a" in hparams
    assert "z" not in hparams
    assert hparams.get("a") == 1
    assert hparams.get("z", 7) == 7


PARSED = [
    ("a=1,b=2.5,c=[1,2]", {"a": 1, "b": 2.5, "c": [1, 2]}),
    (" a = -3 , name = some text ,on=True", {"a": -3, "name": "some text", "on": True}),
    ("b=1e-3", {"b": 1e-3}),
    ("b=2", {"b": 2.0}),
    ("c=[]", {"c": []}),
    ("c=[5]", {"c": [5]}),
    ("c=5", {"c": [5]}),
    ("c[1]=9", {"c": [1, 9]}),
    ("c[0]=8,c[1]=9,a=2", {"c": [8, 9], "a": 2}),
    ("on=1", {"on": True}),
    ("on=false", {"on": False}),
    ("name=", {"name": ""}),
    ("free=text", {"free": "text"}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "changes"), PARSED)
def test_text_is_parsed(hparams, text, changes):
    before = hparams.values()
    assert hparams.parse(text) is hparams
    assert hparams.values() == {**before, **changes}
    assert all(type(getattr(hparams, name)) is type(value) for name, value in changes.items())


WRONG = ["a=x", "a=1.5", "z=1", "a", "a=1,a=2", "on=maybe", "c[2]=1", "a[0]=1", "c=[1,x]"]
WRONG += ["c[0]=[1]", "a=[1]", "c=[1,2", "a=1;b=2", "c=[1],c[0]=2", "a=1,,b=2"]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_text_changes_nothing(hparams, text):
    before = hparams.values()
    with pytest.raises(SpecError) as caught:
        hparams.parse(f"b=9,{text}")
    assert str(caught.value).endswith((".", "?"))
    assert hparams.values() == before


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("b", 3, 3.0),
        ("a", np.int64(4), 4),
        ("b", np.float32(0.5), 0.5),
        ("c", (3, 4), [3, 4]),
        ("free", {"any": 1}, {"any": 1}),
    ],
)
def test_values_are_set_as_their_type(hparams, name, value, kept):
    hparams.set_hparam(name, value)
    assert getattr(hparams, name) == kept
    assert type(getattr(hparams, name)) is type(kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [("a", 1.5), ("a", "1"), ("a", True), ("on", 1), ("b", "x"), ("c", 3), ("a", [1]), ("name", 3)],
)
def test_values_of_another_type_are_refused(hparams, name, value):
    with pytest.raises(SpecError) as caught:
        hparams.set_hparam(name, value)
    assert has_three_parts(caught.value)


def test_names(hparams):
    hparams.add_hparam("new", 0.1)
    assert hparams.new == 0.1
    hparams.del_hparam("new")
    assert "new" not in hparams
    assert not hasattr(hparams, "new")
    for taken in ("a", "values", "parse"):
        with pytest.raises(SpecError, match="is taken"):
            hparams.add_hparam(taken, 1)
    with pytest.raises(SpecError, match="mixes types"):
        HParams(mixed=[1, "a"])
    with pytest.raises(SpecError, match="Did you mean name"):
        hparams.set_hparam("nam", "y")


def test_dicts_and_json(hparams):
    assert hparams.override_from_dict({"a": 5, "c": [7]}) is hparams
    assert (hparams.a, hparams.c) == (5, [7])
    assert json.loads(hparams.to_json()) == hparams.values()
    assert hparams.to_json(sort_keys=True, separators=(",", ":")).startswith('{"a":5,"b":2.5')
    other = HParams(a=1, b=2.5, c=[1, 2], name="x", on=False, free=None)
    assert other != hparams
    assert other.parse_json(hparams.to_json()) == hparams
    assert repr(HParams(a=1, s="t")) == "HParams(a=1, s='t')"
