"""`fastcl search`: from its options to a schedule, a record and a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcl_cli.errors import UsageError
from fastcl_cli.extras import need_train
from fastcl_cli.files import write_text
from fastcl_cli.run_files import need_checkpoint
from fastcl_cli.schedule import Loaded, load
from fastcl_cli.search.texts import setting
from fastcl_cli.ui.console import stderr, stdout
from fastcl_cli.ui.heatmap import HeatMap, heat_sheet, heat_table
from fastcl_cli.ui.processes import requeued
from fastcl_cli.ui.progress import stage_bar
from fastcl_cli.ui.screen import Ui, open_screen
from fastcl_cli.units import parse_budget

SUFFIX = ".safetensors"
FIGURES = {"ca_mse": "CA-MSE", "bias2": "bias²", "variance": "cost · variance · b/B"}


def run(
    files: Sequence[str],
    *,
    method: str | None,
    data: str | None,
    settings: Sequence[str],
    images: int | None,
    out: Path | None,
    checkpoints: Sequence[Path],
    grid: str | None,
    stages: int,
    groups: int,
    pairs: int,
    batch: int | None,
    metric: Any,
    profile: Path | None,
    free: bool,
    budget: str | None,
    seed: int,
    resume: str,
    overwrite: bool,
    ui: Ui | None,
    as_json: bool,
    arguments: Sequence[str],
) -> None:
    """Search, or measure checkpoints; the options are those of the command.

    Raises:
        UsageError: options that do not fit each other.
        FastclError: as the search has it.
    """
    paths = [*checkpoints, *(Path(name) for name in files if name.endswith(SUFFIX))]
    names = [name for name in files if not name.endswith(SUFFIX)]
    if len(names) + (method is not None) > 1:
        raise UsageError("search starts from one schedule", "give one FILE, or --method")
    need_train()
    for path in paths:
        need_checkpoint(path)
    if paths:
        trains = (budget, profile, free or None, overwrite or None)
        if any(option is not None for option in trains) or resume != "never":
            raise UsageError(
                "--budget, --profile, --free, --resume and --overwrite are for searches that train",
                "leave them out with --checkpoints",
            )
        from fastcl_cli.search.off_policy import schedule_of

        base = _base(names, method, settings, images, data) or schedule_of(paths[0])
        target = out or Path(f"{Path(base.name).stem}.off-policy.json")
        record = _measure(base, paths, grid, groups, pairs, batch, metric, seed)
        write_text(target.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    else:
        given = _base(names, method, settings, images, data)
        if given is None:
            raise UsageError("search needs a schedule to start from", "give a FILE, or --method")
        base = given
        target = out or Path(f"{Path(base.name).stem}_found.fcs")
        from fastcl_cli.search.on_policy import SearchRequest, search

        request = SearchRequest(
            base,
            target,
            grid,
            stages=stages,
            groups=groups,
            pairs=pairs,
            batch=batch,
            metric=metric,
            profile=profile,
            free=free,
            seed=seed,
            budget=parse_budget(budget) if budget is not None else None,
            resume=resume,
            overwrite=overwrite,
            arguments=tuple(arguments),
        )
        _check_out(request.out, request.folder, resume, overwrite)
        with open_screen("none" if as_json else ui) as emit, requeued():
            record = dict(search(request, emit).record)
    drawing = target.with_suffix(".svg")
    write_text(drawing, picture(record))
    if as_json:
        print(json.dumps(record))
    else:
        _print(record, target, drawing)


def _base(
    names: Sequence[str],
    method: str | None,
    settings: Sequence[str],
    images: int | None,
    data: str | None,
) -> Loaded | None:
    if not names and method is None:
        return None
    name = names[0] if names else f"{method}_full"
    base = load(name, overrides=settings, images=images, data=data)
    if base.config.data is not None:
        from fastcl_cli.data.source import need_there

        need_there(base.config.data)  # torch, which takes seconds to load, can wait
    return base


def _check_out(out: Path, folder: Path, resume: str, overwrite: bool) -> None:
    if out.suffix != ".fcs":
        raise UsageError(f"--out {out}: a schedule's name ends in .fcs")
    if out.exists() and not overwrite and resume == "never":
        raise UsageError(f"--out {out}: the file exists", "name another, or use --overwrite")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: no such folder: {out.parent}", "make it first")
    if overwrite and resume != "never":
        raise UsageError("--overwrite and --resume contradict each other", "give one of them")
    if resume not in ("never", "auto"):
        raise UsageError(f"--resume {resume}: a search resumes with auto or never")


def _measure(
    base: Loaded,
    paths: Sequence[Path],
    grid: str | None,
    groups: int,
    pairs: int,
    batch: int | None,
    metric: Any,
    seed: int,
) -> dict[str, Any]:
    from fastcl_cli.search.off_policy import measure_checkpoints

    with open_screen("none") as emit, stage_bar() as report:
        return measure_checkpoints(
            base, paths, grid, groups=groups, pairs=pairs, batch=batch, metric=metric, seed=seed,
            emit=emit, progress=report,
        )  # fmt: skip


def picture(record: Mapping[str, Any]) -> str:
    """The SVG of a search's record: a row of heat maps for each stage or checkpoint."""
    return heat_sheet([_maps(stage) for stage in record["stages"]])


def _maps(stage: Mapping[str, Any]) -> list[HeatMap]:
    name = f"step {stage['step']:,}" if "checkpoint" in stage else f"{stage['start']:g}%"
    return error_maps(stage["settings"], name, stage.get("setting"))


def error_maps(
    rows: Sequence[Mapping[str, Any]], name: str, chosen: str | None = None
) -> list[HeatMap]:
    """CA-MSE, bias² and the variance's share of it over the grid, over ‖g‖² where that is known.

    Args:
        rows: of a whole grid, as records hold them.
        name: when they were measured.
        chosen: the setting to frame.
    """
    patches = sorted({row["patch"] for row in rows})
    drops = sorted({row["drop"] for row in rows}, key=float)
    where = {(row["patch"], row["drop"]): row for row in rows}
    known = all(row["relative"]["ca_mse"] is not None for row in rows)
    framed = frozenset(
        (patches.index(row["patch"]), drops.index(row["drop"]))
        for row in rows
        if setting(row) == chosen
    )
    unit = " / ‖g‖²" if known else ""
    return [
        HeatMap(
            title=f"{title}{unit} at {name}",
            row_name="patch",
            column_name="drop",
            rows=[str(patch) for patch in patches],
            columns=drops,
            values=[[_figure(where[p, d], figure, known) for d in drops] for p in patches],
            log=True,
            marked=framed,
        )
        for figure, title in FIGURES.items()
    ]


def _figure(row: Mapping[str, Any], figure: str, known: bool) -> float:
    source = row["relative"] if known else row
    if figure == "variance":
        scale = row["cost"] * row["probe_batch"] / row["batch"]
        return float(source["variance"] * scale)
    return float(source[figure])


def _print(record: Mapping[str, Any], target: Path, drawing: Path) -> None:
    console = stdout()
    for stage in record["stages"]:
        console.print(heat_table(_maps(stage)[0]))
    if record["kind"] == "off-policy":
        stderr().print(
            "off policy: networks that did not train with a compression judge it too hard"
        )
    else:
        for stage in record["stages"]:
            span = f"{stage['start']:g}%-{stage['end']:g}%"
            console.print(f"{span}: {stage['setting']}: {stage['why']}", soft_wrap=True)
        cost = record["cost"]
        console.print(
            f"cost {record['mean_cost']:.3f} of no compression ({record['speedup']:.2f}x fewer "
            f"operations); the search took {cost['training_units']:,.0f} units for training, "
            f"{cost['measuring_units']:,.0f} for measuring, {cost['seconds']:,.0f} s",
            soft_wrap=True,
        )
    written = [target.with_suffix(".json"), drawing]
    if record["kind"] != "off-policy":
        written.insert(0, target)
    print(f"wrote {', '.join(map(str, written))}", file=sys.stderr)
