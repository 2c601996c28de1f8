"""Batches from a folder of images."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.data.batches import Examples
from homeostat.errors import DataError, MissingExtraError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def image_batches(
    folder: Path, batch_size: int, channels_first: bool, size: tuple[int, int] | None
) -> Iterator[Examples]:
    """Yield the batches of a folder's images, in the order of their paths.

    Args:
        folder: holds images, or folders of images, one for each class.
        batch_size: images in a batch.
        channels_first: whether they become (3, height, width).
        size: height and width to resize to.

    Raises:
        DataError: there is no image, one cannot be read, or they differ in size.
        MissingExtraError: pillow is not installed.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise DataError(
            f"{folder} has no .npy file and no image ({', '.join(SUFFIXES)}): expected some, in it "
            "or in folders inside it. Check the path."
        )
    classes = {name: n for n, name in enumerate(sorted({p.parent.name for p in paths}))}
    labelled = all(path.parent != folder for path in paths)
    for start in range(0, len(paths), batch_size):
        chosen = paths[start : start + batch_size]
        images = [_read(path, channels_first, size) for path in chosen]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise DataError(
                f"images in {folder} differ in size, {sorted(shapes)[:2]}: expected one size. Say "
                "to which height and width to resize them."
            )
        labels = np.array([classes[path.parent.name] for path in chosen]) if labelled else None
        yield Examples(np.stack(images), labels)


def _read(path: Path, channels_first: bool, size: tuple[int, int] | None) -> Any:
    try:
        image = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingExtraError(
            "images need the package 'pillow', which is not installed: expected the extra 'audit'. "
            "Run: pip install 'homeostat[audit]'"
        ) from error
    try:
        with image.open(path) as opened:
            picture = opened.convert("RGB")
            if size is not None:
                picture = picture.resize((size[1], size[0]), image.Resampling.BILINEAR)
            pixels = np.asarray(picture, np.float32) / 255
    except (OSError, ValueError, image.DecompressionBombError) as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}): expected a whole one. Take it out of "
            "the folder."
        ) from error
    return pixels.transpose(2, 0, 1) if channels_first else pixels
