"""Run modules of tf_slim's own tests on the mended tf_slim; print what fails in each, as JSON."""

from __future__ import annotations

import importlib
import json
import sys
import unittest

import numpy as np

import homeostat.tf1 as tf
from homeostat.tf1.contrib.mended_slim import mend, mended_slim


def run(name: str) -> list[str]:
    """Return the names of the tests that fail, with the number of all before them."""
    module = importlib.import_module(f"tf_slim.{name}")
    mend(module)
    # NumPy no longer makes a number of an array.
    module.int = lambda value: np.asarray(value).astype(np.int64).item()
    result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromModule(module))
    failed = {case.id().rpartition(".")[2] for case, _ in result.failures + result.errors}
    return [str(result.testsRun), *sorted(failed)]


def main(names: list[str]) -> None:
    """Run all, with what the tests themselves take from places that are gone."""
    mended_slim()
    importlib.import_module("tensorflow.python.ops.variables").VariableV1 = tf.Variable
    scopes = importlib.import_module("tensorflow.python.ops.variable_scope")
    for toggle in ("resource_variables_enabled", "disable_resource_variables"):
        setattr(scopes, toggle, getattr(tf, toggle))
    scopes.enable_resource_variables = tf.enable_resource_variables
    json.dump({name: run(name) for name in names}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
