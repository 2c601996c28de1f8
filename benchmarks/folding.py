"""Fold the networks of keras.applications: python -m benchmarks.folding (extra: tensorflow).

Each network is given random statistics, so that a wrong fold would show; `fold` compares the
outputs in float64 before it times both models in turns.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.rows import write_rows

NETWORKS = {
    "ResNet50": 224,
    "MobileNetV2": 224,
    "DenseNet121": 224,
    "InceptionV3": 299,
    "EfficientNetB0": 224,
}
"""Their names, and the sizes of their images."""
EXAMPLES = 4
COLUMNS = (
    "network", "norms", "folded", "error", "parameters", "parameters_saved", "operations_saved",
    "before_ms", "after_ms", "speedup", "examples", "machine", "cores", "python", "tensorflow",
    "keras", "homeostat",
)  # fmt: skip


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Fold one network, and return its row."""
    import keras
    import numpy as np
    import tensorflow as tf

    import homeostat
    from homeostat.fold import fold

    size, rng = NETWORKS[name], np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(0, 0.5, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, shape))
            layer.beta.assign(rng.normal(0, 0.5, shape))
            if layer.gamma is not None:
                layer.gamma.assign(rng.uniform(0.5, 1.5, shape))
    images = rng.normal(size=(EXAMPLES, size, size, 3)).astype("float32")
    report = fold(model, images, rounds=rounds).report
    before, after = report.seconds_before, report.seconds_after
    return {
        "network": name, "norms": len(report.norms), "folded": len(report.folded),
        "error": f"{report.error:.1e}", "parameters": report.parameters_before,
        "parameters_saved": report.parameters, "operations_saved": report.operations,
        "before_ms": round(1e3 * (before or 0), 1), "after_ms": round(1e3 * (after or 0), 1),
        "speedup": round((before or 0) / (after or 1), 2), "examples": EXAMPLES,
        "machine": platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "tensorflow": tf.__version__,
        "keras": keras.__version__, "homeostat": homeostat.__version__,
    }  # fmt: skip


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows as the table of the documentation."""
    lines = [
        "| network | norms folded | largest error | parameters saved | operations saved, for each "
        "image | before | after | times as fast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join((*lines, *map(_line, rows)))


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"| {row['network']} | {row['folded']} of {row['norms']} | {row['error']} | "
        f"{int(row['parameters_saved']):,} of {int(row['parameters']):,} | "
        f"{int(row['operations_saved']) / 1e6:.1f} million | "
        f"{float(row['before_ms']):.0f} ms | {float(row['after_ms']):.0f} ms | "
        f"{float(row['speedup']):.2f} |"
    )


def main() -> None:
    """Fold, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/folding.csv"))
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    rows = []
    for name in options.network:
        rows.append(measure(name, options.rounds))
        print(markdown(rows).splitlines()[-1], flush=True)
    write_rows(options.out, COLUMNS, rows)
    with options.out.open() as file:
        print(f"\n{markdown(csv.DictReader(file))}")


if __name__ == "__main__":
    main()
