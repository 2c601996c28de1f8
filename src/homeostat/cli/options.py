"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Weights = Annotated[
    Path | None,
    typer.Option(help="Weights of what a factory makes: .pt, .pth, .safetensors, .weights.h5."),
]
Limit = Annotated[int | None, typer.Option(help="Stop after so many batches.", show_default="all")]
ImageSize = Annotated[
    str | None, typer.Option(help="Resize images, such as 224x224.", show_default="as they are")
]
Transform = Annotated[
    str | None,
    typer.Option(help="package.module:function that each batch's inputs go through first."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace a file that is there; it is kept beside as NAME.bak."),
]
