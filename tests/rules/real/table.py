"""Which rule can find something in which source of models, and why it cannot in the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from homeostat.rules import Severity

Source = str
SOURCES: tuple[Source, ...] = (
    "keras", ".keras", "torch", ".pt", ".safetensors", "tf1", "onnx",
)  # fmt: skip
"""A live Keras model and its file, a live PyTorch module and files of its state dict, a checkpoint
of TensorFlow 1, and an ONNX file."""
LIVE = ("keras", "torch")
ARRAYS = (".pt", ".safetensors", "tf1")
"""Files of arrays and their names alone."""


@dataclass(frozen=True, eq=False)
class Example:
    """A model, and what a rule says of it.

    Args:
        model: a live one; its files are made from it.
        norms: those of which the rule speaks, in order; (None,) for the model as a whole.
        severity: with which.
        data: batches for rules that need them.
        batch_size: of training, for rules that need it.
    """

    model: Any
    norms: tuple[str | None, ...] = ()
    severity: Severity = "warning"
    data: Any = None
    batch_size: int | None = None


_GRAPH = "arrays do not tell what feeds what"
_DATA = "a file is not run; with data, audit loads it into its framework and it is a live model"
_EPSILON = "arrays do not tell epsilon"
_MOMENTUM = "arrays do not tell the momentum"
_MODES = "arrays do not tell modes"


def _all(sources: Iterable[Source], reason: str) -> Mapping[Source, str]:
    return dict.fromkeys(sources, reason)


_NO_DATA = _all((".keras", *ARRAYS, "onnx"), _DATA)

ABSENT: Mapping[str, Mapping[Source, str]] = {
    "BN001": {},
    "BN002": {},
    "BN003": {},
    "BN004": {},
    "BN005": {},
    "BN010": {},
    "BN011": {},
    "BN012": {},
    "BN013": _all(ARRAYS, _EPSILON),
    "BN014": _all(ARRAYS, _EPSILON),
    "BN015": _all(ARRAYS, _EPSILON),
    "BN020": {
        **_all(ARRAYS, _MOMENTUM),
        "onnx": "an ONNX file does not tell how many updates there were",
    },
    "BN021": _all(ARRAYS, _MOMENTUM),
    "BN022": _all(ARRAYS, _MOMENTUM),
    "BN023": {
        "tf1": "no layer of TensorFlow 1 counts what it skips",
        "onnx": "ONNX has no counter of skipped updates",
    },
    "BN024": {
        **_all(ARRAYS, "arrays do not tell what trains"),
        "onnx": "an ONNX file does not tell what trains",
    },
    "BN025": {
        **_all((".pt", ".safetensors"), "gamma and beta alone are also those of other norms, and "
        "arrays do not tell modes"),
        "tf1": _MODES,
        **_all(("keras", ".keras"), "Keras's norms always have moving statistics, have no modes of "
        "their own, and predict() overrides a call's training=True"),
    },
    "BN026": {},
    "BN027": {
        ".keras": "a file does not tell on how many replicas its model trained",
        **_all((".pt", ".safetensors"), "names tell of replicas, but nothing of whether a norm is "
        "synchronized"),
        "tf1": "variables of replicas have names of their programs' own",
        "onnx": "an ONNX file does not tell how its model trained",
    },
    **{rule: _all(ARRAYS, _GRAPH) for rule in (
        "BN030", "BN031", "BN032", "BN033", "BN034", "BN035",
    )},
    **dict.fromkeys(("BN040", "BN041", "BN042", "BN043", "BN044"), _NO_DATA),
}  # fmt: skip
"""For each rule the sources in which it finds nothing, with the reason."""


def occurs(rule: str, source: Source) -> bool:
    """Return whether a rule can find something in a source of models."""
    return source not in ABSENT[rule]
