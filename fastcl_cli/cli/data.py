"""The command that packs images: pack."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Split(str, Enum):
    """A part of a data set."""

    train = "train"
    val = "val"


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Image folder, or a set by name: digits, or torchvision's CIFAR10, STL10, ...",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.beton", help="The file to write.")],
    split: Annotated[
        Split | None, typer.Option("--split", help="One part only, of an SRC that has two.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            help="Where a torchvision set is, or is downloaded to. [default: in the cache]",
        ),
    ] = None,
    max_side: Annotated[
        int, typer.Option("--max-side", min=8, help="Longest side stored, in pixels.")
    ] = 384,
    quality: Annotated[
        int, typer.Option("--quality", min=1, max=100, help="JPEG quality stored.")
    ] = 90,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes. [default: all cores]")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on an unreadable image; else skip it.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
) -> None:
    """Pack images into an FFCV file.

    An SRC with two parts (a folder with train/ and val/, or a set by name) makes two files,
    OUT-train.beton and OUT-val.beton, with the same class numbers; --split makes OUT.beton of one.
    """
    from fastcl_cli.ui import pack as view

    view.run(
        source,
        out,
        split=split.value if split else None,
        root=root,
        max_side=max_side,
        quality=quality,
        workers=workers,
        strict=strict,
        overwrite=overwrite,
    )
