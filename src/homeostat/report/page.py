"""One HTML file that needs nothing else: template, style, script and charts."""

from __future__ import annotations

import base64
import hashlib
import importlib
import unicodedata
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from homeostat.errors import DataError, MissingExtraError

_HIDDEN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
"""Unicode's categories of characters that are shown as escapes."""


def render_page(
    template: str,
    *,
    extra: str,
    again: str,
    style: Sequence[str] = ("report.css",),
    script: Sequence[str] = ("sort.js", "report.js"),
    plotly: bool = True,
    **values: Any,
) -> str:
    """Return a page of the package's templates, with style and script inside.

    Args:
        template: path of the template in this package.
        extra: the extra that brings what is missing.
        again: the command that renders the page then.
        style: paths of its style sheets in this package, one after the other.
        script: paths of its scripts.
        plotly: whether Plotly is inside too.
        **values: what the template shows; escaped. ``figures`` are its charts. The template may
            also show ``allowed``, the hashes of style and script for a Content-Security-Policy.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    jinja2 = _need("jinja2", extra, again)
    inside = {
        "style": "".join(map(_packaged, style)),
        "script": "".join(map(_packaged, script)),
    }
    allowed = {name: _content_hash(text) for name, text in inside.items()}
    if plotly:
        inside["plotly_js"] = _need("plotly.offline", extra, again).get_plotlyjs()
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_show_all,
    )
    return environment.from_string(_packaged(template)).render(
        **values,
        allowed=allowed,
        # These are ours, not a file's, and must not be escaped.
        **{name: jinja2.utils.markupsafe.Markup(text) for name, text in inside.items()},
    )


def _content_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _show_all(value: Any) -> Any:
    # Markup, which is ours, is a subclass. Lines end in texts of more than one.
    return "\n".join(map(show_hidden, value.split("\n"))) if type(value) is str else value


def show_hidden(text: str) -> str:
    r"""Return a text with what nobody would see in it, or what turns it around, as escapes.

    Control and format characters (U+202E makes what follows run from right to left), separators
    of lines, lone surrogates and unassigned code points.

    Example:
        >>> show_hidden("bn\u202e1")
        'bn\\u202e1'
    """
    if text.isprintable():
        return text
    hidden = (unicodedata.category(char) in _HIDDEN for char in text)
    return "".join(
        char.encode("unicode_escape").decode() if hide else char
        for char, hide in zip(text, hidden, strict=True)
    )


def write_page(page: str, path: Path) -> Path:
    """Write a page; an older one there is replaced.

    Raises:
        DataError: the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): expected a folder that can be written "
            "to, with 6 MB left. Choose another one."
        ) from error
    return path


def _need(module: str, extra: str, again: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"the HTML report needs the package {package!r}, which is not installed: expected the "
            f"extra {extra!r}. Run: pip install 'homeostat[{extra}]' and then `{again}`."
        ) from error


def _packaged(name: str) -> str:
    return resources.files("homeostat.report").joinpath(name).read_text(encoding="utf-8")
