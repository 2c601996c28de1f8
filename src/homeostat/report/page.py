"""One HTML file that needs nothing else: template, style, script and charts."""

from __future__ import annotations

import importlib
from importlib import resources
from pathlib import Path
from typing import Any

from homeostat.errors import DataError, MissingExtraError


def render_page(template: str, *, extra: str, again: str, **values: Any) -> str:
    """Return a page of the package's templates, with the reports' style and script inside.

    Args:
        template: path of the template in this package.
        extra: the extra that brings what is missing.
        again: the command that renders the page then.
        **values: what the template shows; escaped. ``figures`` are its charts.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    jinja2 = _need("jinja2", extra, again)
    offline = _need("plotly.offline", extra, again)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    ours = jinja2.utils.markupsafe.Markup
    return environment.from_string(_packaged(template)).render(
        **values,
        # These three are ours, not a file's, and must not be escaped.
        plotly_js=ours(offline.get_plotlyjs()),
        style=ours(_packaged("report.css")),
        script=ours(_packaged("report.js")),
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
