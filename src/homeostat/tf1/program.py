"""Read a script or a notebook as code that can run."""

from __future__ import annotations

import json
import linecache
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType

from homeostat.errors import DataError, UnsupportedError

# Cell magics whose cell is Python all the same.
_TIMED = ("%%time", "%%timeit", "%%capture", "%%prun")
_PYTHON_2 = re.compile(
    "Missing parentheses in call to|multiple exception types must be parenthesized"
    "|leading zeros in decimal integer literals|invalid decimal literal"
)
_RAISE_2 = re.compile(r"\s*raise\s+[\w.]+\s*,|.*<>|.*`")


def read_program(path: Path, say: Callable[[str], None]) -> list[CodeType]:
    """Compile a script, or the code cells of a notebook in their order.

    Args:
        path: a Python file, or a notebook if it ends in ``.ipynb``.
        say: takes notes on what is skipped.

    Returns:
        One piece of code for a script; one for each cell of a notebook.

    Raises:
        DataError: there is no such file, or the notebook is none.
        UnsupportedError: it is Python 2.
        SyntaxError: it is not Python.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(
            f"{path} {what}: expected a Python script or a notebook (.ipynb). Check the spelling "
            "of the path."
        )
    try:
        if path.suffix == ".ipynb":
            return list(_cells(path, say))
        return [compile(path.read_bytes(), str(path), "exec", dont_inherit=True)]
    except SyntaxError as error:
        if not is_python_2(error):
            raise
        raise UnsupportedError(
            f"{error.filename}:{error.lineno}: {python_2_notice(error)}"
        ) from error


def is_python_2(error: SyntaxError) -> bool:
    """Return whether a syntax error is of the kind that valid Python 2 gives."""
    return bool(_PYTHON_2.match(error.msg) or _RAISE_2.match(error.text or ""))


def python_2_notice(error: SyntaxError) -> str:
    """Say what to do about a file that is Python 2."""
    name = error.filename or "SCRIPT"
    return (
        f"{(error.text or '').strip()!r} is Python 2: expected Python 3, and Homeostat does not "
        f"translate it. Run `2to3 -w {name}` or `futurize -w {name}` first."
    )


def _cells(path: Path, say: Callable[[str], None]) -> Iterator[CodeType]:
    try:
        cells = json.loads(path.read_bytes())["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a notebook: expected JSON with cells, notebook format 4. Open and save "
            "it with a current Jupyter."
        ) from error
    for number, source in enumerate(sources, start=1):
        yield _compile_cell(source, f"{path}, cell {number}", say)


def _compile_cell(source: str, name: str, say: Callable[[str], None]) -> CodeType:
    lines = source.splitlines()
    first = lines[0].split()[0] if lines and lines[0].strip() else ""
    if first.startswith("%%") and first not in _TIMED:
        say(f"{name}: skipped, since it is a cell of {first}.")
        lines = []
    while True:
        try:
            code = compile("\n".join(lines) + "\n", name, "exec", dont_inherit=True)
        except SyntaxError as error:
            # A line that begins with % may be inside a string, so each is left while it can be.
            number = error.lineno or 0
            if not 0 < number <= len(lines) or not _is_magic(lines[number - 1]):
                raise
            lines[number - 1] = _skip(lines[number - 1], f"{name}, line {number}", say)
        else:
            # So that tracebacks can show the lines.
            linecache.cache[name] = (len(source), None, [f"{line}\n" for line in lines], name)
            return code


def _is_magic(line: str) -> bool:
    return line.lstrip().startswith(("%", "!"))


def _skip(line: str, place: str, say: Callable[[str], None]) -> str:
    magic = line.strip()
    say(f"{place}: skipped {magic!r}, which is for notebooks only.")
    # As a statement, a block may consist of it.
    return f"{line[: line.index(magic)]}pass"
