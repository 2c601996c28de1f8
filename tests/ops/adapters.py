"""One adapter per array library: how to make its arrays, read them, and run forward and backward.

A way is a library and how its code is run: "tensorflow-xla", "jax-jit". The contract knows ways and
NumPy arrays, nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

from homeostat.moments import Moments
from tests.cases import CASES, FEW, REPRESENTATIVE, Arrays, Case

LIBRARIES = ("numpy", "tensorflow", "jax", "torch")
GRADIENTS = ("x", "gamma", "beta", "residual")

Function = Callable[..., tuple[Any, Moments]]


class Adapter:
    """A library's arrays, and calls of a function of them."""

    gradients = True

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def scope(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which arrays of a dtype can be had."""
        return contextlib.nullcontext()

    def array(self, values: Any, dtype: str, memory: str = "dense") -> Any:
        raise NotImplementedError

    def values(self, array: Any) -> np.ndarray:
        raise NotImplementedError

    def inputs(self, arrays: Arrays, case: Case) -> dict[str, Any]:
        """Return the case's arrays as this library's, by argument name; None where it has none."""
        dtypes = {"x": case.dtype, "residual": case.dtype}
        made = {
            name: None
            if getattr(arrays, name) is None
            else self.array(
                getattr(arrays, name),
                dtypes.get(name, case.affine_dtype),
                case.memory if name in dtypes else "dense",
            )
            for name in GRADIENTS
        }
        weights = arrays.weights
        if weights is not None:
            weights = self.array(weights, "bool" if weights.dtype == bool else "float32")
        return {**made, "weights": weights}

    def run(self, function: Function, inputs: dict[str, Any], dy: Any, mode: str) -> Any:
        """Call ``function(**inputs)``, and differentiate sum(y * dy).

        Returns:
            y, the moments, and the gradients by name, for those inputs that are not None.
        """
        raise NotImplementedError


class NumPy(Adapter):
    gradients = False

    def array(self, values: Any, dtype: str, memory: str = "dense") -> Any:
        return _laid(np.asarray(values).astype(_dtype(dtype)), memory)

    def values(self, array: Any) -> np.ndarray:
        return np.asarray(array, np.float64)

    def run(self, function: Function, inputs: dict[str, Any], dy: Any, mode: str) -> Any:
        y, batch = function(**inputs)
        return y, batch, {}


class NumPyKernels(NumPy):
    """NumPy with the CPU kernels for arrays of every size."""

    def __init__(self, ops: Any) -> None:
        super().__init__(ops)
        if not importlib.import_module("homeostat.kernels").enabled():
            pytest.skip("the CPU kernels need numba")

    def scope(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        return mock.patch("homeostat.ops.numpy.LEAST", 1)


class TensorFlow(Adapter):
    def __init__(self, ops: Any) -> None:
        super().__init__(ops)
        self.tf = importlib.import_module("tensorflow")

    def array(self, values: Any, dtype: str, memory: str = "dense") -> Any:
        return self.tf.constant(np.asarray(values).astype(_dtype(dtype)))

    def values(self, array: Any) -> np.ndarray:
        return np.asarray(array, np.float64)

    def run(self, function: Function, inputs: dict[str, Any], dy: Any, mode: str) -> Any:
        tf = self.tf
        given = {name: array for name, array in inputs.items() if array is not None}

        def step(given: dict[str, Any], dy: Any) -> Any:
            sources = {name: given[name] for name in GRADIENTS if name in given}
            with tf.GradientTape() as tape:
                tape.watch(sources)
                y, batch = function(**{**inputs, **given})
            return y, batch, tape.gradient(y, sources, output_gradients=dy)

        if mode == "eager":
            return step(given, dy)
        if mode == "session":
            fed = {name: array.numpy() for name, array in {**given, "dy": dy}.items()}
            with tf.Graph().as_default(), tf.compat.v1.Session() as session:
                held = {n: tf.compat.v1.placeholder(a.dtype, a.shape) for n, a in fed.items()}
                y, batch, gradients = step({name: held[name] for name in given}, held["dy"])
                # The count may be a number.
                batch = batch._replace(count=tf.convert_to_tensor(batch.count))
                feed = {held[name]: array for name, array in fed.items()}
                return session.run((y, batch, gradients), feed)
        if mode == "unknown":
            # As in a data pipeline: nothing is known of the sizes but those of the channels.
            known = self._channels(function, given["x"])
            signature = (
                {n: tf.TensorSpec(known(n, a), a.dtype) for n, a in given.items()},
                tf.TensorSpec(known("x", given["x"]), dy.dtype),
            )
            return tf.function(step, input_signature=signature)(given, dy)
        return tf.function(step, jit_compile=mode == "xla")(given, dy)

    def _channels(self, function: Any, x: Any) -> Callable[[str, Any], list[int | None]]:
        from homeostat.layout import Layout

        axes = Layout.of(tuple(x.shape), function.keywords["axis"]).channel_axes

        def known(name: str, array: Any) -> list[int | None]:
            if name in ("gamma", "beta"):
                return list(array.shape)
            if name == "weights":
                return [None if n != 1 else 1 for n in array.shape]
            return [n if a in axes else None for a, n in enumerate(array.shape)]

        return known


class Jax(Adapter):
    def __init__(self, ops: Any) -> None:
        super().__init__(ops)
        self.jax = importlib.import_module("jax")

    def scope(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        return self.jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()

    def array(self, values: Any, dtype: str, memory: str = "dense") -> Any:
        return self.jax.numpy.asarray(np.asarray(values).astype(_dtype(dtype)))

    def values(self, array: Any) -> np.ndarray:
        return np.asarray(array).astype(np.float64)

    def run(self, function: Function, inputs: dict[str, Any], dy: Any, mode: str) -> Any:
        rest = {name: array for name, array in inputs.items() if name not in GRADIENTS}

        def step(sources: dict[str, Any], rest: dict[str, Any], dy: Any) -> Any:
            y, pull, batch = self.jax.vjp(
                lambda sources: function(**sources, **rest), sources, has_aux=True
            )
            return y, batch, pull(dy)[0]

        if mode == "jit":
            step = self.jax.jit(step)
        sources = {name: inputs[name] for name in GRADIENTS}
        y, batch, gradients = step(sources, rest, dy)
        return y, batch, {n: g for n, g in gradients.items() if g is not None}


class JaxKernels(Jax):
    """JAX with the CPU kernels for arrays of every size."""

    def __init__(self, ops: Any) -> None:
        super().__init__(ops)
        if not importlib.import_module("homeostat.kernels").enabled():
            pytest.skip("the CPU kernels need numba")

    def scope(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        return mock.patch("homeostat.ops.jax.statistics.LEAST", 1)

    def run(self, function: Function, inputs: dict[str, Any], dy: Any, mode: str) -> Any:
        return super().run(function, inputs, dy, "jit")


class Torch(Adapter):
    def __init__(self, ops: Any) -> None:
        super().__init__(ops)
        self.torch = importlib.import_module("torch")

    def array(self, values: Any, dtype: str, memory: str = "dense") -> Any:
        dense = self.torch.tensor(np.array(values)).to(getattr(self.torch, dtype))
        if memory == "dense":
            return dense
        if memory == "gaps":
            shape = (*dense.shape[:-1], 2 * dense.shape[-1])
            gapped = self.torch.full(shape, float("nan"), dtype=dense.dtype)[..., ::2]
            return gapped.copy_(dense)
        order, back = _order(memory, dense.ndim)
        return dense.permute(order).contiguous().permute(back)

    def values(self, array: Any) -> np.ndarray:
        if not isinstance(array, self.torch.Tensor):
            return np.asarray(array, np.float64)
        return array.detach().to(self.torch.float64).numpy()

    def run(self, function: Function, inputs: dict[str, Any], dy: Any, mode: str) -> Any:
        sources = {n: inputs[n].requires_grad_() for n in GRADIENTS if inputs[n] is not None}
        y, batch = function(**inputs)
        if bool((dy == 1).all()):
            gradients = self.torch.autograd.grad(y.sum(), list(sources.values()))
        else:
            gradients = self.torch.autograd.grad(y, list(sources.values()), dy)
        return y, batch, dict(zip(sources, gradients, strict=True))


class TorchKernels(Torch):
    """PyTorch with the CPU kernels for tensors of every size, or with none."""

    def __init__(self, ops: Any, on: bool) -> None:
        super().__init__(ops)
        self.on = on
        self.kernels = importlib.import_module("homeostat.kernels")
        if not self.kernels.enabled():
            pytest.skip("the CPU kernels need numba")

    def scope(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        return kernels_for_all() if self.on else self.kernels(False)


@contextlib.contextmanager
def kernels_for_all() -> Any:
    """Let the CPU kernels take every call of PyTorch's operations that they can take."""
    choice = importlib.import_module("homeostat.ops.torch.choice")
    every = dict.fromkeys(choice.LEAST, 0)
    with mock.patch.multiple(choice, LEAST=every, LEAST_INNER=1):
        yield


ADAPTERS = {"numpy": NumPy, "tensorflow": TensorFlow, "jax": Jax, "torch": Torch}


def fits_kernels(case: Case) -> bool:
    """Return whether a case is one that the CPU kernels take: float32 rows of channels."""
    axes = case.layout.channel_axes
    trailing = axes == tuple(range(len(case.shape)))[-len(axes) :]
    filled = 0 not in case.shape
    return case.dtype == "float32" and case.weights is None and trailing and filled


# Every way of running and the cases it takes: compiling for each shape anew is slow, most of all
# operation by operation, as JAX does outside of jit.
WAYS = {
    "numpy": CASES,
    "numpy-kernels": CASES,
    "tensorflow-eager": CASES,
    "tensorflow-graph": REPRESENTATIVE,
    "tensorflow-unknown": REPRESENTATIVE,
    "tensorflow-xla": REPRESENTATIVE,
    "tensorflow-session": REPRESENTATIVE,
    "jax": FEW,
    "jax-jit": CASES,
    "jax-kernels": [c for c in CASES if fits_kernels(c)],
    "torch": CASES,
    "torch-kernels": CASES,
    "torch-off": CASES,
}


def pairs(*ways: str) -> list[Any]:
    """Return the ways, each with every case it takes, as parameters of a test."""
    return [pytest.param(name, case, id=f"{name}-{case}") for name in ways for case in WAYS[name]]


@functools.cache
def adapter(library: str) -> Adapter:
    """Return a library's adapter; skip the test where the library or its ops are missing."""
    if library != "numpy":
        pytest.importorskip(library, reason=f"{library} is not installed")
    if importlib.util.find_spec(f"homeostat.ops.{library}") is None:
        pytest.skip(f"homeostat.ops.{library} is not there")
    return ADAPTERS[library](importlib.import_module(f"homeostat.ops.{library}"))


def way(name: str) -> tuple[Adapter, str]:
    """Return the adapter and the mode of one of `WAYS`."""
    library, _, mode = name.partition("-")
    if name in ("jax-kernels", "numpy-kernels"):
        forced = JaxKernels if library == "jax" else NumPyKernels
        return forced(adapter(library).ops), mode
    if name in ("torch-kernels", "torch-off"):
        return TorchKernels(adapter(library).ops, on=mode == "kernels"), mode
    return adapter(library), mode or "eager"


def _dtype(name: str) -> Any:
    # ml_dtypes gives NumPy its bfloat16; TensorFlow and JAX both bring it.
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="without ml_dtypes NumPy has no bfloat16")
    return np.dtype(name)


def _order(memory: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    order = tuple(range(rank))[::-1] if memory == "reversed" else (0, *range(2, rank), 1)
    return order, tuple(int(a) for a in np.argsort(order))


def _laid(dense: np.ndarray, memory: str) -> np.ndarray:
    """Return the same values at other places in memory, with NaN in the gaps."""
    if memory == "dense":
        return dense
    if memory == "gaps":
        gapped = np.full((*dense.shape[:-1], 2 * dense.shape[-1]), np.nan, dense.dtype)[..., ::2]
        gapped[...] = dense
        return gapped
    order, back = _order(memory, dense.ndim)
    return np.ascontiguousarray(dense.transpose(order)).transpose(back)
