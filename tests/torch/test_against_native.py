"""On ordinary data the modules equal PyTorch's own: outputs, gradients, state, errors, words."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import homeostat.torch as ours
from homeostat import ShapeError

NAMES = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
LAZY = [f"Lazy{name}" for name in NAMES]
INNER = {"BatchNorm1d": [(), (5,)], "BatchNorm2d": [(3, 4)], "BatchNorm3d": [(2, 3, 2)]}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
CLOSE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}


def both(name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Return our module and native's, with the same random weight and bias."""
    mine = getattr(ours, name)(*arguments, **options)
    native = getattr(torch.nn, name)(*arguments, **options)
    if mine.affine:
        with torch.no_grad():
            mine.weight.normal_(1.0, 0.3)
            if mine.bias is not None:
                mine.bias.normal_()
        native.load_state_dict(mine.state_dict())
    return mine, native


def check_step(mine: Any, native: Any, x: Any, close: dict[str, float]) -> None:
    """Compare output and gradients, both taken with the same upstream gradient."""
    a, b = (x.detach().clone(memory_format=torch.preserve_format) for _ in range(2))
    a.requires_grad_()
    b.requires_grad_()
    y, expected = mine(a), native(b)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, **close)
    dy = torch.randn_like(y)
    leaves = [p for p in (mine.weight, mine.bias) if p is not None]
    theirs = [p for p in (native.weight, native.bias) if p is not None]
    found = torch.autograd.grad(y, [a, *leaves], dy)
    wanted = torch.autograd.grad(expected, [b, *theirs], dy)
    for actual, correct in zip(found, wanted, strict=True):
        scale = max(1.0, float(correct.abs().max()))
        torch.testing.assert_close(actual / scale, correct / scale, **close)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize(
    ("name", "inner"), [(name, inner) for name in NAMES for inner in INNER[name]], ids=str
)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_equals_native(name: str, inner: tuple[int, ...], dtype: torch.dtype, mixed: bool) -> None:
    """In every dtype, and in 16 bits under parameters of 32 as well, as under autocast."""
    mine, native = both(name, 6, eps=1e-3, momentum=0.3)
    if not mixed:
        mine, native = mine.to(dtype), native.to(dtype)
    for step in range(3):
        x = torch.randn((8, 6, *inner), dtype=dtype) * 2 + 1
        if step == 1 and x.dim() in FORMATS:
            x = x.contiguous(memory_format=FORMATS[x.dim()])
        if mixed and dtype == torch.float64:
            # Native refuses; ours answers in the input's dtype.
            assert mine(x).dtype == dtype
            return
        check_step(mine, native, x, CLOSE[dtype])
    state = CLOSE[dtype] if native.running_var.dtype == dtype else CLOSE[torch.float32]
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        actual, expected = getattr(mine, key), getattr(native, key)
        torch.testing.assert_close(actual, expected.to(actual.dtype), **state)
    check_step(mine.eval(), native.eval(), x, CLOSE[dtype])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_native_over_random_options(data: st.DataObject) -> None:
    draw = data.draw
    name = draw(st.sampled_from(NAMES))
    options = {
        "eps": draw(st.sampled_from([1e-5, 1e-3, 0.1])),
        "momentum": draw(st.sampled_from([0.1, 0.0, 1.0, 0.37, None])),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }
    channels = draw(st.integers(1, 9))
    mine, native = both(name, channels, **options)
    inner = draw(st.sampled_from(INNER[name]))
    for _ in range(draw(st.integers(1, 4))):
        training = draw(st.booleans())
        mine.train(training), native.train(training)
        x = torch.randn((draw(st.integers(2, 7)), channels, *inner)) * 2 - 1
        if draw(st.booleans()):
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
        # Two elements per channel leave gradients of nothing but rounding.
        check_step(mine, native, x, {"rtol": 1e-4, "atol": 1e-4})
    assert mine.state_dict().keys() == native.state_dict().keys()
    for key, value in native.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES + LAZY)
def test_arguments_are_natives(name: str) -> None:
    native = inspect.signature(getattr(torch.nn, name)).parameters
    mine = inspect.signature(getattr(ours, name)).parameters
    common = [parameter for parameter in mine if parameter in native]
    assert common == list(native)
    assert [mine[n].default for n in native] == [native[n].default for n in native]
    assert [mine[n].kind for n in native] == [native[n].kind for n in native]


@pytest.mark.parametrize("name", NAMES)
def test_tools_recognize_the_modules(name: str) -> None:
    assert isinstance(getattr(ours, name)(3), getattr(torch.nn, name))
    assert isinstance(getattr(ours, f"Lazy{name}")(), getattr(torch.nn, f"Lazy{name}"))


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_words_are_natives_where_no_option_is_on(name: str, options: dict[str, Any]) -> None:
    mine, native = getattr(ours, name)(5, **options), getattr(torch.nn, name)(5, **options)
    assert repr(mine) == repr(native)
    assert list(mine.state_dict()) == list(native.state_dict())
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in native.named_parameters()]


def test_repr_has_the_options_that_are_on() -> None:
    bn = ours.BatchNorm2d(4, activation="relu", virtual_batch_size=2, frozen_affine=True)
    expected = "activation='relu', virtual_batch_size=2, frozen_affine=True)"
    assert repr(bn).endswith(f"track_running_stats=True, {expected}")


@pytest.mark.parametrize(("name", "rank"), [(name, rank) for name in NAMES for rank in range(1, 7)])
def test_ranks_and_their_errors_are_natives(name: str, rank: int) -> None:
    x = torch.randn([4] * rank)
    mine, native = getattr(ours, name)(4), getattr(torch.nn, name)(4)
    if len(INNER[name][-1]) + 2 == rank or (name, rank) == ("BatchNorm1d", 2):
        torch.testing.assert_close(mine(x), native(x))
        return
    with pytest.raises(ValueError, match="input") as theirs:
        native(x)
    with pytest.raises(ValueError, match="input") as caught:
        mine(x)
    assert str(caught.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("name", "shape"), [("BatchNorm1d", (1, 3)), ("BatchNorm2d", (1, 3, 1, 1))]
)
@pytest.mark.parametrize("track", [False, True])
def test_one_element_per_channel_is_natives_error(
    name: str, shape: tuple[int, ...], track: bool
) -> None:
    x = torch.randn(shape)
    for training in (True, False):
        mine, native = both(name, 3, track_running_stats=track)
        mine.train(training), native.train(training)
        if not training and track:
            torch.testing.assert_close(mine(x), native(x))
            continue
        with pytest.raises(ValueError, match="Expected more than 1 value per channel") as theirs:
            native(x)
        with pytest.raises(ValueError, match="Train on larger batches") as caught:
            mine(x)
        assert str(caught.value).startswith(str(theirs.value))


def test_another_number_of_channels_is_an_error() -> None:
    for bn in (ours.BatchNorm2d(4), ours.BatchNorm2d(4).eval()):
        with pytest.raises(ShapeError, match=r"expected \(3,\)"):
            bn(torch.randn(2, 3, 5, 5))


def test_checkpoints_go_both_ways_strictly() -> None:
    mine, native = both("BatchNorm2d", 4)
    mine(torch.randn(8, 4, 3, 3))
    mine(torch.full((8, 4, 3, 3), torch.nan))
    native.load_state_dict(mine.state_dict(), strict=True)
    fresh = ours.BatchNorm2d(4)
    fresh(torch.full((8, 4, 3, 3), torch.nan))
    fresh.load_state_dict(native.state_dict(), strict=True)
    torch.testing.assert_close(fresh.state_dict(), mine.state_dict())
    assert fresh.skipped_updates.tolist() == [0] * 4
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(fresh.eval()(x), native.eval()(x))
    assert fresh.state_dict()._metadata == native.state_dict()._metadata


def test_checkpoints_older_than_the_count_load() -> None:
    old = torch.nn.BatchNorm1d(4).state_dict()
    del old["num_batches_tracked"]
    del old._metadata
    bn = ours.BatchNorm1d(4)
    bn.load_state_dict(old, strict=True)
    assert int(bn.num_batches_tracked) == 0


def test_a_native_checkpoint_starts_renorm_and_zero_debias() -> None:
    native = torch.nn.BatchNorm1d(4)
    for _ in range(3):
        native(torch.randn(16, 4) * 3 + 1)
    for lazy in (False, True):
        options = {"renorm": True, "zero_debias": True}
        bn = ours.LazyBatchNorm1d(**options) if lazy else ours.BatchNorm1d(4, **options)
        given = native.state_dict()
        bn.load_state_dict(given, strict=True)
        assert given.keys() == native.state_dict().keys()
        torch.testing.assert_close(bn.renorm_mean, native.running_mean)
        torch.testing.assert_close(bn.renorm_std, (native.running_var + 1e-5).sqrt())
        bn(torch.randn(16, 4))
        again = ours.BatchNorm1d(4, **options)
        again.load_state_dict(bn.state_dict(), strict=True)
        torch.testing.assert_close(again.state_dict(), bn.state_dict())
        with pytest.raises(RuntimeError, match="renorm_mean"):
            native.load_state_dict(bn.state_dict(), strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_lazy_modules_find_their_channels(name: str) -> None:
    shape = (4, 5, *INNER[name][-1])
    x = torch.randn(shape)
    lazy = getattr(ours, f"Lazy{name}")(activation="relu", renorm=True, dtype=torch.float32)
    eager = getattr(ours, name)(5, activation="relu", renorm=True)
    torch.testing.assert_close(lazy(x, residual=x), eager(x, residual=x))
    assert repr(lazy) == repr(eager)
    torch.testing.assert_close(lazy.state_dict(), eager.state_dict())
    assert type(lazy) is type(eager)


def test_a_lazy_module_loads_before_its_first_input() -> None:
    for source in (torch.nn.BatchNorm1d(3), ours.BatchNorm1d(3)):
        lazy = ours.LazyBatchNorm1d(activation="relu")
        lazy.load_state_dict(source.state_dict(), strict=True)
        assert lazy(torch.randn(4, 3)).shape == (4, 3)
        assert lazy.num_features == 3
        assert lazy.skipped_updates.shape == (3,)


def test_an_unknown_argument_of_a_lazy_module_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"\['aktivation'\]"):
        ours.LazyBatchNorm2d(aktivation="relu")


def test_resetting() -> None:
    bn = ours.BatchNorm1d(3, renorm=True)
    start = copy.deepcopy(bn.state_dict())
    bn(torch.randn(9, 3) + 4)
    bn(torch.full((9, 3), torch.inf))
    assert bn.skipped_updates.tolist() == [1, 1, 1]
    bn.reset_running_stats()
    with torch.no_grad():
        bn.weight.fill_(4.0)
    bn.reset_parameters()
    torch.testing.assert_close(bn.state_dict(), start)
    assert bn.skipped_updates.tolist() == [0, 0, 0]


def test_statistics_stay_wide() -> None:
    """The running statistics of native modules are rounded to 16 bits, where small steps vanish."""
    made = ours.BatchNorm2d(4, dtype=torch.bfloat16, momentum=0.01)
    cast = ours.BatchNorm2d(4, momentum=0.01).to(torch.bfloat16)
    native = torch.nn.BatchNorm2d(4, dtype=torch.bfloat16, momentum=0.01)
    x = torch.randn(8, 4, 5, 5).to(torch.bfloat16) * 1.2
    for _ in range(100):
        for bn in (made, cast, native):
            bn(x)
    values = x.double().transpose(0, 1).flatten(1)
    expected = values.var(1) + (1 - values.var(1)) * 0.99**100
    for bn in (made, cast):
        assert bn.weight.dtype == torch.bfloat16
        assert bn.running_var.dtype == torch.float32
        torch.testing.assert_close(bn.running_var.double(), expected, rtol=1e-5, atol=1e-5)
    assert (native.running_var.double() - expected).abs().max() > 0.02
    assert ours.LazyBatchNorm1d(dtype=torch.float16).running_mean.dtype == torch.float32
    assert made.double().running_var.dtype == torch.float64


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_formats_are_kept(training: bool, memory: torch.memory_format) -> None:
    x = torch.randn(4, 3, 5, 6).contiguous(memory_format=memory).requires_grad_()
    found = []
    for bn in both("BatchNorm2d", 3):
        y = bn.train(training)(x)
        found.append((y.stride(), torch.autograd.grad(y.square().sum(), x)[0].stride()))
    assert found[0] == found[1] == (x.stride(), x.stride())


def test_options_changed_later_count() -> None:
    mine, native = both("BatchNorm1d", 3)
    for momentum, eps in ((0.5, 1e-5), (None, 0.1), (0.2, 1e-3)):
        mine.momentum = native.momentum = momentum
        mine.eps = native.eps = eps
        x = torch.randn(16, 3)
        torch.testing.assert_close(mine(x), native(x))
    torch.testing.assert_close(mine.state_dict(), native.state_dict())
    mine.track_running_stats = native.track_running_stats = False
    mine(x), native(x)
    torch.testing.assert_close(mine.state_dict(), native.state_dict())
    mine.running_mean = mine.running_var = native.running_mean = native.running_var = None
    torch.testing.assert_close(mine.eval()(x), native.eval()(x))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])  # noqa: S301
def test_copies_are_whole(way: Any) -> None:
    bn = ours.BatchNorm2d(3, activation="relu", renorm=True, renorm_clipping={"rmax": 2.0})
    bn(torch.randn(4, 3, 5, 5))
    twin = way(bn)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(twin(x), bn(x))
    assert repr(twin) == repr(bn)
    twin.momentum = 0.5
    assert (twin.spec.momentum, bn.spec.momentum) == (0.5, 0.9)


@pytest.mark.usefixtures("size")
def test_the_state_of_an_evaluation_stays() -> None:
    bn = ours.BatchNorm1d(3).eval()
    before = copy.deepcopy(bn.state_dict())
    bn(torch.randn(8, 3))
    torch.testing.assert_close(bn.state_dict(), before)
