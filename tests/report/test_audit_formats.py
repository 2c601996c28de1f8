"""An audit as text, JSON and Markdown, of records with hostile names."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from homeostat.audit import judge
from homeostat.models import Behaviour, ModelRecord
from homeostat.report.audit.json import read_schema, write_json, write_rules
from homeostat.report.audit.markdown import code, escape, write_markdown, write_pages
from homeostat.report.audit.text import render_audit, render_page, render_rules
from homeostat.rules import RULES, Audit
from tests.rules.cases import CASES, GAMMA, chain, model, norm, observed, some

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "[red]bold[/red]",
    "[link=https://example.org]click[/link]",
    "a|b|c",
    "a\\|b",
    "`code` ``more``",
    "\x1b[31mred\x1b[0m\x07",
    "line\nbreak\r\n# heading",
    "\u202egnp.exe",
    "@someone #1 https://example.org www.example.org a@example.org",
    "![x](https://example.org/x.png)",
    "\ud800lone",
    " ",
    "",
    "x" * 5000,
]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


def audited(name: str) -> Audit:
    """Return an audit with findings of each severity at norms of a name."""
    record = ModelRecord(
        name,
        "torch",
        "by hand",
        (norm(name, moving_mean=some(np.nan, GAMMA), gamma=GAMMA * 1e-5, skipped=1),),
        chain("conv", "activation", "batch_norm"),
        why_no_graph=name,
        notes=(name,),
    )
    return judge(record, observed(behaviour=Behaviour(100, np.nan)))


def as_text(audit: Audit, **options: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=100, force_terminal=True, color_system="truecolor").print(
        render_audit(audit, **options)
    )
    return file.getvalue()


STYLE = re.compile("\x1b\\[[0-9;]*m")


def plain(text: str) -> str:
    return STYLE.sub("", text)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_text_shows_names_and_does_nothing_with_them(name: str) -> None:
    shown = as_text(audited(name))
    # Only rich's own styles are left of what terminals would do something about.
    assert all(char == "\n" or char.isprintable() for char in plain(shown))
    assert "8;;" not in shown
    if 0 < len(name) < 30 and name.isprintable():
        assert name in plain(shown)


def test_styles_of_names_are_not_ours() -> None:
    styles = set(STYLE.findall(as_text(audited("plain"))))
    assert set(STYLE.findall(as_text(audited("[red]bold[/red]")))) == styles
    assert set(STYLE.findall(as_text(audited("\x1b[35m")))) == styles


def test_text_tells_all() -> None:
    shown = plain(as_text(audited("bn")))
    for words in ("BN002", "nonfinite-statistics", "BN012", "1 of 16 channels", "Note: bn"):
        assert words in shown
    assert re.search(r"\d errors?, \d warnings?, \d notes? in 1 batch norm\.", shown)
    # Nothing is listed that has not been found.
    assert "BN003" not in shown


def test_long_lists_are_cut_unless_all_are_wanted() -> None:
    record = model(*(norm(f"bn_{number}", momentum=0.1) for number in range(30)))
    shown = plain(as_text(judge(record)))
    assert "bn_7 " in shown
    assert "bn_8 " not in shown
    assert "and 22 norms more; --all lists them" in shown
    assert "bn_29" in plain(as_text(judge(record), all_norms=True))
    assert "and 10 norms more" in write_markdown(judge(record))


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_shows_names_as_code(name: str) -> None:
    written = write_markdown(audited(name))
    written.encode()
    html = MARKDOWN.render(written)
    tags = set(re.findall(r"<([a-z0-9]+)", html))
    assert tags <= {"h3", "h4", "p", "strong", "code", "ul", "li", "table", "thead", "tbody", "tr",
                    "th", "td", "a", "em"}  # fmt: skip
    assert "<a" not in html
    assert "href" not in html
    # Mentions and addresses are made of what is not code.
    outside = re.sub(r"<code>.*?</code>", "", html, flags=re.DOTALL)
    assert not re.search(r"[@#]\w|://\w|www\.", outside)
    headings = re.findall(r"<h[34]>", html)
    assert len(headings) == len(
        re.findall(r"<h[34]>", MARKDOWN.render(write_markdown(audited("plain"))))
    )
    rows = re.findall(r"<tr>", html)
    assert len(rows) == len({(f.rule, f.severity) for f in audited(name).findings}) + 1


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_code_holds_any_text(text: str) -> None:
    html = MARKDOWN.render(f"- {code(text)}: x")
    [inside] = re.findall(r"<code>(.*?)</code>", html, flags=re.DOTALL)
    assert html.count("<code>") == 1
    assert "<li>" in html
    if text.isprintable() and text.strip():
        from html import unescape

        assert unescape(inside) == text or unescape(inside) == text.strip()


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_escaped_text_has_no_markup(text: str) -> None:
    html = MARKDOWN.render(f"x {escape(text)} x")
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= {"p"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.about}")
def test_json_fits_the_schema(case: Any) -> None:
    document = json.loads(
        write_json(judge(case.model, case.observation, case.settings)),
        parse_constant=lambda word: pytest.fail(f"{word} is no JSON"),
    )
    jsonschema.validate(document, read_schema())


def test_the_schema_is_one_and_refuses_what_does_not_fit() -> None:
    schema = read_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(write_json(audited("bn")))
    for change in (
        {"version": 2},
        {"worst": "fatal"},
        {"findings": [{**document["findings"][0], "channels": [-1]}]},
        {"findings": [{**document["findings"][0], "figures": {"a": None}}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, **change}, schema)
    for key in schema["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in document.items() if k != key}, schema)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_json_keeps_names(name: str) -> None:
    written = write_json(audited(name))
    assert written.isascii()
    document = json.loads(written)
    jsonschema.validate(document, read_schema())
    assert document["model"]["name"] == name
    assert document["norms"][0]["name"] == name


def test_json_has_strings_for_what_is_no_number() -> None:
    document = json.loads(write_json(audited("bn")))
    assert document["data"]["difference"] == "NaN"
    assert document["data"]["agreement"] is None
    assert document["worst"] == "error"
    assert document["counts"]["error"] == sum(
        one["severity"] == "error" for one in document["findings"]
    )
    numpy = model(norm(epsilon=np.float32(0.5), updates=np.int64(3), momentum=np.float32(0.5)))
    assert json.loads(write_json(judge(numpy)))["norms"][0]["updates"] == 3
    broken = judge(model(norm(epsilon=-np.inf)))
    assert json.loads(write_json(broken))["norms"][0]["epsilon"] == "-Infinity"


def test_rules_are_shown() -> None:
    pages = [rule.info for rule in RULES.values()]
    file = io.StringIO()
    console = Console(file=file, width=120)
    console.print(render_rules(pages))
    console.print(render_page(pages[0]))
    shown = file.getvalue()
    assert all(page.identifier in shown and page.name in shown for page in pages)
    assert "What to do instead" in shown
    assert [one["rule"] for one in json.loads(write_rules(pages))] == list(RULES)
    written = write_pages(pages)
    html = MARKDOWN.render(written)
    assert html.count("<h2>") == len(pages)
    # Formulas with asterisks and bars are shown as they are.
    assert "momentum**t" in html
    assert "|mean| / sqrt(variance + epsilon)" in html
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= {
        "h1", "h2", "h3", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "a",
    }  # fmt: skip
