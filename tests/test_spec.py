from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat import CONVENTIONS, Activation, BatchNormSpec, RenormClipping, SpecError
from homeostat.spec import check_epsilon
from tests.messages import has_three_parts


def test_defaults_are_those_of_keras() -> None:
    spec = BatchNormSpec()
    keras = CONVENTIONS["keras"]
    assert (spec.axis, spec.momentum, spec.epsilon) == ((-1,), keras.momentum, keras.epsilon)
    assert (spec.center, spec.scale, spec.stored_variance) == (True, True, keras.stored_variance)
    assert (spec.renorm, spec.virtual_batch_size, spec.zero_debias) == (False, None, False)
    assert (spec.nonfinite, spec.fused_activation, spec.synchronized) == ("skip", None, False)
    assert spec.clipping == RenormClipping(None, None, None)


@pytest.mark.parametrize(
    ("axis", "axes"),
    [
        (-1, (-1,)),
        ([1, 3], (1, 3)),
        ((2,), (2,)),
        (np.int64(1), (1,)),
        (range(1, 3), (1, 2)),
    ],
)
def test_axis_is_read_as_a_tuple(axis: Any, axes: tuple[int, ...]) -> None:
    spec = BatchNormSpec(axis=axis)
    assert spec.axes == axes
    assert all(type(a) is int for a in spec.axes)


def test_spec_is_frozen_and_compares_by_value() -> None:
    spec = BatchNormSpec(axis=[1], activation="relu", renorm=True, renorm_clipping={"rmax": 3})
    same = BatchNormSpec(
        axis=1, activation=Activation("relu"), renorm=True, renorm_clipping=RenormClipping(rmax=3)
    )
    assert spec == same
    assert hash(spec) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.momentum = 0.5  # type: ignore[misc]


def test_options_are_read_into_one_form() -> None:
    spec = BatchNormSpec(momentum=1, epsilon=0, activation={"name": "leaky_relu"}, renorm=True)
    assert (spec.momentum, spec.epsilon) == (1.0, 0.0)
    assert type(spec.momentum) is float
    assert spec.fused_activation == Activation("leaky_relu", 0.2)
    assert BatchNormSpec(momentum=None).momentum is None


BAD = {
    "momentum-above": {"momentum": 1.5},
    "momentum-below": {"momentum": -0.1},
    "momentum-nan": {"momentum": math.nan},
    "momentum-text": {"momentum": "0.9"},
    "momentum-bool": {"momentum": True},
    "renorm-momentum-above": {"renorm_momentum": 1.5},
    "renorm-momentum-none": {"renorm_momentum": None},
    "epsilon-negative": {"epsilon": -1e-3},
    "epsilon-infinite": {"epsilon": math.inf},
    "epsilon-nan": {"epsilon": math.nan},
    "epsilon-none": {"epsilon": None},
    "axis-empty": {"axis": []},
    "axis-text": {"axis": "channels"},
    "axis-float": {"axis": 1.0},
    "axis-bool": {"axis": True},
    "axis-mixed": {"axis": [1, "2"]},
    "axis-repeated": {"axis": [1, 2, 1]},
    "stored-variance": {"stored_variance": "unbiased"},
    "nonfinite": {"nonfinite": "ignore"},
    "clipping-without-renorm": {"renorm_clipping": {"rmax": 3.0}},
    "clipping-unknown-key": {"renorm": True, "renorm_clipping": {"rmean": 1.0}},
    "clipping-negative": {"renorm": True, "renorm_clipping": {"dmax": -1.0}},
    "clipping-text": {"renorm": True, "renorm_clipping": {"dmax": "5"}},
    "clipping-crossed": {"renorm": True, "renorm_clipping": {"rmin": 2.0, "rmax": 1.0}},
    "virtual-zero": {"virtual_batch_size": 0},
    "virtual-negative": {"virtual_batch_size": -4},
    "virtual-float": {"virtual_batch_size": 4.0},
    "virtual-bool": {"virtual_batch_size": True},
    "virtual-axis-0": {"virtual_batch_size": 4, "axis": [0, 1]},
    "virtual-synchronized": {"virtual_batch_size": 4, "synchronized": True},
    "debias-cumulative": {"zero_debias": True, "momentum": None},
    "debias-momentum-1": {"zero_debias": True, "momentum": 1.0},
    "activation-unknown": {"activation": "gelu"},
    "activation-function": {"activation": math.tanh},
    "activation-keys": {"activation": {"name": "relu", "max_value": 6}},
    "activation-nameless": {"activation": {"negative_slope": 0.1}},
    "slope-negative": {"activation": {"name": "leaky_relu", "negative_slope": -0.1}},
    "slope-above": {"activation": {"name": "leaky_relu", "negative_slope": 1.1}},
    "slope-of-relu": {"activation": {"name": "relu", "negative_slope": 0.1}},
    "slope-text": {"activation": {"name": "leaky_relu", "negative_slope": "0.1"}},
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_options_are_refused_with_the_reason(bad: str) -> None:
    with pytest.raises(SpecError) as caught:
        BatchNormSpec(**BAD[bad])  # type: ignore[arg-type]
    assert has_three_parts(caught.value), caught.value


def test_three_parts_are_told_from_fewer() -> None:
    assert has_three_parts(ValueError("a=3 is odd: expected an even number. Add 1."))
    assert not has_three_parts(ValueError("a=3 is odd: expected an even number."))
    assert not has_three_parts(ValueError("a=3 is odd. Add 1."))


@pytest.mark.parametrize("value", [None, "linear", "identity"])
def test_no_activation(value: Any) -> None:
    assert Activation.of(value) is None


@given(slope=st.floats(0.0, 1.0))
def test_activation_reads_its_own_config(slope: float) -> None:
    for activation in (Activation("relu"), Activation("leaky_relu", slope)):
        assert Activation.of(activation.config()) == activation
        assert Activation.of(activation) is activation


def test_clipping_reads_its_own_config() -> None:
    for clipping in (RenormClipping(), RenormClipping(dmax=2.0), RenormClipping(0.5, 2.0, 1.0)):
        assert RenormClipping.of(clipping.config()) == clipping
        assert RenormClipping.of(clipping) is clipping
    assert RenormClipping.of(None) == RenormClipping()
    assert RenormClipping(rmax=3.0).config() == {"rmax": 3.0}


def test_check_epsilon_returns_a_float() -> None:
    assert check_epsilon(np.float32(0.5)) == 0.5
    assert type(check_epsilon(1)) is float


@given(momentum=st.floats(0.0, 1.0))
@pytest.mark.parametrize("framework", CONVENTIONS)
def test_momentum_is_translated_there_and_back(framework: str, momentum: float) -> None:
    convention = CONVENTIONS[framework]
    old = convention.to_old_weight(momentum)
    assert old == (1.0 - momentum if framework == "torch" else momentum)
    assert convention.from_old_weight(old) == pytest.approx(momentum, abs=1e-15)


def test_the_cumulative_average_needs_no_translation() -> None:
    assert CONVENTIONS["torch"].to_old_weight(None) is None
    assert CONVENTIONS["keras"].from_old_weight(None) is None


def test_variance_factors() -> None:
    torch, keras = CONVENTIONS["torch"], CONVENTIONS["keras"]
    assert torch.variance_factor("population", 5) == 5 / 4
    assert keras.variance_factor("sample", 5) == 4 / 5
    assert torch.variance_factor("sample", 1) == 1.0
    assert keras.variance_factor("population", 0) == 1.0
    for count in (1, 0, math.nan):
        with pytest.raises(SpecError) as caught:
            torch.variance_factor("population", count)
        assert has_three_parts(caught.value)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CONVENTIONS["keras"].names["gamma"] = "weight"  # type: ignore[index]
    with pytest.raises(TypeError):
        CONVENTIONS["own"] = CONVENTIONS["keras"]  # type: ignore[index]


def test_the_table_holds_the_frameworks_own_defaults() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(3)
    ours = CONVENTIONS["torch"]
    assert (theirs.momentum, theirs.eps) == (ours.momentum, ours.epsilon)
    assert set(ours.names.values()) <= set(theirs.state_dict())


def test_the_table_holds_flax_own_defaults() -> None:
    flax = pytest.importorskip("flax.nnx")
    theirs = flax.BatchNorm(3, rngs=flax.Rngs(0))
    ours = CONVENTIONS["flax"]
    assert (theirs.momentum, theirs.epsilon) == (ours.momentum, ours.epsilon)
    assert all(hasattr(theirs, name) for name in ours.names.values())
