"""One framework's process: reads jobs, writes rows.

    python -m homeostat.bench.worker < request

The request is one JSON object; the answers are JSON objects, a line each, on the standard output
that the process was started with. What frameworks print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from typing import Any

from homeostat.bench.columns import select_columns
from homeostat.bench.environment import confine
from homeostat.bench.jobs import from_message
from homeostat.report.bench.rows import Environment, to_record


def main() -> None:
    """Answer every job of the request."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    where = Environment(**request["environment"])
    confine(where.threads)
    # Frameworks warn of what they do themselves.
    warnings.simplefilter("ignore")
    from homeostat.bench.measure import answer

    framework: Any = importlib.import_module(f"homeostat.bench.{where.framework}")
    columns = select_columns(where.framework, request["columns"])
    for number, message in enumerate(request["jobs"]):
        say({"started": number})
        job = from_message(message)
        rows = answer(job, framework, columns, where)
        say({"finished": number, "rows": [to_record(row) for row in rows]})


if __name__ == "__main__":
    main()
