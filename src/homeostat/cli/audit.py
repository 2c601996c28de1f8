"""`homeostat audit` and `homeostat rules`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homeostat import HomeostatError
from homeostat.cli.app import FOUND, STOPPED, app, parse_size, quiet_frameworks, split
from homeostat.cli.options import Force, ImageSize, Limit, Transform, Weights
from homeostat.cli.output import check_output, write_beside

if TYPE_CHECKING:
    from homeostat.rules import Audit, Settings

FORMATS = ("text", "json", "markdown", "html")
WIDE = 120
BATCH_SIZE = 64
"""Examples in a batch of data, where training's batch size is not told."""


@app.command()
def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A file or folder: .keras, .h5, .pt, .pth, .safetensors, .onnx, a TensorFlow 1 "
            "checkpoint's prefix or SavedModel; or package.module:factory.",
        ),
    ],
    weights: Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Examples as training saw them: .npy, .npz, a folder of images or .npy files, or "
            "package.module:function that returns a DataLoader, a tf.data.Dataset or batches. "
            "Runs the model."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help=".npy file with the class of each example.", show_default="the data's"),
    ] = None,
    limit: Limit = None,
    image_size: ImageSize = None,
    transform: Transform = None,
    select: Annotated[
        str | None,
        typer.Option(help="Rules to ask, such as BN001,BN04, with commas.", show_default="all"),
    ] = None,
    ignore: Annotated[
        str | None, typer.Option(help="Rules not to ask, with commas.", show_default="none")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Least severity that ends with exit code 1: error, warning, info or never.",
            show_default="error",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Examples in a training step on each replica; also of --data."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="text, json, markdown or html.")] = "text",
    html: Annotated[
        Path | None, typer.Option(help="Also write the page of all channels to this file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write to, not the screen.")
    ] = None,
    force: Force = False,
    all_norms: Annotated[
        bool, typer.Option("--all", help="List every norm, not the first few of each rule.")
    ] = False,
) -> None:
    r"""Find what is wrong with the batch norms of a trained model.

    Reads the model, runs none of a file's code, and asks some thirty rules: statistics
    that were never updated, NaN, dead channels, wrong momentum or epsilon, and so on.
    With --data the model also runs, and its statistics are compared with the data's.

    [bold]Examples[/bold]

      homeostat audit model.keras
      [dim]a table of findings, with why and what to do[/dim]

      homeostat audit model.keras --data train.npz --batch-size 32 --html page.html
      [dim]with moving against observed statistics, and a page of every channel[/dim]

      homeostat audit package.models:resnet --weights resnet.pt --data package.data:batches

      homeostat audit model.safetensors --select BN00,BN01 --fail-on warning
      [dim]as a check before you ship; settings in pyproject.toml count too[/dim]

      homeostat audit model.pt --format markdown -o comment.md

    The rules: homeostat rules. Settings: \[tool.homeostat] in pyproject.toml.

    Exit codes: 0 clean, 1 findings at or above --fail-on, 2 could not run, 130 stopped by
    Ctrl-C.
    """
    settings = _settings(select, ignore, fail_on, batch_size)
    _check_files(form, html, out, force)
    if labels is not None and data is None:
        raise _usage("--labels is given without --data", "data that they belong to", "Add --data.")
    try:
        with quiet_frameworks():
            if data is None:
                found = _read(model, weights, settings)
            else:
                options = {"limit": limit, "image_size": image_size, "transform": transform}
                found = _run(model, weights, data, labels, options, settings)
    except KeyboardInterrupt:
        typer.echo("Stopped. Nothing was written.", err=True)
        raise typer.Exit(STOPPED) from None
    if html is not None:
        _write_page(found, html)
    if form == "html" and out is not None:
        _write_page(found, out)
    else:
        _show(found, form, out, all_norms=all_norms)
    raise typer.Exit(FOUND if settings.fails(found.worst()) else 0)


def _read(model: str, weights: Path | None, settings: Settings) -> Audit:
    from homeostat.audit import judge
    from homeostat.models import open_model

    return judge(open_model(model, weights), None, settings)


def _run(
    model: str,
    weights: Path | None,
    data: str,
    labels: Path | None,
    options: dict[str, Any],
    settings: Settings,
) -> Audit:
    from homeostat.audit import examine, with_labels
    from homeostat.data import open_batches
    from homeostat.models import open_live

    size = options["image_size"]
    if size is not None:
        options = {**options, "image_size": parse_size(size)}
    live = open_live(model, weights)
    # The model is called what the command calls it.
    record = replace(live.record(), name=Path(model).name)
    batches: Any = open_batches(
        data,
        settings.batch_size or BATCH_SIZE,
        channels_first=record.framework == "torch",
        **options,
    )
    if labels is not None:
        batches = with_labels(batches, labels)
    return examine(live, record, _watched(batches), settings)


def _watched(batches: Any) -> Any:
    """Show on a terminal how many batches have been run."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        batches, "Running the data", transient=True, console=console,
        disable=not console.is_terminal,
    )  # fmt: skip


def _settings(
    select: str | None, ignore: str | None, fail_on: str | None, batch_size: int | None
) -> Settings:
    from homeostat.rules import RULES, find_settings

    settings = find_settings().changed(
        select=None if select is None else split(select),
        ignore=None if ignore is None else split(ignore),
        fail_on=fail_on,
        batch_size=batch_size,
    )
    settings.check_rules(rule.info for rule in RULES.values())
    return settings


def _check_files(form: str, html: Path | None, out: Path | None, force: bool) -> None:
    """Check before the work is done that its result can be written."""
    if form not in FORMATS:
        raise _usage(f"format={form!r} is not known", f"one of {', '.join(FORMATS)}", "Choose one.")
    if form == "html" and out is None:
        raise _usage("--format html writes a page", "a file for it", "Add -o page.html.")
    if html is not None and html == out:
        raise _usage(f"{html} is both --html and --out", "two files", "Give one another name.")
    for path in (html, out):
        if path is not None:
            check_output(path, force)


def _usage(problem: str, expected: str, remedy: str) -> HomeostatError:
    from homeostat import SpecError

    return SpecError(f"{problem}: expected {expected}. {remedy}")


def _show(found: Audit, form: str, out: Path | None, *, all_norms: bool) -> None:
    if form == "text" and out is None:
        from rich.console import Console

        from homeostat.report.audit.text import render_audit

        console = Console()
        if not console.is_terminal:
            # In a file the tables keep their lines whole.
            console = Console(width=max(console.width, WIDE))
        console.print(render_audit(found, all_norms=all_norms))
        return
    text = _write(found, form, all_norms=all_norms)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_beside(out, lambda path: path.write_text(text, encoding="utf-8"))
    typer.echo(f"Written: {out}")


def _write(found: Audit, form: str, *, all_norms: bool) -> str:
    if form == "json":
        from homeostat.report.audit.json import write_json

        return write_json(found)
    if form == "markdown":
        from homeostat.report.audit.markdown import write_markdown

        return write_markdown(found)
    import io

    from rich.console import Console

    from homeostat.report.audit.text import render_audit

    file = io.StringIO()
    Console(file=file, width=WIDE).print(render_audit(found, all_norms=all_norms))
    return file.getvalue()


def _write_page(found: Audit, path: Path) -> None:
    from homeostat.report.audit.html import write_audit_page

    write_beside(path, lambda unfinished: write_audit_page(found, unfinished))
    typer.echo(f"Page: {path}", err=True)


@app.command()
def rules(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[RULE]", help="Identifier, its start, or name: BN001, BN04, never-updated."
        ),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="text, json or markdown.")] = "text",
) -> None:
    """List the rules of homeostat audit, or explain one.

    [bold]Examples[/bold]

      homeostat rules
      [dim]all of them, a line each[/dim]

      homeostat rules BN001
      [dim]what it does, why it is bad, what to do, and how safe the repair is[/dim]

      homeostat rules BN04
      [dim]the rules of data[/dim]

      homeostat rules --format markdown > rules.md

    Exit codes: 0 done, 2 could not run.
    """
    from homeostat.rules import RULES, Settings

    if form not in FORMATS[:3]:
        raise _usage(f"format={form!r} is not known", "text, json or markdown", "Choose one.")
    pages = [rule.info for rule in RULES.values()]
    if which is not None:
        chosen = Settings(select=(which,))
        chosen.check_rules(pages)
        pages = [page for page in pages if chosen.asks(page)]
    if form == "json":
        from homeostat.report.audit.json import write_rules

        typer.echo(write_rules(pages), nl=False)
    elif form == "markdown":
        from homeostat.report.audit.markdown import write_page, write_pages

        one = len(pages) == 1 and which is not None
        typer.echo(write_page(pages[0]) if one else write_pages(pages), nl=False)
    else:
        from rich.console import Console

        from homeostat.report.audit.text import render_page, render_rules

        shown = len(pages) == 1 and which is not None
        Console().print(render_page(pages[0]) if shown else render_rules(pages))
