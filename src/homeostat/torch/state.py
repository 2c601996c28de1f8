"""What every batch norm module holds: options, parameters, buffers and their checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, is_lazy

from homeostat.errors import SpecError, UnsupportedError
from homeostat.moments import Average
from homeostat.spec import CONVENTIONS, BatchNormSpec

Tensor = torch.Tensor
TORCH = CONVENTIONS["torch"]
SIXTEEN_BITS = (torch.float16, torch.bfloat16)

# What native modules do not have, with the values at which it does nothing.
OPTIONS: Mapping[str, Any] = {
    "activation": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.01,
    "virtual_batch_size": None,
    "zero_debias": False,
    "nonfinite": "skip",
    "synchronized": False,
    "process_group": None,
    "frozen_affine": False,
    "frozen_statistics": False,
    "inference_mode": False,
}
_NOT_IN_SPEC = {"process_group", "frozen_affine", "frozen_statistics", "inference_mode"}
_IN_SPEC = frozenset((*OPTIONS, "eps", "momentum")) - _NOT_IN_SPEC
_STATISTICS = ("running_mean", "running_var", "renorm_mean", "renorm_std")


class WideStatistics(torch.nn.Module):
    """A module that keeps its running statistics at float32 or wider."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move and cast as every module, but keep the statistics at float32 or wider."""
        before = {name: self._buffers.get(name) for name in _STATISTICS}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers.get(name)
            if old is not None and new.dtype in SIXTEEN_BITS and old.dtype not in SIXTEEN_BITS:
                self._buffers[name] = old.to(new.device)
        return self


class State(WideStatistics, _BatchNorm):
    """Options, parameters and buffers; the names and the checkpoints of `torch.nn.BatchNorm2d`.

    The options may be changed at any time, and are validated together as `spec`.
    """

    # Nothing for TorchScript to read: `eps` may refuse.
    __constants__: list[str] = []  # noqa: RUF012
    __jit_unused_properties__: list[str] = ["eps", "frozen_affine"]  # noqa: RUF012
    spec: BatchNormSpec
    plain: bool
    renorm_schedule: Callable[[Tensor], Mapping[str, Any]] | None

    def _take(self, options: Mapping[str, Any]) -> None:
        """Set the options that native modules do not have, and make the buffers they need."""
        options = {**OPTIONS, **options}
        frozen = options.pop("frozen_affine")
        if options["zero_debias"] and self.momentum is None:
            BatchNormSpec(momentum=None, zero_debias=True)
        if not self.track_running_stats and (options["renorm"] or options["inference_mode"]):
            raise SpecError(
                "renorm and inference_mode need running statistics: expected "
                "track_running_stats=True. Set it, or drop the option."
            )
        # All at once, since they are validated together.
        self.__dict__.update(options)
        self._read_spec({})
        self.frozen_affine = frozen
        mean = self._buffers["running_mean"]
        if mean is not None:
            for name in ("running_mean", "running_var"):
                if mean.dtype in SIXTEEN_BITS:
                    self._buffers[name] = _widened(self._buffers[name])
            if not is_lazy(mean):
                self._add_buffers(self.num_features)

    def _add_buffers(self, features: int) -> None:
        """Register the buffers that the options need and native modules do not have."""
        like = self._buffers["running_mean"]
        if like is None or "skipped_updates" in self._buffers:
            return
        # `zero_debias` alone needs the count in a checkpoint, whose keys else stay those of native
        # modules.
        skipped = torch.zeros(features, dtype=torch.long, device=like.device)
        self.register_buffer("skipped_updates", skipped, persistent=self.zero_debias)
        if self.renorm:
            start = torch.zeros(features, dtype=like.dtype, device=like.device)
            self.register_buffer("renorm_mean", start)
            self.register_buffer("renorm_std", torch.ones_like(start))

    def _read_spec(self, changed: Mapping[str, Any]) -> None:
        """Validate the options with some of them changed, and set what a step reads."""
        options = {name: self.__dict__[name] for name in _IN_SPEC} | dict(changed)
        momentum, schedule = options.pop("momentum"), None
        if callable(options["renorm_clipping"]):
            if not options["renorm"]:
                raise SpecError(
                    "renorm_clipping is given but renorm=False: expected renorm=True. Set "
                    "renorm=True or drop renorm_clipping."
                )
            schedule, options["renorm_clipping"] = options["renorm_clipping"], None
        # `torch.optim.swa_utils.update_bn` sets momentum=None for a while.
        options["zero_debias"] = options["zero_debias"] and momentum is not None
        options["renorm_momentum"] = TORCH.to_old_weight(options["renorm_momentum"])
        spec = BatchNormSpec(
            axis=1,
            momentum=TORCH.to_old_weight(momentum),
            epsilon=options.pop("eps"),
            stored_variance=TORCH.stored_variance,
            **options,
        )
        plain = not (spec.renorm or spec.virtual_batch_size or spec.synchronized)
        plain = plain and not Average.of(spec).counts
        self.__dict__.update(spec=spec, renorm_schedule=schedule, plain=plain)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _IN_SPEC and "spec" in self.__dict__:
            self._refuse_late(name, value)
            self._read_spec({name: value})
        super().__setattr__(name, value)

    def _refuse_late(self, name: str, value: Any) -> None:
        if name in ("renorm", "zero_debias") and value and not getattr(self, name):
            raise UnsupportedError(
                f"{name} cannot be turned on after construction: expected it in the constructor, "
                "since it needs buffers of its own. Make a new module and load this one's "
                "state_dict."
            )

    @property
    def eps(self) -> float:
        """What is added to the variance.

        Raises:
            UnsupportedError: an activation is fused behind the normalization. Tools that fold a
                batch norm or put another in its place read ``eps``, and would lose the
                activation; ``spec.epsilon`` has the value at any time.
        """
        spec = self.__dict__.get("spec")
        if spec is not None and spec.activation is not None:
            raise UnsupportedError(
                f"eps was read of a batch norm that applies {spec.activation.name} as well: "
                "expected a batch norm without activation, since whoever folds or replaces a batch "
                "norm by its eps would lose the activation. Set activation=None and apply the "
                "activation after it, or read spec.epsilon."
            )
        return self.__dict__["eps"]

    @eps.setter
    def eps(self, value: float) -> None:
        """Set what is added to the variance."""
        self.__dict__["eps"] = value

    def __dir__(self) -> list[str]:
        # What walks over all attributes, such as torch.jit.trace, meets none that refuses.
        names = super().__dir__()
        return [n for n in names if n != "eps"] if self.spec.activation is not None else names

    @property
    def frozen_affine(self) -> bool:
        """Whether weight and bias do not train, which is to say that neither requires gradients."""
        affine = [p for p in (self.weight, self.bias) if p is not None]
        return bool(affine) and not any(p.requires_grad for p in affine)

    @frozen_affine.setter
    def frozen_affine(self, frozen: bool) -> None:
        """Have weight and bias require no gradients, or gradients."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad = not frozen

    def reset_running_stats(self) -> None:
        """Set the running statistics, and every count, back to their start."""
        super().reset_running_stats()
        for name, value in (("skipped_updates", 0), ("renorm_mean", 0), ("renorm_std", 1)):
            buffer = self._buffers.get(name)
            if buffer is not None:
                buffer.fill_(value)

    def extra_repr(self) -> str:
        """Return native's words, and the options that are not at their defaults."""
        named = {name: getattr(self, name) for name in OPTIONS}
        return ", ".join(
            [super().extra_repr()]
            + [f"{name}={value!r}" for name, value in named.items() if value != OPTIONS[name]]
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Load, also what native modules wrote: what those do not have starts from what they do."""
        mean = state_dict.get(prefix + "running_mean")
        variance = state_dict.get(prefix + "running_var")
        if mean is not None and variance is not None and not is_lazy(mean):
            self._add_buffers(len(mean))
            missing = {
                "renorm_mean": lambda: mean,
                "renorm_std": lambda: (variance + self.spec.epsilon).sqrt(),
            }
            if self.zero_debias:
                missing["skipped_updates"] = lambda: torch.zeros_like(self.skipped_updates)
            for name, start in missing.items():
                if self._buffers.get(name) is not None and prefix + name not in state_dict:
                    state_dict[prefix + name] = start()
            skipped = self._buffers.get("skipped_updates")
            if skipped is not None:
                skipped.zero_()
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _widened(statistic: Tensor) -> Tensor:
    if is_lazy(statistic):
        return UninitializedBuffer(device=statistic.device, dtype=torch.float32)
    return statistic.float()
