"""`fastcl probe` on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastcl_cli.evaluate.settings import settings_of
from fastcl_cli.extras import need_train
from fastcl_cli.run_files import need_checkpoint
from fastcl_cli.ui.console import stderr, stdout
from fastcl_cli.ui.progress import progress_bar, stage_bar

if TYPE_CHECKING:
    from fastcl_cli.evaluate.bench import Row
    from fastcl_cli.evaluate.probe import ProbeResult


def run(
    checkpoint: Path,
    data: str | None,
    train: Path | None,
    val: Path | None,
    given: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Judge a checkpoint and print the rows; ``given`` as for `settings_of`."""
    settings = settings_of(given)
    need_checkpoint(checkpoint)
    need_train()
    from fastcl_cli.evaluate.sets import data_of_run, open_probe_data

    judged = None if val is None else str(val)
    if data is None and train is None:
        data, own = data_of_run(checkpoint)
        judged = judged or own
    with progress_bar("packing") as progress:
        training, validation = open_probe_data(data, train, judged, stderr().print, progress)
    from fastcl_cli.evaluate.probe import probe  # torch, which takes seconds to load

    with stage_bar() as stages:
        result = probe(checkpoint, training, validation, settings, stages)
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        _show(result)


def _show(result: ProbeResult) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("task", "setting", "top-1", "top-5", "mean class"):
        table.add_column(name, justify="left" if name in ("task", "setting") else "right")
    if result.untrained is not None:
        table.add_column("untrained top-1", justify="right")
    for index, row in enumerate(result.results):
        cells = [row.task, _setting(row), *(f"{x:.1%}" for x in (row.top1, row.top5))]
        cells.append(f"{row.mean_class:.1%}")
        if result.untrained is not None:
            cells.append(f"{result.untrained[index].top1:.1%}")
        table.add_row(*cells)
    console = stdout()
    console.print(f"{result.checkpoint}: {result.n_train:,} images train, {result.n_val:,} judge")
    console.print(table)
    for line in dict.fromkeys(_protocol(row) for row in result.results):
        console.print(line, style="dim", soft_wrap=True)


def _setting(row: Row) -> str:
    p = row.protocol
    if row.task == "knn":
        return f"k {p['k']}, T {p['temperature']:g}"
    if row.task == "linear":
        last = "last block" if p["blocks"] == 1 else f"last {p['blocks']} blocks"
        return f"{last}, lr {p['lr']:g}{' (edge of the sweep)' if p.get('lr_on_edge') else ''}"
    return f"{p['epochs']} epochs, lr {p['lr']:g}"


def _protocol(row: Row) -> str:
    """All that the figures of a task have in common, in a line."""
    p = row.protocol
    common = (
        f"{p['weights']} weights, {p['tokens']} tokens, image {p['image']}, "
        f"centre crop {p['crop_ratio']:g}, {p['resize']}, {p['precision']}"
    )
    if row.task == "knn":
        return f"knn: {p['similarity']} similarity, votes exp(s/T); {common}"
    length = f"{p['epochs']} epochs of batch {p['batch']}, seed {p['seed']}"
    rate = f"{p['optimizer']}, lr per {p['lr_per_batch']} images, {p['decay']}"
    if row.task == "linear":
        chosen = f"chosen by {p['chosen_by']}" if "chosen_by" in p else "as given"
        return (
            f"linear: {p['features']}, standardised, {p['views']}; {length}; {rate}, {chosen}; "
            f"{common}"
        )
    return (
        f"finetune: {p['views']}; {length}; {rate}, warm-up {p['warmup']}, weight decay "
        f"{p['weight_decay']:g}, layer decay {p['layer_decay']:g}, drop path {p['drop_path']:g}, "
        f"label smoothing {p['label_smoothing']:g}; judged {p['judged']}; {common}"
    )
