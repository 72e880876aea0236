"""`fastcl pack` on the screen: a progress bar, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastcl_cli.extras import available_cores, need_train
from fastcl_cli.ui.console import stderr, stdout
from fastcl_cli.ui.progress import progress_bar

SHOWN = 20
"""Skipped images that are listed one by one."""


def run(
    source: str,
    out: Path,
    split: Literal["train", "val"] | None,
    max_side: int,
    quality: int,
    workers: int | None,
    strict: bool,
) -> None:
    """Pack a source into a beton and say what was written; the options are those of the command."""
    need_train()
    from fastcl_cli.data.pack import pack

    with progress_bar("packing") as progress:
        report = pack(
            source,
            out,
            split=split,
            max_side=max_side,
            quality=quality,
            workers=workers or available_cores(),
            strict=strict,
            progress=progress,
            announce=stderr().print,
        )
    for skipped in report.skipped[:SHOWN]:
        stderr().print(f"skipped {skipped.path}: {skipped.reason}", soft_wrap=True)
    if len(report.skipped) > SHOWN:
        more = f"... and {len(report.skipped) - SHOWN} more (all are in the JSON beside it)"
        stderr().print(more)
    classes = f"{len(report.classes)} classes" if report.classes else "no labels"
    left_out = f", {len(report.skipped):,} skipped" if report.skipped else ""
    stdout().print(
        f"{report.path}: {report.images:,} images, {classes}, "
        f"{report.bytes / 1e6:,.1f} MB{left_out}",
        soft_wrap=True,
    )
