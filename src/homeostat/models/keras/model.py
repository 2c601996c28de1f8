"""`KerasModel`: what the tools do with a live Keras model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from homeostat.errors import DTypeError, ShapeError, SpecError, UnsupportedError
from homeostat.models.files.keras_order import in_order
from homeostat.models.keras.adopt import adopt, normalize_alone
from homeostat.models.keras.layers import array_of, network_of, norms_of, record
from homeostat.models.keras.save import save
from homeostat.models.keras.watch import Watch, running_eagerly
from homeostat.models.live import Batch
from homeostat.models.records import BatchNormRecord, ModelRecord
from homeostat.moments import Moments

_MODES = ("call", "momentum", "epsilon", "spec", "frozen_affine", "frozen_statistics")
_MODES += ("inference_mode", "_trainable")


class KerasModel:
    """A live Keras model behind `homeostat.models.LiveModel`, on any of Keras's three backends.

    Batch norms are found in models of every kind, Keras's own layer and `homeostat.keras`'s. A
    norm's name is the names of the models and layers that it is in and its own, joined by ``/``.

    Args:
        model: the model, built.

    Raises:
        UnsupportedError: the model is not built.

    Example:
        >>> layers = [keras.Input((3,)), keras.layers.BatchNormalization(name="norm")]
        >>> KerasModel(keras.Sequential(layers)).record().norms[0].moving_variance.tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._norms: Mapping[str, Any] = norms_of(model)

    @property
    def model(self) -> keras.Model:
        """The Keras model."""
        return self._model

    @property
    def norms(self) -> Mapping[str, Any]:
        """The batch norm layers by their names."""
        return self._norms

    def record(self) -> ModelRecord:
        """Return what is known of the model now."""
        network = network_of(self._model)
        norms = [record(name, norm, network) for name, norm in self._norms.items()]
        return ModelRecord(
            self._model.name,
            "keras",
            "Keras model",
            in_order(norms, network.graph),
            network.graph,
            network.why_no_graph,
            self._model.count_params(),
            _replicas(self._model),
            steps=_steps(self._model),
        )

    def observe(
        self,
        batch: Batch,
        *,
        batch_statistics: bool | Sequence[str] = True,
        weights: Any = None,
    ) -> Mapping[str, Moments]:
        """Run one batch and return the moments of every norm's inputs; change nothing.

        Args:
            batch: the inputs: an array or tensor, or a list, tuple or mapping of them.
            batch_statistics: whether norms take the batch's statistics, not the moving ones; or the
                names of those that do. Everything else is in inference mode.
            weights: a weight for each example, shape (examples,), or None; 0 leaves one out.
                Masked elements do not count either way.

        Returns:
            For each norm that the batch came to, float64 moments over all elements of each channel,
            merged over its uses.

        Raises:
            SpecError: a name is none of a norm's, or a weight is negative.
            ShapeError: the weights do not fit the batch.
            UnsupportedError: the model compiles a part with a norm in it.
        """
        watch = Watch(self._norms, self._chosen(batch_statistics), _read_weights(weights))
        self._run(batch, watch)
        known = [name for name in self._norms if name in watch.seen]
        return {name: watch.seen[name] for name in known}

    def outputs(self, batch: Batch, *, batch_statistics: bool | Sequence[str] = False) -> Any:
        """Return the model's outputs for a batch as float64 NumPy arrays; change nothing.

        Args:
            batch: the inputs, as in `observe`.
            batch_statistics: whether norms take the batch's statistics, not the moving ones; or the
                names of those that do.

        Returns:
            An array, or a list or mapping of them, as the model gives them.

        Raises:
            SpecError: a name is none of a norm's.
        """
        chosen = self._chosen(batch_statistics)
        watch = Watch(self._norms, chosen, None) if chosen else None
        found = self._run(batch, watch)
        return keras.tree.map_structure(
            lambda each: np.asarray(keras.ops.convert_to_numpy(each)).astype(np.float64), found
        )

    def write(self, name: str, statistics: Moments) -> None:
        """Make these a norm's moving statistics, in its own dtype and its own kind of variance.

        What a norm counts or keeps for training goes along: one that has counted no update counts
        one, and what renorm corrects towards becomes these statistics.

        Args:
            name: the norm's.
            statistics: count, mean and population variance, of shape (channels,).

        Raises:
            SpecError: no norm has that name.
            ShapeError: it has another number of channels.
            DTypeError: a value is too large for the norm's dtype.
        """
        norm = self._norm(name)
        stored = getattr(getattr(norm, "spec", None), "stored_variance", "population")
        mean = np.asarray(statistics.mean, np.float64)
        variance = statistics.sample_variance(np) if stored == "sample" else statistics.variance
        stddev = np.sqrt(np.asarray(variance, np.float64) + norm.epsilon)
        values = {
            "moving_mean": mean,
            "moving_variance": variance,
            "moving_stddev": stddev,
            "renorm_mean": mean,
            "renorm_stddev": np.sqrt(np.asarray(statistics.variance, np.float64) + norm.epsilon),
        }
        if getattr(norm, "updates", None) is not None:
            # Otherwise the next update would give the statistics no weight.
            values["updates"] = np.maximum(array_of(norm.updates), 1).reshape(-1)
        prepared = [
            (variable, _fitted(name, variable, np.asarray(value, np.float64)))
            for key, value in values.items()
            if (variable := getattr(norm, key, None)) is not None
        ]
        for variable, value in prepared:
            variable.assign(value)

    def adopt(self, name: str, record: BatchNormRecord) -> None:
        """Give a norm another's arrays and options; see `homeostat.models.live.LiveModel`."""
        adopt(name, self._norm(name), record)

    def normalize(self, name: str, inputs: Any) -> Any:
        """Return one norm's inference of inputs (examples, channels), without its activation."""
        with _kept(self._model):
            return normalize_alone(self._norm(name), inputs)

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore every norm's statistics, modes, momenta and calls if the body raises."""
        norms = list(self._norms.values())
        values = [(v, np.array(keras.ops.convert_to_numpy(v))) for n in norms for v in n.variables]
        modes = [{key: vars(n)[key] for key in _MODES if key in vars(n)} for n in norms]
        trainable = [(v, v.trainable) for n in norms for v in n.variables]
        try:
            yield
        except BaseException:
            for norm, mode in zip(norms, modes, strict=True):
                for key in _MODES:
                    vars(norm).pop(key, None)
                vars(norm).update(mode)
            for variable, flag in trainable:
                variable.trainable = flag
            for variable, value in values:
                variable.assign(value)
            raise

    def save(self, path: Path) -> None:
        """Write the model to a file that does not exist yet, in the format of its suffix.

        Args:
            path: ``.keras``, or ``.weights.h5`` for the weights alone, or a legacy ``.h5``.

        Raises:
            DataError: the file is there, or cannot be written.
            UnsupportedError: the suffix is another one, or the model cannot be written.
        """
        save(self._model, path)

    def _norm(self, name: str) -> Any:
        if name not in self._norms:
            raise SpecError(
                f"no batch norm is called {name!r}: expected one of {', '.join(self._norms)}. "
                "Names are in the model's record."
            )
        return self._norms[name]

    def _chosen(self, batch_statistics: bool | Sequence[str]) -> Sequence[str]:
        if isinstance(batch_statistics, bool):
            return list(self._norms) if batch_statistics else []
        for name in batch_statistics:
            self._norm(name)
        return batch_statistics

    def _run(self, batch: Batch, watch: Watch | None) -> Any:
        try:
            found = self._run_once(batch, watch)
        except UnsupportedError:
            if keras.backend.backend() != "jax":
                raise
        else:
            # A function that JAX has compiled before does not come to the norms in it.
            if watch is None or watch.complete or keras.backend.backend() != "jax":
                return found
        if watch is not None:
            watch.seen.clear()
        return self._run_once(batch, watch, uncompiled=True)

    def _run_once(self, batch: Batch, watch: Watch | None, *, uncompiled: bool = False) -> Any:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_kept(self._model))
            stack.enter_context(running_eagerly(uncompiled=uncompiled))
            if watch is not None:
                stack.enter_context(watch.watching())
            return self._model(_packed(self._model, batch), training=False)


def _packed(model: Any, batch: Batch) -> Any:
    """Return a batch in the structure that a functional model asks for."""
    structure = getattr(model, "_inputs_struct", None)
    if isinstance(batch, tuple) and isinstance(structure, list):
        return list(batch)
    if isinstance(batch, tuple | list) and len(batch) == 1 and hasattr(structure, "shape"):
        return batch[0]
    return batch


def _read_weights(weights: Any) -> Any:
    if weights is None:
        return None
    found = np.asarray(keras.ops.convert_to_numpy(weights), np.float64)
    if found.ndim != 1:
        raise ShapeError(
            f"weights have shape {found.shape}: expected (examples,). Give one for each example."
        )
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise SpecError(
            "a weight is negative or not finite: expected numbers >= 0. Use 0 to leave an example "
            "out."
        )
    return found


def _fitted(name: str, variable: Any, value: Any) -> Any:
    """Return a value in a variable's shape and dtype."""
    if value.size != int(np.prod(variable.shape)):
        raise ShapeError(
            f"statistics of {value.size} channels came for batch norm {name!r}: expected "
            f"{int(np.prod(variable.shape))}. Write each norm its own."
        )
    with np.errstate(over="ignore"):
        shaped = keras.ops.convert_to_tensor(value.reshape(variable.shape), variable.dtype)
    kept = np.asarray(keras.ops.convert_to_numpy(shaped)).astype(np.float64)
    if not np.isfinite(kept).all() and np.isfinite(value).all():
        raise DTypeError(
            f"the statistics of batch norm {name!r} are too large for {variable.dtype}, up to "
            f"{np.abs(value).max():.3g}: expected values that it holds. Give the layer a dtype "
            "with float32 variables, such as mixed_float16."
        )
    return shaped


def _replicas(model: Any) -> bool | None:
    """Return True for a model made for several replicas; of another one it is not known."""
    strategy = getattr(model, "distribute_strategy", None)
    return True if strategy is not None and strategy.num_replicas_in_sync > 1 else None


def _steps(model: Any) -> int | None:
    """Return how many batches the model's optimizer took steps for; None for one without."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    # Of batches whose gradients are added up before a step it counts the steps.
    batches = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    return int(array_of(optimizer.iterations)) * batches


@contextlib.contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Put back what calling a model changes besides variables: losses, and torch's modes."""
    losses = [(each, each._losses[:], set(each._loss_ids)) for each in model._flatten_layers()]
    modes: list[tuple[Any, bool]] = []
    if keras.backend.backend() == "torch":
        # A wrapped module is put into inference mode when it is called.
        modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for layer, values, identities in losses:
            layer._losses[:] = values
            layer._loss_ids.clear()
            layer._loss_ids.update(identities)
        for module, training in modes:
            module.training = training
