from __future__ import annotations

import os

import numpy as np
import pytest

from homeostat.errors import DataError, MissingExtraError
from homeostat.studies.data import load_data
from tests.command import run_python


def test_digits_are_split_into_disjoint_parts_with_every_class():
    data = load_data("digits")
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1200, 300, 297]
    for part in parts:
        assert part.images.shape[1] == 64
        assert (part.images.min(), part.images.max()) == (0.0, 1.0)
        assert set(part.labels) == set(range(10))
    rows = np.concatenate([part.images for part in parts])
    assert len(np.unique(rows, axis=0)) == 1797


def test_a_name_that_is_neither_known_nor_a_folder():
    with pytest.raises(DataError, match="'nowhere' is neither a known name nor a folder") as caught:
        load_data("nowhere")
    assert "digits, mnist, fashion_mnist" in str(caught.value)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'homeostat\[study\]'"):
        load_data("digits")


LOAD = """
from homeostat.studies.data import load_data
from homeostat.errors import DataError
try:
    load_data("fashion_mnist")
except DataError as error:
    print(error)
"""


def test_no_network_is_an_error_that_says_what_to_do(tmp_path):
    # A proxy that nothing listens at stands for a machine without network.
    dead = "http://127.0.0.1:9"
    run = run_python(
        *("-c", LOAD),
        KERAS_BACKEND="jax",
        KERAS_HOME=str(tmp_path),
        **dict.fromkeys(("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"), dead),
        no_proxy="",
    )
    assert run.returncode == 0, run.stderr
    assert "fashion_mnist could not be loaded" in run.stdout
    assert "Check the network" in run.stdout
    assert "--data digits, which needs no network" in run.stdout


@pytest.mark.skipif(
    "HOMEOSTAT_MNIST" not in os.environ, reason="HOMEOSTAT_MNIST names no folder with MNIST"
)
def test_mnist_in_a_folder_is_known_as_mnist():
    data = load_data(os.environ["HOMEOSTAT_MNIST"])
    assert data.name == "mnist"
    assert [len(part) for part in (data.train, data.validation, data.test)] == [55000, 5000, 10000]
    assert data.train.images.shape == (55000, 784)
