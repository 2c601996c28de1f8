from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.errors import DataError, HomeostatError, SpecError
from homeostat.rules import RULES, Settings, find_settings, parse_settings, read_settings
from tests.messages import has_three_parts

PAGES = [rule.info for rule in RULES.values()]
BN001, BN040 = RULES["BN001"].info, RULES["BN040"].info

WRITTEN = """
[project]
name = "other"

[tool.homeostat]
select = ["BN0"]
ignore = ["BN03", "cold-start"]
fail-on = "warning"
batch-size = 32

[tool.homeostat.thresholds]
mean-shift = 1
elements = 8.0

[tool.homeostat.per-norm-ignores]
"backbone.*" = ["BN012"]
"""


def test_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(WRITTEN)
    settings = read_settings(tmp_path / "pyproject.toml")
    assert settings is not None
    assert settings.ignore == ("BN03", "cold-start")
    assert (settings.fail_on, settings.batch_size) == ("warning", 32)
    assert settings.thresholds.mean_shift == 1.0
    assert settings.thresholds.elements == 8.0
    assert settings.thresholds.agreement == 0.8
    assert settings.per_norm_ignores == {"backbone.*": ("BN012",)}
    asked = {page.identifier for page in PAGES if settings.asks(page)}
    left_out = {one for one in RULES if one.startswith("BN03")} | {"BN020"}
    assert asked == set(RULES) - left_out


def test_the_nearest_file_with_settings_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.homeostat]\nselect = ["BN02"]')
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'no settings'")
    assert find_settings(inner).select == ("BN02",)
    (inner / "pyproject.toml").write_text('[tool.homeostat]\nselect = ["BN03"]')
    assert find_settings(inner).select == ("BN03",)
    assert find_settings(tmp_path / "a").select == ("BN02",)


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    assert find_settings(tmp_path) == Settings()
    assert all(Settings().asks(page) for page in PAGES)


@pytest.mark.parametrize(
    ("select", "ignore", "asked"),
    [
        (("BN",), (), True),
        (("BN",), ("BN",), False),
        (("BN",), ("BN001",), False),
        (("BN001",), ("BN0",), True),
        (("BN00",), ("BN001",), False),
        (("never-updated",), ("BN00",), True),
        (("BN",), ("never-updated",), False),
        (("BN04",), (), False),
        ((), (), False),
    ],
)
def test_what_fits_more_closely_counts(
    select: tuple[str, ...], ignore: tuple[str, ...], asked: bool
) -> None:
    assert Settings(select=select, ignore=ignore).asks(BN001) is asked


def test_norms_are_left_out_by_patterns() -> None:
    settings = Settings(per_norm_ignores={"backbone.*": ("BN00", "mean-shift"), "head/?": ("BN",)})
    assert settings.ignores(BN001, "backbone.0.bn")
    assert settings.ignores(BN040, "backbone.0.bn")
    assert settings.ignores(RULES["BN012"].info, "head/1")
    assert not settings.ignores(RULES["BN012"].info, "backbone.0.bn")
    assert not settings.ignores(BN001, "Backbone.0.bn")
    assert not settings.ignores(BN001, "head/10")
    assert not settings.ignores(BN001, None)


def test_when_an_audit_fails() -> None:
    assert Settings().fails("error")
    assert not Settings().fails("warning")
    assert not Settings().fails(None)
    assert Settings(fail_on="info").fails("info")
    assert not Settings(fail_on="never").fails("error")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("select = 3", "select=3 is not valid"),
        ("select = [3]", "expected a list of rules"),
        ("selct = []", "setting 'selct' is not known: .* such as 'select'"),
        ("fail_on = 'error'", "such as 'fail-on'"),
        ("fail-on = 'errors'", "fail-on='errors' is not known"),
        ("batch-size = 0", "batch-size=0 is not valid"),
        ("batch-size = true", "batch-size=True is not valid"),
        ("batch-size = 1.5", "batch-size=1.5 is not valid"),
        ("thresholds = 3", "thresholds=3 is not a table"),
        ("thresholds = {mean-shift = '1'}", "threshold mean-shift='1' is not valid"),
        ("thresholds = {mean-shift = nan}", "threshold mean-shift=nan is not valid"),
        ("thresholds = {mean-shift = -1}", "expected a number, at least 0"),
        ("thresholds = {mean-shft = 1}", "such as 'mean-shift'"),
        ("per-norm-ignores = {'a' = 'BN001'}", "per-norm-ignores 'a'='BN001' is not valid"),
    ],
)
def test_what_is_not_valid_is_said(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(f"[tool.homeostat]\n{table}")
    with pytest.raises(SpecError, match=message) as raised:
        read_settings(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "nearest"), [("BN99", ""), ("BN099", "'BN0"), ("never-update", "'never-updated'")]
)
@pytest.mark.parametrize("where", ["select", "ignore", "per_norm_ignores"])
def test_unknown_rules_are_named_with_the_nearest(where: str, name: str, nearest: str) -> None:
    chosen = {"bn*": (name,)} if where == "per_norm_ignores" else (name,)
    with pytest.raises(SpecError, match=f"rule '{name}' is not known") as raised:
        Settings(**{where: chosen}).check_rules(PAGES)  # type: ignore[arg-type]
    assert nearest in str(raised.value)
    assert has_three_parts(raised.value)


@pytest.mark.parametrize("content", [b"[tool.homeostat", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_broken_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        find_settings(tmp_path)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(["select", "ignore", "fail-on", "batch-size", "thresholds", "x"])


@given(st.dictionaries(KEYS, VALUES) | VALUES)
def test_any_table_is_read_or_refused(table: object) -> None:
    with contextlib.suppress(HomeostatError):
        assert isinstance(parse_settings(table), Settings)
