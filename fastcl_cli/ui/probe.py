"""`fastcl probe` on the screen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastcl_cli.extras import need_train
from fastcl_cli.ui.console import stderr, stdout
from fastcl_cli.ui.pack import progress_bar

if TYPE_CHECKING:
    from fastcl_cli.evaluate.probe import ProbeResult


def run(
    checkpoint: Path,
    data: str | None,
    train: Path | None,
    val: Path | None,
    ks: Sequence[int] | None,
    crop_ratio: float | None,
    untrained: bool,
    as_json: bool,
) -> None:
    """Judge a checkpoint and print the rows; the options are those of the command."""
    need_train()
    from fastcl_cli.evaluate.probe import DEFAULT_KS, open_probe_data, probe

    with progress_bar("packing") as progress:
        bank, queries = open_probe_data(data, train, val, stderr().print, progress)
    result = probe(
        checkpoint,
        bank,
        queries,
        ks=ks or DEFAULT_KS,
        crop_ratio=crop_ratio,
        untrained=untrained,
    )
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        _show(result)


def _show(result: ProbeResult) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("task", "k", "top-1", "top-5"):
        table.add_column(name, justify="left" if name == "task" else "right")
    if result.untrained is not None:
        table.add_column("untrained top-1", justify="right")
    for index, row in enumerate(result.results):
        cells = [row.task, str(row.protocol["k"]), f"{row.top1:.1%}", f"{row.top5:.1%}"]
        if result.untrained is not None:
            cells.append(f"{result.untrained[index].top1:.1%}")
        table.add_row(*cells)
    console = stdout()
    console.print(f"{result.checkpoint}: {result.n_val:,} images among {result.n_train:,}")
    console.print(table)
    p = result.results[0].protocol
    console.print(
        f"k-NN, {p['similarity']} similarity, votes exp(s/{p['temperature']}), all tokens, "
        f"image {p['image']}, centre crop {p['crop_ratio']:g}, {p['resize']}, {p['precision']}",
        style="dim",
        soft_wrap=True,
    )
