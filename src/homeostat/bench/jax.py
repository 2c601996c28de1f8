"""JAX's columns: flax's two batch norms, Keras on JAX, and ours; every call under `jax.jit`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from homeostat.bench.call import Call, Observed
from homeostat.bench.cases import EPSILON, Case, Inputs
from homeostat.bench.oracle import Results
from homeostat.ops.jax import normalize, normalize_batch

MOMENTUM = 0.99


class Layer(NamedTuple):
    """A column's layer as a pure function.

    Args:
        apply: (x, residual, (gamma, beta), state) -> (y, new state), ReLU and addition included.
        state: the moving mean and variance, and what else the layer keeps.
        variance: returns the moving variance of a state.
    """

    apply: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    state: Any
    variance: Callable[[Any], Any]


def _finish(case: Case, y: Any, residual: Any) -> Any:
    y = y if residual is None else y + residual
    return jax.nn.relu(y) if case.relu else y


def _dtype(case: Case) -> Any:
    return jnp.bfloat16 if case.dtype == "bfloat16" else jnp.float32


def linen(case: Case, inputs: Inputs, momentum: float) -> Layer:
    """Flax's linen module."""
    module = importlib.import_module("flax.linen").BatchNorm(
        use_running_average=not case.training, axis=case.axis, momentum=momentum,
        epsilon=EPSILON, dtype=_dtype(case),
    )  # fmt: skip

    def apply(x: Any, residual: Any, parameters: Any, state: Any) -> tuple[Any, Any]:
        gamma, beta = parameters
        variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": state}
        y, new = module.apply(variables, x, mutable=["batch_stats"])
        return _finish(case, y, residual), new["batch_stats"]

    state = {"mean": jnp.asarray(inputs.mean), "var": jnp.asarray(inputs.variance)}
    return Layer(apply, state, lambda state: state["var"])


def nnx(case: Case, inputs: Inputs, momentum: float) -> Layer:
    """Flax's nnx module, split into its graph and its state."""
    flax = importlib.import_module("flax.nnx")
    module = flax.BatchNorm(
        case.channels, use_running_average=not case.training, axis=case.axis, momentum=momentum,
        epsilon=EPSILON, dtype=_dtype(case), rngs=flax.Rngs(0),
    )  # fmt: skip
    graph, parameters, statistics = flax.split(module, flax.Param, flax.BatchStat)
    parameters = flax.to_pure_dict(parameters)
    statistics = flax.to_pure_dict(statistics)

    def apply(x: Any, residual: Any, given: Any, state: Any) -> tuple[Any, Any]:
        fresh = flax.merge(graph, parameters | {"scale": given[0], "bias": given[1]}, state)
        y = fresh(x)
        return _finish(case, y, residual), flax.to_pure_dict(flax.state(fresh, flax.BatchStat))

    state = statistics | {"mean": jnp.asarray(inputs.mean), "var": jnp.asarray(inputs.variance)}
    return Layer(apply, state, lambda state: state["var"])


def ours(case: Case, inputs: Inputs, momentum: float) -> Layer:
    """`homeostat.ops.jax`, the moving statistics updated as a layer would."""
    options: dict[str, Any] = {"axis": case.axis, "epsilon": EPSILON}
    options["activation"] = "relu" if case.relu else None

    def apply(x: Any, residual: Any, parameters: Any, state: Any) -> tuple[Any, Any]:
        mean, variance = state
        if not case.training:
            return normalize(x, mean, variance, *parameters, residual=residual, **options), state
        y, batch = normalize_batch(x, *parameters, residual=residual, **options)
        weight = 1 - momentum
        moved = mean * momentum + batch.mean * weight
        return y, (moved, variance * momentum + batch.variance * weight)

    state = jnp.asarray(inputs.mean), jnp.asarray(inputs.variance)
    return Layer(apply, state, lambda state: state[1])


def _keras(column: str) -> Callable[..., Layer]:
    def build(case: Case, inputs: Inputs, momentum: float) -> Layer:
        keras = importlib.import_module("homeostat.bench.keras")
        layer = keras.make_layer(column, case, inputs, momentum)
        names = [variable.name for variable in layer.non_trainable_variables]
        fused = column != "keras"

        def apply(x: Any, residual: Any, parameters: Any, state: Any) -> tuple[Any, Any]:
            extra = {"residual": residual} if fused and residual is not None else {}
            y, new = layer.stateless_call(
                list(parameters), state, x, training=case.training, **extra
            )
            return (y if fused else _finish(case, y, residual)), new

        state = [variable.value for variable in layer.non_trainable_variables]
        return Layer(apply, state, lambda state: state[names.index("moving_variance")])

    return build


BUILDERS: dict[str, Callable[..., Layer]] = {
    "flax.nnx": nnx,
    "flax.linen": linen,
    "keras": _keras("keras"),
    "homeostat.jax": ours,
    "homeostat.keras": _keras("homeostat.keras"),
}


def _place(array: Any, case: Case) -> Any:
    return None if array is None else jnp.asarray(case.place(array), _dtype(case))


def make(column: str, case: Case, inputs: Inputs) -> Call:
    """Return a column's call of a case."""
    layer = BUILDERS[column](case, inputs, MOMENTUM)
    x, residual, dy = (_place(a, case) for a in (inputs.x, inputs.residual, inputs.dy))
    parameters = jnp.asarray(inputs.gamma), jnp.asarray(inputs.beta)

    def pull_of(x: Any, residual: Any, parameters: Any, state: Any) -> Any:
        def forward(x: Any, residual: Any, parameters: Any) -> Any:
            return layer.apply(x, residual, parameters, state)

        return jax.vjp(forward, x, residual, parameters, has_aux=True)

    def step(x: Any, residual: Any, parameters: Any, state: Any, dy: Any) -> Any:
        if not case.backward:
            return layer.apply(x, residual, parameters, state)
        y, pull, new_state = pull_of(x, residual, parameters, state)
        return y, new_state, pull(dy)

    compiled = jax.jit(step)
    arguments = x, residual, parameters, layer.state

    def run() -> Any:
        return jax.block_until_ready(compiled(*arguments, dy))

    def saved() -> int:
        _, pull, _ = jax.jit(pull_of)(*arguments)
        return _bytes_of(pull, parameters)

    def peak() -> int | None:
        plan = compiled.lower(*arguments, dy).compile().memory_analysis()
        return None if plan is None else plan.temp_size_in_bytes + plan.output_size_in_bytes

    return Call(run, lambda: _results(case, run()), saved, peak)


def _results(case: Case, found: Any) -> Results:
    y, _, *gradients = found
    results = {"y": _channels_last(y, case)}
    for dx, dresidual, (dgamma, dbeta) in gradients:
        results |= {"dx": _channels_last(dx, case)}
        results |= {"dgamma": np.asarray(dgamma), "dbeta": np.asarray(dbeta)}
        if dresidual is not None:
            results["dresidual"] = _channels_last(dresidual, case)
    return results


def _channels_last(value: Any, case: Case) -> np.ndarray:
    return case.back(np.asarray(value.astype(jnp.float32)))


def _bytes_of(pull: Any, parameters: Any) -> int:
    """Return the bytes of what a backward holds, each buffer once, parameters apart."""
    anyway = {parameter.unsafe_buffer_pointer() for parameter in parameters}
    held = {
        leaf.unsafe_buffer_pointer(): leaf.nbytes
        for leaf in jax.tree.leaves(pull)
        if isinstance(leaf, jax.Array)
    }
    return sum(size for place, size in held.items() if place not in anyway)


def copy(case: Case, inputs: Inputs) -> Callable[[], object]:
    """Return what copies the case's tensor."""
    x, compiled = _place(inputs.x, case), jax.jit(jnp.copy)
    return lambda: compiled(x).block_until_ready()


def observe(column: str, case: Case, inputs: Inputs) -> Observed:
    """Return what one training step with momentum for the batch alone made of x."""
    layer = BUILDERS[column](case, inputs, 0.0)
    parameters = jnp.asarray(inputs.gamma), jnp.asarray(inputs.beta)
    y, state = jax.jit(layer.apply)(_place(inputs.x, case), None, parameters, layer.state)
    return Observed(_channels_last(y, case), np.asarray(layer.variance(state)))
