"""The JSON sidecar of a beton, ``OUT.beton.json`` beside ``OUT.beton``: its classes, where it is
from, and what was left out.

A beton's own digest does not cover it, so it carries one of itself: a class name that has changed
on the way is noticed. Sidecars of version 1 had none, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcl_cli.errors import DataError
from fastcl_cli.files import read_json, sync

VERSION, _WITHOUT_DIGEST = 2, 1
_MOST_BYTES, _MOST_IMAGE_BYTES = 64_000_000, 1000
"""A sidecar is no larger than the first, and the second for every image."""
_REMEDY = "delete it, or write both again with `fastcl pack --overwrite`"


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a beton lies."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, content: Mapping[str, Any]) -> None:
    """Write the sidecar of a beton, and force it to the disk; version and digest are added."""
    whole = {"schema_version": VERSION, **content}
    whole["digest"] = _digest(whole)
    sidecar_path(path).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    sync(sidecar_path(path))


def read_classes(
    path: Path, images: int, identity: str, labels: NDArray[np.int64] | None
) -> tuple[str, ...] | None:
    """The names of the labels of a beton of so many images and that identity; None where it has no
    labels, no sidecar, or one without names.

    Raises:
        DataError: the sidecar cannot be read, is damaged, is another file's, or lacks a name.
    """
    sidecar = sidecar_path(path)
    try:
        content = read_json(sidecar, _MOST_BYTES + _MOST_IMAGE_BYTES * images)
        fault = _fault(content, identity, path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # JSON is written less deep than read
        raise DataError(f"{sidecar}: cannot be read: {error}", _REMEDY) from None
    if fault:
        raise DataError(f"{sidecar}: {fault}", _REMEDY)
    classes = content.get("classes")
    if classes is None or labels is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{sidecar}: 'classes' is not a list of names", _REMEDY)
    if labels.max() >= len(classes):
        raise DataError(
            f"{sidecar}: names {len(classes)} classes, the file's labels go up to {labels.max()}",
            _REMEDY,
        )
    return tuple(classes)


def _fault(content: Any, identity: str, path: Path) -> str:
    """What is wrong with a sidecar as a whole; nothing where it is that of the beton."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in (VERSION, _WITHOUT_DIGEST):
        return f"is not a sidecar of version {_WITHOUT_DIGEST} or {VERSION}"
    if content.get("identity") != identity:
        return f"belongs to another file than {path.name}"
    # Whatever the version says: it may be what has changed.
    digested = version == VERSION or "digest" in content
    if digested and content.get("digest") != _digest(content):
        return "is damaged: it is not what was written"
    return ""


def _digest(content: Mapping[str, Any]) -> str:
    """BLAKE2b (16 bytes, hex) of all fields but ``digest``, however they are laid out."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()
