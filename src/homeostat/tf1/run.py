"""Run an unmodified TF1 script or notebook on today's TensorFlow."""

from __future__ import annotations

import builtins
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

import tensorflow.compat.v1 as tf

from homeostat.errors import MissingUpdatesError
from homeostat.tf1 import imports, program, watch
from homeostat.tf1.program import is_python_2, python_2_notice, read_program

FAILED = 1
STOPPED = 130

_OURS = frozenset((__file__, imports.__file__, program.__file__, watch.__file__))


class ScriptStopped(BaseException):
    """Ends a script that `run_script` runs; no error, so that scripts let it pass."""


def run_script(
    script: str | Path, arguments: Sequence[str] = (), *, check: str = "warn", fix: bool = False
) -> int:
    """Run a TF1 script as ``python SCRIPT ARGUMENTS`` would have on TensorFlow 1.

    In the script and the modules beside it, ``import tensorflow`` means `homeostat.tf1`; training
    steps are watched for forgotten updates of batch norms. An error that ends the script is shown
    as Python shows it.

    Args:
        script: path of a Python file, or of a notebook, whose code cells run in order.
        arguments: the script's ``sys.argv[1:]``.
        check: ``"warn"``, ``"error"`` or ``"off"``, as in `watch_updates`.
        fix: run forgotten updates with the step.

    Returns:
        The script's exit code.

    Raises:
        DataError: there is no such script.
        UnsupportedError: the script is Python 2.
        SpecError: ``check`` is none of the three.
        MissingUpdatesError: with ``check="error"``, a step forgets updates.
    """
    path = Path(script)
    with watch.watch_updates(check, fix=fix, say=_say), imports.tf1_imports(), _quiet():
        try:
            pieces = read_program(path, _say)
        except SyntaxError as error:
            _show(error)
            return FAILED
        with _as_main(path, arguments) as module:
            return _execute(pieces, module)


def _execute(pieces: Sequence[CodeType], module: ModuleType) -> int:
    """Run code and return the exit code Python would end with, showing what it would show."""
    try:
        for code in pieces:
            exec(code, vars(module))  # noqa: S102
    except SystemExit as stop:
        return _code_of(stop)
    except (MissingUpdatesError, ScriptStopped):
        raise
    except BaseException as error:
        _show(error)
        if isinstance(error, SyntaxError) and is_python_2(error):
            _say(f"{error.filename}:{error.lineno}: {python_2_notice(error)}")
        return STOPPED if isinstance(error, KeyboardInterrupt) else FAILED
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what TensorFlow says of the age of its functions; the script is old."""
    tf.logging.set_verbosity(tf.logging.ERROR)
    with warnings.catch_warnings():
        # Said of the script's own lines.
        warnings.filterwarnings("ignore", r"`((tf\.)?layers|tf\.nn\.rnn_cell)\.\w+` is deprecated")
        for library in ("tensorflow", "tf_keras", "tf_slim"):
            warnings.filterwarnings("ignore", ".*(deprecated|removed)", module=rf"{library}\b")
        yield


@contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[ModuleType]:
    """Set what a script finds when it starts."""
    module = ModuleType("__main__")
    vars(module).update(__builtins__=builtins, __spec__=None)
    if path.suffix != ".ipynb":
        module.__file__ = str(path)
    before = sys.argv, sys.path[:], sys.modules["__main__"], sys.excepthook
    # Not the command line's.
    sys.excepthook = sys.__excepthook__
    sys.argv = [str(path), *arguments]
    # In the place of the folder of `homeostat` itself.
    sys.path[: not sys.flags.safe_path] = [os.path.dirname(os.path.realpath(path))]  # noqa: PTH120
    sys.modules["__main__"] = module
    try:
        yield module
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"], sys.excepthook = before


def _code_of(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)  # noqa: T201
    return FAILED


def _show(error: BaseException) -> None:
    """Show an error by the hook in force, the script's own if it set one, without our frames."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = _without_our_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]
    sys.stdout.flush()
    if sys.excepthook is sys.__excepthook__:
        # Python's own hook reads files, and a notebook's cells are in none.
        traceback.print_exception(error)
    else:
        sys.excepthook(type(error), error, error.__traceback__)


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    kept = None
    frames = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename not in _OURS:
            frames.append(trace)
        trace = trace.tb_next
    for frame in reversed(frames):
        frame.tb_next = kept
        kept = frame
    return kept


def _say(text: str) -> None:
    sys.stdout.flush()
    print(f"homeostat: {text}", file=sys.stderr, flush=True)  # noqa: T201
