from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

# Where TensorFlow comes first, Triton, which torch.compile imports, ends the process.
with contextlib.suppress(ImportError):
    import triton as triton

from tests.command import run_homeostat


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes long comes first, so that no process is left alone with it.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short lesson on the digits: 16 networks, 60 steps each."""
    out = tmp_path_factory.mktemp("digits")
    run = run_homeostat("study", "--steps", "60", "--seeds", "1", "--out", str(out))
    assert run.returncode == 0, run.stderr
    return out
