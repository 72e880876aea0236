"""The place that an export is written to: whole, or not at all. Imports no torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fastcl_cli.errors import UsageError
from fastcl_cli.extras import need_extra
from fastcl_cli.files import sync
from fastcl_cli.run_files import need_checkpoint

Format = Literal["timm", "hf", "onnx"]
SUFFIXES: dict[Format, str] = {"timm": ".safetensors", "hf": "", "onnx": ".onnx"}
HF_CONFIG, HF_WEIGHTS = "config.json", "model.safetensors"
"""The files of an hf folder."""


def beside(path: Path) -> Path:
    """The file of weights that do not fit into the ONNX file ``path``."""
    return path.with_name(f"{path.name}.data")


def choose_place(checkpoint: Path, out: Path, format: Format | None, overwrite: bool) -> Format:
    """The format to write: the one asked for, or that of ``out``'s name. All that paths and names
    say against an export is said here, before anything is loaded.

    Raises:
        CheckpointError: there is no ``checkpoint``.
        UsageError: ``out`` may not be written, or its name does not fit.
        MissingLibraryError: what the format needs is not installed.
    """
    format = _format(out, format)
    need_checkpoint(checkpoint)
    _check_place(out, (HF_CONFIG, HF_WEIGHTS) if format == "hf" else None, overwrite)
    if format == "onnx":
        need_extra("onnx", "onnx", "onnxscript", "onnxruntime")
        _check_place(beside(out), None, overwrite)
    if out.exists() and _holds(out, checkpoint):
        raise UsageError(f"{out} holds the checkpoint itself", "name another one with --out")
    return format


def _format(out: Path, asked: Format | None) -> Format:
    """The format that was asked for, which the name must fit, or the one that the name tells."""
    told = next((name for name, end in SUFFIXES.items() if end == out.suffix.lower()), None)
    if asked is None:
        if told is None:
            raise UsageError(
                f"{out}: no format ends in '{out.suffix}'",
                "end --out in .safetensors (timm), .onnx, or nothing (hf, a folder), "
                "or give --format",
            )
        return told
    # What loads a file looks at its name.
    if asked != "hf" and out.suffix != SUFFIXES[asked]:
        raise UsageError(
            f"{out}: a file of format {asked} ends in {SUFFIXES[asked]}",
            f"--out {out.with_suffix(SUFFIXES[asked])}",
        )
    if asked == "hf" and told not in (None, "hf"):
        raise UsageError(
            f"{out} is to be a folder, but is named as a file", f"--out {out.with_suffix('')}"
        )
    return asked


def _holds(out: Path, checkpoint: Path) -> bool:
    return out.samefile(checkpoint) or (out.is_dir() and out.samefile(checkpoint.parent))


def _check_place(path: Path, own: Sequence[str] | None, overwrite: bool) -> None:
    """Make sure that an export may be written to ``path``.

    Args:
        own: names in the folder that it makes; None where it is a file.

    Raises:
        UsageError: something is there and ``overwrite`` is false, or it is not an export.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder", f"mkdir -p '{path.parent}'")
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() != (own is not None):
        kind = "a file" if own is not None else "a folder"
        raise UsageError(f"{path} is {kind}", "name another one with --out")
    other = [entry for entry in path.iterdir() if entry.name not in own] if own is not None else []
    if other:
        raise UsageError(
            f"{other[0]} was not written by an export, so {path} is left as it is",
            "name another one with --out",
        )
    if not overwrite and (own is None or any(path.iterdir())):
        raise UsageError(f"{path} exists", "replace it with --overwrite, or name another --out")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a place of the same name in a folder of its own beside ``path``.

    On success all that was written into that folder is synced and takes the place of what has its
    name beside ``path``; on an exception nothing is left.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            inner = folder / "new"
            inner.mkdir()
            yield inner / path.name
            for written in inner.rglob("*"):
                sync(written)
            # What ``path`` names comes last: a file beside it is no use without it.
            for made in sorted(inner.iterdir(), key=lambda made: made.name == path.name):
                _put(made, path.with_name(made.name), folder)
            sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot write {path}: {reason}", "name another one with --out") from error


def _put(made: Path, path: Path, folder: Path) -> None:
    if not path.is_dir():
        made.replace(path)
        return
    old = folder / "old"
    path.rename(old)
    try:
        made.rename(path)
    except OSError:
        old.rename(path)
        raise
