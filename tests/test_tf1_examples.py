"""The examples of the TF1 front door reach their figures on the real MNIST."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "tf1"


def figures(script: str) -> dict[str, float]:
    """Run an example and return the figures that it prints, by what stands before each."""
    if "HOMEOSTAT_MNIST" not in os.environ:
        pytest.skip("HOMEOSTAT_MNIST is not set")
    pytest.importorskip("tf_keras")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "homeostat.cli", "run", "--check", "error"),
            *(str(EXAMPLES / script), os.environ["HOMEOSTAT_MNIST"]),
        ],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "deprecated" not in done.stderr
    assert "homeostat:" not in done.stderr
    return {
        name: float(value) for name, value in (x.rsplit(" ", 1) for x in done.stdout.splitlines())
    }


def test_the_lesson() -> None:
    found = figures("lesson.py")
    assert found["accuracy"] >= 0.94
    assert found["one image at a time"] >= 0.93


def test_batch_norm_by_hand() -> None:
    found = figures("by_hand.py")
    assert found["accuracy"] >= 0.95
    assert found["one image at a time"] >= 0.93
    assert found["difference from the formula"] <= 1e-5
    # Every unit of a single image equals its mean, so each image looks the same.
    assert found["by its own statistics"] <= 0.3


def test_elu_saved_and_restored() -> None:
    found = figures("elu.py")
    assert found["restored"] >= 0.96
    assert found["restored"] == found["trained"]


def test_every_kind_of_iterator() -> None:
    found = figures("iterators.py")
    assert list(found) == ["one_shot", "initializable", "reinitializable", "feedable"]
    assert min(found.values()) >= 0.94


def test_two_graphs_side_by_side() -> None:
    found = figures("two_graphs.py")
    assert found["relu"] >= 0.94
    assert found["sigmoid"] >= 0.94
    assert found["difference"] == 0


@pytest.mark.slow
def test_nineteen_convolutions() -> None:
    found = figures("deep_cnn.py")
    assert found["without"] <= 0.3
    assert found["with"] >= 0.95
    assert found["with, one image at a time"] >= 0.95


@pytest.mark.slow
def test_two_networks_in_turn() -> None:
    found = figures("volumes.py")
    assert found["accuracy of the reader"] >= 0.9
    # A tenth of the mean square of the noise.
    assert found["error of the restorer"] <= 0.025
    assert found["least move of statistics by their own step"] > 0
    assert found["greatest move by the other step"] == 0


@pytest.mark.slow
def test_a_small_lenet() -> None:
    assert figures("lenet.py")["accuracy"] >= 0.98


def test_slim_in_an_estimator() -> None:
    found = figures("slim_estimator.py")
    assert found["accuracy at step 300"] >= 0.95
    assert found["accuracy"] >= 0.97
    assert found["global step"] == 700
    assert found["accuracy of predictions"] == found["accuracy"]
