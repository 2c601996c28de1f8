"""Recognize the format of a model file by what is in it, and then by what it is called."""

from __future__ import annotations

from pathlib import Path

from homeostat.errors import DataError, ModelFileError
from homeostat.models.files.arrays import Source, refusal
from homeostat.models.files.safetensors import MAX_HEADER
from homeostat.models.files.tables import MAGIC
from homeostat.models.files.tf_checkpoint import prefix_of
from homeostat.models.files.zips import members_of

SUFFIXES = (
    *(".keras", ".weights.h5", ".h5", ".hdf5", ".pt", ".pth", ".safetensors", ".onnx", ".index"),
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_EXPECTED = (
    f"one of {', '.join(SUFFIXES)}, the prefix of a TensorFlow checkpoint, its folder, or a "
    "SavedModel"
)


def format_of(path: Path) -> str:
    """Return the format of a model file, a key of `homeostat.models.files.READERS`.

    Args:
        path: a file, a folder, or the prefix of a checkpoint.

    Raises:
        DataError: there is nothing at the path.
        ModelFileError: it is none of the formats.
    """
    try:
        if prefix_of(path) is not None:
            return "tensorflow"
        exists, folder = path.exists(), path.is_dir()
    # A path too long for the system, or with a zero in it.
    except (OSError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        exists, folder = False, False
    if not exists:
        raise DataError(
            f"{path} does not exist: expected a model file. Check the path; of a TensorFlow "
            "checkpoint give the prefix, without .index or .data."
        )
    if folder:
        raise _folder(path)
    with Source(path) as source:
        found = _by_content(source)
    if found is None:
        what = "is empty" if not source.size else "is in no format that is known"
        raise refusal(path, what, _EXPECTED, "Check the path, or save the model again.")
    return found


def _by_content(source: Source) -> str | None:
    head = source.read(0, min(source.size, 9))
    if head.startswith(b"PK"):
        return _archive(source)
    if head.startswith(_HDF5):
        return "hdf5"
    # A pickle of protocol 2 or later, as torch.save wrote them before it wrote archives.
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "torch"
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if source.size >= len(MAGIC) and source.read(source.size - len(MAGIC), len(MAGIC)) == MAGIC:
        return "tensorflow"
    # Neither these nor pickles of protocol 0 have a beginning of their own.
    suffix = source.path.suffix.lower()
    by_suffix = {".onnx": "onnx", ".safetensors": "safetensors", ".h5": "hdf5", ".hdf5": "hdf5"}
    return by_suffix.get(suffix) if source.size else None


def _archive(source: Source) -> str:
    members = members_of(source)
    if "config.json" in members or "model.weights.h5" in members:
        return "keras"
    if any(name.endswith("data.pkl") for name in members) or source.path.suffix != ".keras":
        return "torch"
    return "keras"


def _folder(path: Path) -> ModelFileError:
    inside = sorted(each.name for each in path.iterdir() if each.name.endswith(SUFFIXES))[:5]
    remedy = f"Give one of its files: {', '.join(map(repr, inside))}." if inside else ""
    return refusal(
        path,
        "is a folder without one checkpoint or SavedModel",
        "a SavedModel, or a folder with a file 'checkpoint' or a single .index file",
        remedy or "Give the model file itself.",
    )
