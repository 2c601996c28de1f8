"""`homeostat audit` and `homeostat rules` on real files, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from homeostat.report.audit.json import read_schema
from tests.command import run_homeostat, run_python
from tests.rules.networks import convolutional, digits, train
from tests.test_cli import LOADED

ROOT = Path(__file__).parent.parent
FACTORY = "tests.rules.networks:convolutional"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of networks that were trained well, badly and not at all."""
    folder = tmp_path_factory.mktemp("models")
    images, classes = digits()
    torch.save(train(convolutional()).state_dict(), folder / "good.pt")
    torch.save(train(convolutional(), updates=False).state_dict(), folder / "forgetful.pt")
    torch.save({"<b>.running_mean": torch.zeros(2), "<b>.running_var": torch.ones(2)},
               folder / "hostile.pt")  # fmt: skip
    (folder / "broken.pt").write_bytes(b"no model")
    np.save(folder / "images.npy", images[:640])
    np.save(folder / "classes.npy", classes[:640])
    np.save(folder / "few.npy", classes[:7])
    np.savez(folder / "both.npz", x=images[:640], y=classes[:640])
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Settings are looked for from the working directory upward.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


def test_a_clean_file_ends_with_0(files: Path) -> None:
    run = run_homeostat("audit", str(files / "good.pt"))
    assert run.returncode == 0, run.stderr
    assert "0 errors, 0 warnings" in run.stdout
    assert "good.pt" in run.stdout


def test_findings_end_with_1(files: Path) -> None:
    run = run_homeostat("audit", str(files / "forgetful.pt"))
    assert run.returncode == 1
    assert "BN001" in run.stdout
    assert "homeostat recalibrate" in " ".join(run.stdout.split())
    never = run_homeostat("audit", str(files / "forgetful.pt"), "--fail-on", "never")
    assert never.returncode == 0
    other = run_homeostat("audit", str(files / "forgetful.pt"), "--select", "BN03,BN002")
    assert other.returncode == 0


def test_a_file_is_audited_without_its_framework(files: Path) -> None:
    run = run_python("-c", LOADED, "audit", str(files / "good.pt"), "--format", "json")
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


def test_data_shows_what_it_costs(files: Path) -> None:
    weights = ("--weights", str(files / "forgetful.pt"))
    data = ("--data", str(files / "images.npy"), "--labels", str(files / "classes.npy"))
    run = run_homeostat("audit", FACTORY, *weights, *data, "--format", "json")
    assert run.returncode == 1, run.stderr
    document = json.loads(run.stdout)
    jsonschema.validate(document, read_schema())
    found = {one["rule"] for one in document["findings"] if one["severity"] == "error"}
    assert {"BN001", "BN044"} <= found
    assert document["data"]["examples"] == 640
    assert document["data"]["batch_accuracy"] > 0.9 > document["data"]["inference_accuracy"]


def test_a_healthy_model_is_clean_on_its_data(files: Path) -> None:
    run = run_homeostat(
        *("audit", FACTORY, "--weights", str(files / "good.pt"), "--fail-on", "warning"),
        *("--data", str(files / "both.npz"), "--batch-size", "64"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "640 examples in 10 batches" in run.stdout


def test_settings_of_the_project_count_and_flags_more(files: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.homeostat]\nignore = ['BN001']\n")
    assert run_homeostat("audit", str(files / "forgetful.pt")).returncode == 0
    again = run_homeostat("audit", str(files / "forgetful.pt"), "--ignore", "BN002")
    assert again.returncode == 1
    (tmp_path / "pyproject.toml").write_text("[tool.homeostat]\nignored = ['BN001']\n")
    wrong = run_homeostat("audit", str(files / "good.pt"))
    assert wrong.returncode == 2
    assert "setting 'ignored' is not known" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("form", ["text", "json", "markdown"])
def test_what_is_written_is_what_is_shown(files: Path, tmp_path: Path, form: str) -> None:
    arguments = ("audit", str(files / "hostile.pt"), "--format", form)
    shown = run_homeostat(*arguments)
    out = tmp_path / "audit.out"
    run = run_homeostat(*arguments, "-o", str(out))
    assert (shown.returncode, run.returncode) == (1, 1)
    assert out.read_text().split() == shown.stdout.split()
    assert list(tmp_path.iterdir()) == [out]
    refused = run_homeostat(*arguments, "-o", str(out))
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert run_homeostat(*arguments, "-o", str(out), "--force").returncode == 1


def test_a_page_is_written_beside_the_text(files: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    run = run_homeostat("audit", str(files / "hostile.pt"), "--html", str(page))
    assert run.returncode == 1, run.stderr
    assert "BN001" in run.stdout
    assert "BN001" in page.read_text()
    assert "<b>.running" not in page.read_text()
    alone = tmp_path / "alone.html"
    run = run_homeostat("audit", str(files / "hostile.pt"), "--format", "html", "-o", str(alone))
    assert (run.returncode, alone.read_text()) == (1, page.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["broken.pt"], "broken.pt"),
        (["nowhere.pt"], "does not exist"),
        (["good.pt", "--select", "BN9"], "rule 'BN9' is not known"),
        (["good.pt", "--fail-on", "errors"], "fail-on='errors' is not known"),
        (["good.pt", "--batch-size", "0"], "batch-size=0 is not valid"),
        (["good.pt", "--format", "xml"], "format='xml' is not known"),
        (["good.pt", "--format", "html"], "Add -o page.html"),
        (["good.pt", "--html", "a.html", "-o", "a.html"], "both --html and --out"),
        (["good.pt", "-o", "nowhere/a.txt"], "nowhere/a.txt"),
        (["good.pt", "--labels", "classes.npy"], "Add --data"),
        (["good.pt", "--data", "images.npy"], "not the code"),
        ([FACTORY, "--data", "nowhere.npy"], "nowhere.npy"),
        ([FACTORY, "--data", "images.npy", "--labels", "few.npy"], "holds 7 labels"),
        ([FACTORY, "--data", "images.npy", "--labels", "broken.pt"], "cannot be read"),
        (["no_such_module:made"], "no_such_module"),
    ],
)
def test_what_cannot_run_ends_with_2(
    files: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    run = run_homeostat("audit", *arguments)
    assert run.returncode == 2, run.stdout
    assert message in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr
    assert sorted(files.iterdir()) == before


def test_rules_are_listed_and_explained() -> None:
    run = run_homeostat("rules")
    assert run.returncode == 0
    assert "BN001" in run.stdout
    assert "accuracy-drop" in run.stdout
    one = run_homeostat("rules", "never-updated")
    assert "UPDATE_OPS" in one.stdout
    assert "BN002" not in one.stdout
    several = run_homeostat("rules", "BN04", "--format", "json")
    assert [rule["rule"] for rule in json.loads(several.stdout)] == [
        f"BN04{number}" for number in range(5)
    ]
    unknown = run_homeostat("rules", "BN9")
    assert (unknown.returncode, unknown.stdout) == (2, "")


def test_the_documentation_is_made_from_the_rules() -> None:
    run = run_homeostat("rules", "--format", "markdown")
    assert run.stdout == (ROOT / "docs" / "rules.md").read_text()


@pytest.mark.parametrize("command", ["audit", "rules"])
def test_help_teaches(command: str) -> None:
    run = run_python("-c", LOADED, command, "--help")
    assert f"homeostat {command}" in run.stdout
    assert "Exit codes" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"
