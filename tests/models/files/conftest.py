from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import run_python


@pytest.fixture(scope="session")
def tensorflow_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what `write_tensorflow` writes, in a process without eager execution later."""
    folder = tmp_path_factory.mktemp("tensorflow")
    done = run_python(
        "-m", "tests.models.files.write_tensorflow", str(folder), TF_CPP_MIN_LOG_LEVEL="3"
    )
    assert done.returncode == 0, done.stderr
    return folder
