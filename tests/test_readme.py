"""What README and docs tell people to type is typed here, but for the installing."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALLS = {
    'pip install ".[tensorflow,study]"',
    'pip install ".[audit]"',
    'pip install -e ".[dev]" -c constraints.txt',
}
ENVIRONMENT = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "bash")).splitlines()
    console = "\n".join(blocks(page, "console")).splitlines()
    lines += [line.removeprefix("$ ") for line in console if line.startswith("$ ")]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part and not part.startswith("#")]


def run(arguments: list[str], folder: Path, code: int = 0) -> str:
    result = subprocess.run(
        arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


SNIPPETS = [(page, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(
    ("page", "snippet"), SNIPPETS, ids=[f"{page.name}-{i}" for i, (page, _) in enumerate(SNIPPETS)]
)
def test_python_snippets_run(page, snippet, tmp_path):
    run([sys.executable, "-c", snippet], tmp_path)


def test_the_lines_of_the_readme_install_what_they_say():
    found = [command for command in commands(ROOT / "README.md") if command.startswith("pip")]
    assert set(found) == INSTALLS


SAVE = """
import keras
norm = keras.layers.BatchNormalization(name="norm")
keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), norm]).save("model.keras")
"""


def test_the_commands_of_the_readme_do_what_they_say(tmp_path):
    found = [line for line in commands(ROOT / "README.md") if line.startswith("homeostat")]
    assert found == ["homeostat study", "homeostat audit model.keras"]
    script = Path(sys.executable).with_name("homeostat")
    output = run([str(script), *shlex.split(found[0])[1:]], tmp_path)
    assert "with" in output
    assert (tmp_path / "homeostat-study" / "report.html").stat().st_size > 10_000
    run([sys.executable, "-c", SAVE], tmp_path)
    output = run([str(script), *shlex.split(found[1])[1:]], tmp_path, code=1)
    assert "never-updated" in output


DOCUMENTED = sorted(
    {line for page in PAGES for line in commands(page) if line.startswith("homeostat ")}
)


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_options_exist(line, tmp_path):
    words = shlex.split(line)
    script = Path(sys.executable).with_name("homeostat")
    help_text = run([str(script), words[1], "--help"], tmp_path)
    for word in words[2:]:
        if word.startswith("--"):
            assert word.split("=")[0] in help_text, f"{word} of: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
