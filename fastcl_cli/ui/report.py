"""`fastcl report`: from run folders to a page, and to figures as files."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fastcl_cli.errors import UsageError
from fastcl_cli.files import write_text
from fastcl_cli.report.chart import as_file
from fastcl_cli.report.figures import Figure, comparison, plan_strip, run_figures
from fastcl_cli.report.page import WIDE, page
from fastcl_cli.report.records import Decision
from fastcl_cli.report.runs import Run, read_run
from fastcl_cli.run_files import RunFiles
from fastcl_cli.ui.heatmap import HeatMap, heat_sheet, heat_svg
from fastcl_cli.ui.search import error_maps

MAX_RUNS = 20


def report(folders: Sequence[Path], out: Path | None, svg: Path | None) -> None:
    """Read runs, and write a page of them to ``out`` and their figures into ``svg``.

    Raises:
        RunFolderError: a folder is not that of a run.
        UsageError: too many runs, or a place that cannot be written.
    """
    if len(folders) > MAX_RUNS:
        raise UsageError(f"{len(folders)} runs; a page shows at most {MAX_RUNS}", "name fewer")
    runs = [read_run(folder) for folder in folders]
    names = _names([run.name for run in runs])
    figures = [run_figures(run, f"r{index}") for index, run in enumerate(runs)]
    heat = [_heat(run) for run in runs]
    together = comparison(runs, names) if len(runs) > 1 else []
    target = out or (RunFiles(folders[0]).report if len(runs) == 1 else Path("report.html"))
    _write(target, page(runs, names, figures, heat, together))
    written = [str(target)]
    if svg is not None:
        documents = {figure.name: as_file(figure.svg) for figure in together}
        for index, (run, name) in enumerate(zip(runs, names, strict=True)):
            drawn = {one.name: as_file(one.svg) for one in figures[index].values()}
            drawn["plan"] = as_file(plan_strip(run.described.plan, WIDE, f"r{index}-plan"))
            drawn |= {f"heat-{one.step}": heat_svg(*maps) for one, maps in _maps(run)}
            prefix = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-" if len(runs) > 1 else ""
            documents |= {f"{prefix}{key}": document for key, document in drawn.items()}
        for key, document in documents.items():
            _write(svg / f"{key}.svg", document)
        written.append(f"{len(documents)} figures in {svg}")
    print(f"wrote {', '.join(written)}", file=sys.stderr)


def _names(names: Sequence[str]) -> list[str]:
    """The runs' names, with a number where several have the same."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return made


def _maps(run: Run) -> list[tuple[Decision, list[HeatMap]]]:
    """Of each decision that measured a whole grid, as a search's stages do."""
    found = []
    for one in run.decisions:
        places = {(row["patch"], row["drop"]) for row in one.settings}
        patches, drops = ({place[axis] for place in places} for axis in (0, 1))
        if len(one.settings) == len(places) == len(patches) * len(drops) > 3:
            found.append((one, error_maps(one.settings, f"step {one.step:,}", one.after)))
    return found


def _heat(run: Run) -> list[Figure]:
    maps = _maps(run)
    if not maps:
        return []
    note = (
        "CA-MSE is the sum of the two beside it. Dark is small, on a logarithmic scale; the frame "
        "is what was chosen. The tables below hold the same figures."
    )
    sheet = heat_sheet([row for _, row in maps], inline=True)
    return [Figure("heat", "Gradient error over the grid", note, sheet)]


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{path}: cannot be written: {reason}", "another place") from error
