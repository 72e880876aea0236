"""`fastcl pack` on the screen: a progress bar, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastcl_cli.extras import available_cores, need_train
from fastcl_cli.ui.console import stderr, stdout
from fastcl_cli.ui.progress import progress_bar

if TYPE_CHECKING:
    from fastcl_cli.data.pack import PackReport

SHOWN = 20
"""Skipped images that are listed one by one."""


def run(
    source: str,
    out: Path,
    *,
    split: Literal["train", "val"] | None,
    root: Path | None,
    max_side: int,
    quality: int,
    workers: int | None,
    strict: bool,
    overwrite: bool,
) -> None:
    """Pack a source and say what was written; the options are those of the command."""
    need_train()
    from fastcl_cli.data.encode import Settings
    from fastcl_cli.data.pack import pack
    from fastcl_cli.data.source import once

    settings = Settings(max_side, quality, workers or available_cores(), strict)
    with progress_bar("packing") as progress:
        reports = pack(
            source, out, split=split, root=root, overwrite=overwrite, settings=settings,
            progress=progress, announce=once(lambda line: stderr().print(line, soft_wrap=True)),
        )  # fmt: skip
    for report in reports:
        _show(report)
    if len(reports) == 1 and split is None and reports[0].classes:
        stderr().print(
            f"no images are held out: for k-NN during a run, `--data {source}` itself splits them "
            "80/20, or pack two folders, train/ and val/",
            soft_wrap=True,
        )


def _show(report: PackReport) -> None:
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
