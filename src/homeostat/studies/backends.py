"""Choose Keras's backend before Keras is imported, and describe where a study runs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys

from homeostat.errors import MissingExtraError, SpecError, UnsupportedError

BACKENDS = ("tensorflow", "jax", "torch")
_INSTALL = {
    "tensorflow": "pip install 'homeostat[tensorflow]'",
    "jax": "pip install 'homeostat[jax]'",
    # The torch extra has no Keras of its own: its modules do not need it.
    "torch": "pip install 'homeostat[torch]' 'keras>=3.12'",
}


def select_backend(name: str) -> None:
    """Make Keras use this backend, in this process, from its import on.

    Raises:
        SpecError: the name is not a backend.
        MissingExtraError: the backend or Keras is not installed.
        UnsupportedError: Keras is already imported with another backend.
    """
    if name not in BACKENDS:
        raise SpecError(f"backend={name!r} is not known: expected one of {', '.join(BACKENDS)}.")
    for package in (name, "keras"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"the {name} backend needs the package {package!r}, which is not installed: "
                f"expected the extra {name!r}. Run: {_INSTALL[name]}"
            )
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = name
    running = importlib.import_module("keras").backend.backend()
    if running != name:
        raise UnsupportedError(
            f"Keras already runs on {running} in this process: expected {name}. Keras chooses its "
            f"backend once, so start a new process with KERAS_BACKEND={name}."
        )


def read_versions(backend: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    packages = ("homeostat", "numpy", "keras", backend)
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # A source tree on the path is not an installed distribution, nor is tensorflow-cpu
        # installed under the name "tensorflow".
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def find_accelerator(backend: str) -> str | None:
    """Return the name of the GPU or TPU that the backend trains on, or None for the CPU."""
    if backend == "tensorflow":
        tf = importlib.import_module("tensorflow")
        gpus = tf.config.list_physical_devices("GPU")
        return (
            tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
            if gpus
            else None
        )
    if backend == "jax":
        device = importlib.import_module("jax").devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    torch = importlib.import_module("torch")
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_device(backend: str) -> str:
    """Return the device in words, such as ``CPU x86_64, 2 cores``."""
    return find_accelerator(backend) or f"CPU {platform.machine()}, {count_cores()} cores"


def count_networks(backend: str) -> int:
    """Return how many networks to train at the same time.

    A network this small leaves most of a second core idle, and compiled training holds no Python
    lock; torch's does, and one accelerator is shared, so those train one at a time.
    """
    if backend == "torch" or find_accelerator(backend) is not None:
        return 1
    return min(count_cores(), 8)
