"""TF1 programs: training steps per second with our layer and with tf-keras's legacy layer.

    python -m benchmarks.tf1
    python -m benchmarks.tf1 --rounds 60 --network dense

Two networks on random data, in sessions: the MNIST lesson (three dense layers, batch 60) and 19
convolutions (batch 64); `training` is True or a placeholder. Before anything is timed both layers
take one step from the same start and must agree. Times are medians of interleaved runs; the
row "again" is our layer against itself: what noise alone does.
"""

from __future__ import annotations

import argparse
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import percentiles, write_rows
from homeostat.bench import timing

COLUMNS = (
    "network", "training", "layer", "steps_per_s", "p20_ms", "p50_ms", "p80_ms", "speedup",
    "machine", "cores", "python", "tensorflow", "homeostat",
)  # fmt: skip
BATCHES = {"dense": 60, "convolutional": 64}


def dense(tf: Any, layer: Any, images: Any, training: Any) -> Any:
    """Return the logits of the lesson's network."""
    for _ in range(3):
        images = tf.layers.dense(images, 100, use_bias=False)
        images = tf.nn.relu(layer(images, training=training))
    return tf.layers.dense(images, 10)


def convolutional(tf: Any, layer: Any, images: Any, training: Any) -> Any:
    """Return the logits of the network of 19 convolutions."""
    images = tf.reshape(images, [-1, 28, 28, 1])
    for i in range(1, 20):
        strides = 2 if i % 3 == 0 else 1
        images = tf.layers.conv2d(images, 4 * i, 3, strides, padding="same", use_bias=False)
        images = tf.nn.relu(layer(images, training=training))
    images = tf.layers.dense(tf.layers.flatten(images), 100, use_bias=False)
    return tf.layers.dense(tf.nn.relu(layer(images, training=training)), 10)


def make(name: str, layer: Any, placeholder: bool) -> tuple[Callable[[], None], Callable[[], Any]]:
    """Build a network in a graph and a session of its own.

    Returns:
        What takes one training step, and what reads the trainable variables.
    """
    import homeostat.tf1 as tf

    draw, batch = np.random.default_rng(0), BATCHES[name]
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(0)
        images = tf.placeholder(tf.float32, (None, 784))
        labels = tf.placeholder(tf.int64, (None,))
        training = tf.placeholder_with_default(False, ()) if placeholder else True
        logits = globals()[name](tf, layer, images, training)
        loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            step = tf.train.GradientDescentOptimizer(0.01).minimize(loss)
        variables = tf.trainable_variables()
        session = tf.Session(graph=graph)
        session.run(tf.global_variables_initializer())
    feeds = {images: draw.normal(size=(batch, 784)), labels: draw.integers(0, 10, batch)}
    if placeholder:
        feeds[training] = True
    return lambda: session.run(step, feeds), lambda: session.run(variables)


def check(ours: Any, theirs: Any) -> None:
    """Take one step with each; raise unless the variables agree.

    Later steps of 19 convolutions magnify rounding a thousandfold each.
    """
    for step, _ in (ours, theirs):
        step()
    for a, b in zip(ours[1](), theirs[1](), strict=True):
        error = np.abs(a - b).max() / max(1.0, np.abs(b).max())
        if not error < 1e-4:
            raise SystemExit(f"training is off by {error:.1e}: not timed. Run the tests first.")


def measure(name: str, placeholder: bool, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of one network."""
    from tf_keras.api._v1.keras.__internal__.legacy.layers import batch_normalization as legacy

    import homeostat
    import homeostat.tf1 as tf

    ours = make(name, tf.layers.batch_normalization, placeholder)
    theirs = make(name, legacy, placeholder)
    check(ours, theirs)
    candidates = {"legacy": theirs[0], "homeostat": ours[0], "again": ours[0]}
    times = timing.interleave(candidates, rounds)
    rows = []
    for layer, found in times.items():
        rows.append({
            "network": name, "training": "placeholder" if placeholder else "True", "layer": layer,
            "steps_per_s": round(1000 / found.p50, 1), **percentiles(found),
            "speedup": round(times["legacy"].p50 / found.p50, 3),
            "machine": platform.machine(), "cores": os.cpu_count(),
            "python": platform.python_version(), "tensorflow": tf.__version__,
            "homeostat": homeostat.__version__,
        })  # fmt: skip
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as the table of the documentation."""
    lines = ["| network | training | legacy layer, steps/s | Homeostat, steps/s | ratio | noise |"]
    lines.append("|---|---|---|---|---|---|")
    for i in range(0, len(rows), 3):
        legacy, ours, again = rows[i : i + 3]
        noise = float(again["steps_per_s"]) / float(ours["steps_per_s"])
        lines.append(
            f"| {ours['network']} | {ours['training']} | {float(legacy['steps_per_s']):.0f} | "
            f"{float(ours['steps_per_s']):.0f} | {float(ours['speedup']):.2f}x | {noise:.2f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=BATCHES, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tf1.csv"))
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")
    rows = []
    for name in options.network:
        for placeholder in (False, True):
            found = measure(name, placeholder, options.rounds)
            for row in found:
                what = f"{name:14} training={row['training']:12} {row['layer']:10}"
                print(f"{what} {row['steps_per_s']:8.1f} steps/s {row['speedup']:.3f}x", flush=True)
            rows += found
    write_rows(options.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
