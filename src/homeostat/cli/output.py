"""Where commands write models: beside, then renamed, and never over what is there unasked."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from homeostat.errors import DataError


def check_output(out: Path, force: bool) -> None:
    """Refuse to write over something, or into nowhere, before the work begins.

    Raises:
        DataError: there is something already and ``force`` is False, or no folder for it.
    """
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a folder" if out.is_dir() else "lies in a folder that does not exist"
        raise DataError(f"{out} {problem}: expected the name of a file to write. Choose another.")
    if out.exists() and not force:
        raise DataError(
            f"{out} is there already: expected a new name. Give another one with -o, or --force to "
            "replace it; what is there is kept beside it then."
        )


def write_beside(out: Path, save: Callable[[Path], object]) -> str:
    """Save to a new file beside, then give it its name; return how to undo that.

    What was there before is kept beside it as ``NAME.bak``, ``NAME.bak2`` and so on. If saving
    fails or is stopped nothing has changed.

    Args:
        out: the file's name.
        save: writes to the path it is given, which has the same suffix.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
        unfinished = Path(folder) / out.name
        save(unfinished)
        quoted = shlex.quote(str(out))
        undo = f"rm {quoted}"
        if out.exists():
            kept = _free_name(out)
            shutil.copy2(out, kept)
            undo = f"mv {shlex.quote(str(kept))} {quoted}"
        unfinished.replace(out)
    return undo


def _free_name(path: Path) -> Path:
    number = 1
    while True:
        name = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        if not name.exists():
            return name
        number += 1
