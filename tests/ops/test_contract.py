"""The contract of `homeostat.ops`: every library gives the oracle's numbers on every case."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import numpy as np
import pytest

from homeostat import reference
from homeostat.errors import DTypeError, ShapeError, SpecError, UnsupportedError
from homeostat.moments import Moments
from tests import tolerances
from tests.cases import BY_NAME, FEW, REPRESENTATIVE, Case, draw
from tests.messages import has_three_parts
from tests.ops.adapters import LIBRARIES, WAYS, Adapter, adapter, pairs, way

EAGER = ("numpy", "tensorflow-eager", "jax", "torch")
FORCED = ("numpy-kernels", "torch-kernels")
DIFFERENTIABLE = [n for n in WAYS if not n.startswith("numpy")]


def options(case: Case) -> dict[str, Any]:
    return {"axis": case.axis, "epsilon": case.epsilon, "activation": case.activation}


def dtype_of(array: Any) -> str:
    return str(array.dtype).removeprefix("<dtype: '").removesuffix("'>").removeprefix("torch.")


def check_moments(library: Adapter, batch: Moments, expected: Moments, case: Case) -> None:
    assert isinstance(batch, Moments)
    assert dtype_of(batch.mean) == dtype_of(batch.variance) == tolerances.statistics_of(case)
    mean, variance = library.values(batch.mean), library.values(batch.variance)
    tolerances.check("mean", mean, expected.mean, case)
    tolerances.check("variance", variance, expected.variance, case)
    assert (variance >= 0).all()
    count = np.broadcast_to(library.values(batch.count), expected.mean.shape)
    np.testing.assert_allclose(count, expected.count, rtol=1e-6)


def check_outcome(library: Adapter, outcome: Any, case: Case) -> None:
    arrays = draw(case)
    y, batch, gradients = outcome
    arguments = {
        **options(case), "weights": arrays.weights, "residual": arrays.residual,
    }  # fmt: skip
    with np.errstate(invalid="ignore"):
        expected, expected_batch = reference.normalize_batch(
            arrays.x, arrays.gamma, arrays.beta, **arguments
        )
        expected_gradients = reference.backward(
            arrays.dy, arrays.x, arrays.gamma, arrays.beta, **arguments
        )
    assert dtype_of(y) == case.dtype
    tolerances.check("y", library.values(y), expected, case)
    check_moments(library, batch, expected_batch, case)
    given = {n for n in ("x", "gamma", "beta", "residual") if getattr(arrays, n) is not None}
    assert set(gradients) == (given if library.gradients else set())
    for name, gradient in gradients.items():
        kept = case.dtype if name in ("x", "residual") else case.affine_dtype
        assert dtype_of(gradient) == kept, name
        tolerances.check(name, library.values(gradient), getattr(expected_gradients, name), case)


@pytest.mark.parametrize(("name", "case"), pairs(*WAYS))
def test_outputs_gradients_and_moments_equal_the_oracle(name: str, case: Case) -> None:
    library, mode = way(name)
    arrays = draw(case)
    with library.scope(case.dtype):
        function = functools.partial(library.ops.normalize_batch, **options(case))
        outcome = library.run(
            function, library.inputs(arrays, case), library.array(arrays.dy, case.dtype), mode
        )
        check_outcome(library, outcome, case)


@pytest.mark.parametrize(
    ("name", "case"), pairs(*EAGER, "jax-kernels", "numpy-kernels", "torch-kernels")
)
def test_moments_equal_the_oracle(name: str, case: Case) -> None:
    library, _ = way(name)
    arrays = draw(case)
    with library.scope(case.dtype):
        inputs = library.inputs(arrays, case)
        batch = library.ops.moments(inputs["x"], case.axis, weights=inputs["weights"])
        check_moments(
            library,
            batch,
            reference.moments(arrays.x, case.axis, weights=arrays.weights),
            case,
        )


@pytest.mark.parametrize("case", REPRESENTATIVE, ids=str)
@pytest.mark.parametrize("name", ["numpy", "tensorflow-eager", "jax-jit", "torch", "torch-kernels"])
def test_given_moments_change_nothing(name: str, case: Case) -> None:
    library, mode = way(name)
    arrays = draw(case)
    with library.scope(case.dtype):
        inputs = library.inputs(arrays, case)
        batch = library.ops.moments(inputs["x"], case.axis, weights=inputs["weights"])
        function = functools.partial(library.ops.normalize_batch, **options(case), batch=batch)
        outcome = library.run(function, inputs, library.array(arrays.dy, case.dtype), mode)
        check_outcome(library, outcome, case)


@pytest.mark.parametrize("library", LIBRARIES)
def test_given_moments_are_used(library: str) -> None:
    case = BY_NAME["dense"]
    lib, arrays = adapter(library), draw(case)
    mean, variance = lib.array(np.full(7, 2.0), "float32"), lib.array(np.full(7, 9.0), "float32")
    given = Moments(33, mean, variance)
    y, batch = lib.ops.normalize_batch(lib.array(arrays.x, "float32"), batch=given, epsilon=0.0)
    np.testing.assert_allclose(lib.values(y), (arrays.x - 2.0) / 3.0, rtol=1e-5, atol=1e-6)
    assert lib.values(batch.mean).tolist() == [2.0] * 7
    assert lib.values(batch.variance).tolist() == [9.0] * 7
    assert float(lib.values(batch.count)) == 33


@pytest.mark.parametrize(("name", "case"), pairs(*EAGER, *FORCED))
def test_inference_equals_the_oracle(name: str, case: Case) -> None:
    library, _ = way(name)
    arrays = draw(case)
    kind = tolerances.statistics_of(case)
    batch = reference.moments(arrays.x, case.axis, weights=arrays.weights)
    # Rounded as a layer holds them, so that the oracle is given the very same statistics.
    mean, variance = (part.astype(kind).astype(np.float64) for part in batch[1:])
    with library.scope(case.dtype):
        inputs = library.inputs(arrays, case)
        y = library.ops.normalize(
            inputs["x"],
            library.array(mean, kind),
            library.array(variance, kind),
            inputs["gamma"],
            inputs["beta"],
            residual=inputs["residual"],
            **options(case),
        )
        expected = reference.normalize(
            arrays.x,
            mean,
            variance,
            arrays.gamma,
            arrays.beta,
            residual=arrays.residual,
            **options(case),
        )
        assert dtype_of(y) == case.dtype
        tolerances.check("y", library.values(y), expected, case)


# The moments given are eager tensors, which a session's graph does not take.
@pytest.mark.parametrize(
    "name", [n for n in WAYS if not n.startswith("numpy") and n != "tensorflow-session"]
)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_inference_is_differentiable_in_every_argument(name: str, case: Case) -> None:
    """With constant moments dx = dy * gamma * s, and mean and variance have gradients as well."""
    library, mode = way(name)
    arrays, layout = draw(case), case.layout
    rng = np.random.default_rng(5)
    shape = layout.known_channel_shape
    mean = rng.standard_normal(shape).astype(np.float32).astype(np.float64)
    variance = rng.uniform(0.5, 2.0, shape).astype(np.float32).astype(np.float64)
    inputs = library.inputs(arrays, case)
    # gamma's and beta's places lend their gradients to mean and variance.
    for place in ("gamma", "beta"):
        y, _, gradients = library.run(
            _inference(library, case, inputs, {"gamma": mean, "beta": variance}, place),
            {**inputs, "weights": None, **_places(library, place, mean, variance, inputs)},
            library.array(arrays.dy, case.dtype),
            mode,
        )
        expected = reference.normalize(
            arrays.x, mean, variance, arrays.gamma, arrays.beta, residual=arrays.residual,
            **options(case),
        )  # fmt: skip
        tolerances.check("y", library.values(y), expected, case)
        want = _inference_gradients(case, arrays, mean, variance, expected)
        names = {"gamma": "mean", "beta": "variance"} if place == "beta" else {}
        for n, gradient in gradients.items():
            tolerances.check(n, library.values(gradient), want[names.get(n, n)], case)


def _places(library: Adapter, place: str, mean: Any, variance: Any, inputs: Any) -> dict[str, Any]:
    if place == "gamma":
        return {}
    return {"gamma": library.array(mean, "float32"), "beta": library.array(variance, "float32")}


def _inference(library: Adapter, case: Case, inputs: Any, fixed: Any, place: str) -> Any:
    mean, variance = (library.array(v, "float32") for v in fixed.values())

    def of_affine(x: Any, gamma: Any, beta: Any, residual: Any, weights: Any, axis: Any) -> Any:
        y = library.ops.normalize(
            x, mean, variance, gamma, beta, residual=residual, **options(case)
        )
        return y, Moments(1, mean, variance)

    def of_moments(x: Any, gamma: Any, beta: Any, residual: Any, weights: Any, axis: Any) -> Any:
        y = library.ops.normalize(
            x, gamma, beta, inputs["gamma"], inputs["beta"], residual=residual, **options(case)
        )
        return y, Moments(1, mean, variance)

    return functools.partial(of_affine if place == "gamma" else of_moments, axis=case.axis)


def _inference_gradients(case: Case, arrays: Any, mean: Any, variance: Any, y: Any) -> Any:
    layout = case.layout

    def spread(channels: Any) -> Any:
        return np.reshape(channels, layout.broadcast_shape)

    def total(values: Any) -> Any:
        return values.sum(layout.reduction_axes)

    g = arrays.dy
    if case.activation is not None:
        slope = 0.0 if case.activation == "relu" else case.activation["negative_slope"]
        g = np.where(y > 0, g, slope * g)
    s = 1.0 / np.sqrt(variance + case.epsilon)
    x_hat = (arrays.x - spread(mean)) * spread(s)
    dx = g * spread(arrays.gamma * s)
    return {
        "x": dx,
        "gamma": total(g * x_hat),
        "beta": total(g),
        "residual": g,
        "mean": -total(dx),
        "variance": -0.5 * total(dx * x_hat) * s,
    }


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("library", ["tensorflow", "jax", "torch"])
def test_moments_are_detached(library: str, case: Case) -> None:
    lib = adapter(library)
    arrays = draw(case)
    inputs = lib.inputs(arrays, case)

    def mean_and_variance(x: Any, gamma: Any, beta: Any, residual: Any, weights: Any) -> Any:
        _, batch = lib.ops.normalize_batch(
            x, gamma, beta, residual=residual, weights=weights, **options(case)
        )
        alone = lib.ops.moments(x, case.axis, weights=weights)
        parts = [batch.mean, batch.variance, alone.mean, alone.variance]
        # Zero times x keeps a path to x where the moments have none.
        return sum(part * part for part in parts) + 0.0 * gamma, batch

    _, _, gradients = lib.run(
        mean_and_variance, inputs, lib.array(np.ones(case.layout.known_channel_shape), "float32"),
        "eager",
    ) if library != "torch" else _torch_gradients(lib, mean_and_variance, inputs)  # fmt: skip
    gradient = gradients.get("x")
    assert gradient is None or not lib.values(gradient).any()


def _torch_gradients(lib: Adapter, function: Any, inputs: dict[str, Any]) -> Any:
    x = inputs["x"].requires_grad_()
    inputs["gamma"].requires_grad_()
    total, batch = function(**inputs)
    (gradient,) = lib.torch.autograd.grad(total.sum(), [x], allow_unused=True)
    return total, batch, {"x": gradient}


@pytest.mark.parametrize("library", ["tensorflow", "jax", "torch"])
def test_gradients_of_gradients_are_right_or_refused(library: str) -> None:
    """The gradient of sum(dx * v) with respect to dy, against central differences."""
    case = Case("second-order", (7, 3), dtype="float64", gamma=False, beta=False)
    arrays, rng = draw(case), np.random.default_rng(8)
    v = rng.standard_normal(case.shape)
    lib = adapter(library)

    def first(x: Any) -> Any:
        return np.sum(v * reference.backward(arrays.dy, x).x)

    step = 1e-5
    expected = np.zeros(case.shape)
    for at in np.ndindex(case.shape):
        bump = np.zeros(case.shape)
        bump[at] = step
        expected[at] = (first(arrays.x + bump) - first(arrays.x - bump)) / (2 * step)
    with lib.scope("float64"):
        try:
            actual, refusal = _second_order(lib, library, arrays, v), None
        except UnsupportedError as error:
            actual, refusal = None, str(error)
    if refusal is not None:
        assert "gradient" in refusal
        return
    np.testing.assert_allclose(lib.values(actual), expected, rtol=1e-6, atol=1e-8)


def _second_order(lib: Any, library: str, arrays: Any, v: np.ndarray) -> Any:
    x, dy, v = (lib.array(a, "float64") for a in (arrays.x, arrays.dy, v))
    if library == "tensorflow":
        with lib.tf.GradientTape() as outer:
            outer.watch(x)
            with lib.tf.GradientTape() as inner:
                inner.watch(x)
                y, _ = lib.ops.normalize_batch(x)
            total = lib.tf.reduce_sum(v * inner.gradient(y, x, output_gradients=dy))
        return outer.gradient(total, x)
    if library == "jax":

        def total(x: Any) -> Any:
            _, pull = lib.jax.vjp(lambda x: lib.ops.normalize_batch(x)[0], x)
            return (v * pull(dy)[0]).sum()

        return lib.jax.grad(total)(x)
    x.requires_grad_()
    y, _ = lib.ops.normalize_batch(x)
    (dx,) = lib.torch.autograd.grad(y, [x], dy, create_graph=True)
    (gradient,) = lib.torch.autograd.grad((v * dx).sum(), [x])
    return gradient


@pytest.mark.parametrize("library", LIBRARIES[1:])
@pytest.mark.parametrize("function", ["moments", "normalize", "normalize_batch"])
def test_every_library_has_the_same_signatures(library: str, function: str) -> None:
    def shape(ops: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(ops, function)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(adapter(library).ops) == shape(adapter("numpy").ops)


BAD = {
    "axis-out-of-range": ({"axis": 2}, ShapeError, r"axis=2 .*\(4, 3\).*-2 <= axis <= 1"),
    "axis-repeated": ({"axis": (1, -1)}, ShapeError, r"axis=\[1, -1\]"),
    "axis-takes-all": ({"axis": (0, 1)}, ShapeError, r"axis=\[0, 1\]"),
    "rank-0": ({"x": np.float32(1.0)}, ShapeError, r"scalar"),
    "rank-1": ({"x": np.ones(3, np.float32)}, ShapeError, r"\(3,\)"),
    "gamma-shape": ({"gamma": np.ones(4, np.float32)}, ShapeError, r"gamma .*\(4,\).*\(3,\)"),
    "beta-rank": ({"beta": np.ones((1, 3), np.float32)}, ShapeError, r"beta .*\(1, 3\).*\(3,\)"),
    "integer-x": ({"x": np.ones((4, 3), np.int32)}, DTypeError, r"x has dtype int32"),
    "integer-gamma": ({"gamma": np.ones(3, np.int32)}, DTypeError, r"gamma has dtype int32"),
    "boolean-x": ({"x": np.ones((4, 3), bool)}, DTypeError, r"x has dtype bool"),
    "complex-x": ({"x": np.ones((4, 3), np.complex64)}, DTypeError, r"x has dtype complex64"),
    "negative-epsilon": ({"epsilon": -1e-3}, SpecError, r"epsilon=-0.001"),
    "nan-epsilon": ({"epsilon": float("nan")}, SpecError, r"epsilon=nan"),
    "mask-shape": ({"weights": np.ones(3, bool)}, ShapeError, r"\(3,\).*\(4, 3\).*\(4,\)"),
    "mask-over-channels": ({"weights": np.ones((4, 3), bool)}, ShapeError, r"\(4, 3\)"),
    "residual-shape": (
        {"residual": np.ones((4, 1), np.float32)},
        ShapeError,
        r"residual .*\(4, 1\).*\(4, 3\)",
    ),
    "unknown-activation": ({"activation": "gelu"}, SpecError, r"activation='gelu'"),
    "bad-slope": (
        {"activation": {"name": "leaky_relu", "negative_slope": -1.0}},
        SpecError,
        r"negative_slope=-1.0",
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("library", LIBRARIES)
def test_bad_input_is_a_typed_error_with_three_parts(library: str, bad: str) -> None:
    lib = adapter(library)
    changes, kind, words = BAD[bad]
    arguments: dict[str, Any] = {"x": np.ones((4, 3), np.float32), **changes}
    for name, value in arguments.items():
        if isinstance(value, np.ndarray | np.generic):
            arguments[name] = lib.array(value, value.dtype.name)
    with pytest.raises(kind) as caught:
        lib.ops.normalize_batch(**arguments)
    assert re.search(words, str(caught.value))
    assert has_three_parts(caught.value), caught.value


@pytest.mark.parametrize("bad", ["axis-out-of-range", "integer-x", "mask-shape"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_moments_checks_its_input(library: str, bad: str) -> None:
    lib = adapter(library)
    changes, kind, words = BAD[bad]
    arguments = {"x": np.ones((4, 3), np.float32), **changes}
    x = lib.array(arguments["x"], arguments["x"].dtype.name)
    weights = arguments.get("weights")
    with pytest.raises(kind, match=words):
        lib.ops.moments(
            x,
            arguments.get("axis", -1),
            weights=None if weights is None else lib.array(weights, "bool"),
        )


@pytest.mark.parametrize("library", LIBRARIES)
def test_normalize_checks_its_moments(library: str) -> None:
    lib = adapter(library)
    x, three, four = (lib.array(np.ones(n), "float32") for n in ((4, 3), (3,), (4,)))
    with pytest.raises(ShapeError, match=r"mean has shape \(4,\): expected \(3,\)"):
        lib.ops.normalize(x, four, three)
    with pytest.raises(ShapeError, match=r"variance has shape \(4,\): expected \(3,\)"):
        lib.ops.normalize(x, three, four)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("activation", "below"), [("relu", 0.0), ("leaky_relu", -np.inf)])
@pytest.mark.parametrize("centre", [0.0, 4096.0])
def test_activations_of_extreme_values(
    library: str, activation: str, below: float, centre: float
) -> None:
    """Relu makes 0 of minus infinity, not NaN, and 0 of a negative value, not -0; NaN stays."""
    lib = adapter(library)
    x = lib.array(np.array([[-np.inf], [centre - 1.0], [np.nan], [np.inf]]), "float32")
    mean, variance = lib.array(np.full(1, centre), "float32"), lib.array(np.ones(1), "float32")
    y = lib.values(lib.ops.normalize(x, mean, variance, epsilon=0.0, activation=activation))[:, 0]
    assert y[0] == below
    assert activation != "relu" or str(y[1]) == "0.0"
    assert np.isnan(y[2])
    assert y[3] == np.inf
