"""Run the examples of the modules named as arguments; write what came of each as JSON."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import json
import sys
from typing import Any

# Where TensorFlow comes first, Triton ends the process.
with contextlib.suppress(ImportError):
    import triton as triton


def examine(name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return {"skipped": str(error)}
    output, finder = io.StringIO(), doctest.DocTestFinder()
    runner = doctest.DocTestRunner()
    for test in finder.find(module, name):
        runner.run(test, out=output.write)
    failed, attempted = runner.summarize(verbose=False)[:2]
    return {"failed": failed, "attempted": attempted, "output": output.getvalue()}


if __name__ == "__main__":
    found = {}
    stdout, sys.stdout = sys.stdout, io.StringIO()
    for name in sys.argv[1:]:
        found[name] = examine(name)
    json.dump(found, stdout)
