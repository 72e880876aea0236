"""`fastcl bench`: what training steps take here, as a profile, a table and a heat map."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fastcl_cli.errors import UsageError
from fastcl_cli.estimate.profile import Measured, Profile
from fastcl_cli.estimate.profile_file import default_path, profile_folder, to_json, write_profile
from fastcl_cli.extras import available_cores, need_train
from fastcl_cli.files import write_text
from fastcl_cli.processes.launchers import place
from fastcl_cli.schedule import Loaded, load
from fastcl_cli.schedule.grid import Grid, parse_grid, to_measure
from fastcl_cli.ui.console import stderr, stdout
from fastcl_cli.ui.heatmap import HeatMap, heat_svg, heat_table
from fastcl_cli.ui.plan_table import encoder_words
from fastcl_cli.ui.processes import must_launch, processes
from fastcl_cli.ui.progress import progress_bar


def run(
    schedule: str,
    *,
    data: str | None,
    settings: Sequence[str],
    grid: str | None,
    repetitions: int,
    seconds: float,
    out: Path | None,
    gpus: int | None,
    as_json: bool,
    arguments: Sequence[str],
) -> int:
    """Measure a schedule's settings, or a grid's, write the profile and print it; the options are
    those of the command, whose ``arguments`` every process gets where it starts several.

    Returns:
        the exit status.

    Raises:
        FastclError: a file, an option or the data is wrong, or nothing fits into memory.
    """
    if out is not None and out.suffix != ".json":
        raise UsageError(f"--out {out}: a profile's name ends in .json", f"--out {out}.json")
    launches = must_launch(gpus, schedule)
    with nullcontext() if launches else processes():
        loaded = load(schedule, overrides=settings, data=data)
        cells = None if grid is None else parse_grid(grid, loaded)
        need_train()
        if loaded.config.data is not None and place() is None:
            from fastcl_cli.data.source import need_there

            need_there(loaded.config.data)
        if launches:
            from fastcl_cli.processes.launch import launch

            assert gpus is not None
            return launch(arguments, gpus)
        from fastcl_cli.processes import distributed

        profile = _measure(loaded, cells, repetitions, seconds, out)
        if distributed.rank() == 0:
            _finish(profile, loaded, data, settings, cells, out, as_json)
    return 0


def _measure(
    loaded: Loaded, cells: Grid | None, repetitions: int, seconds: float, out: Path | None
) -> Profile:
    from fastcl_cli.data.source import open_split
    from fastcl_cli.processes import distributed
    from fastcl_cli.train.bench import Bench, BenchRequest

    scratch = profile_folder() if out is None else out.parent
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{scratch}: cannot be made: {error.strerror}") from error
    leads = distributed.rank() == 0

    def announce(line: str) -> None:
        if leads:
            stderr().print(line, soft_wrap=True)

    images = None
    if loaded.config.data is None:
        announce("no data: synthetic images, which no loader has to deliver (--data D)")
    else:
        with distributed.leader_first(), progress_bar("packing", leads) as progress:
            images = open_split(
                loaded.config.data,
                "train",
                announce=announce,
                workers=available_cores(),
                progress=progress,
            )
    request = BenchRequest(loaded.config, to_measure(loaded, cells), repetitions, seconds, scratch)
    bench = Bench(request, images)
    count, rounds = len(request.segments), request.repetitions
    loader = "" if images is None else ", and as long for the loader alone"
    announce(
        f"{count} setting{'s' * (count > 1)}: a warm-up, then {rounds} round{'s' * (rounds > 1)}, "
        f"about {seconds:g} s of steps for each{loader}"
    )
    with progress_bar("measuring", leads) as progress:
        return bench.measure(announce, progress)


def _finish(
    profile: Profile,
    loaded: Loaded,
    data: str | None,
    settings: Sequence[str],
    cells: Grid | None,
    out: Path | None,
    as_json: bool,
) -> None:
    path = default_path(profile) if out is None else out
    write_profile(path, profile)
    map_ = None if cells is None else _heat_map(profile, cells)
    if map_ is not None:
        _write_svg(path.with_suffix(".svg"), map_)
    if as_json:
        print(json.dumps({**to_json(profile), "path": str(path)}))
        return
    _show(profile, map_)
    use = ["fastcl", "estimate", loaded.name]
    if data is not None:
        use += ["--data", data]
    for setting in settings:
        use += ["--set", setting]
    if profile.processes > 1:
        use += ["--gpus", str(profile.processes)]
    if out is not None:
        use += ["--profile", str(path)]
    stdout().print(f"wrote {path}\nuse it:  {shlex.join(use)}", soft_wrap=True)


def _heat_map(profile: Profile, grid: Grid) -> HeatMap:
    """Measured sample cost over a grid."""
    found = {(m.setting.views, m.setting.batch): m for m in profile.measured}
    cells = [found.get((cell.views, cell.batch)) for cell in grid.cells]
    costs = [None if cell is None else profile.sample_cost(cell) for cell in cells]
    width = len(grid.drops)
    return HeatMap(
        f"sample cost, {profile.workload.method} {profile.workload.model}, {profile.device}",
        "patch",
        "drop",
        grid.patches,
        grid.drops,
        [costs[i : i + width] for i in range(0, len(costs), width)],
        log=True,
    )


def _write_svg(path: Path, map_: HeatMap) -> None:
    try:
        write_text(path, heat_svg(map_))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _show(profile: Profile, map_: HeatMap | None) -> None:
    console = stdout()
    work = profile.workload
    shared = "" if profile.processes == 1 else f", {profile.processes} processes"
    console.print(
        f"{work.method}, {work.model}, image {work.image}: {profile.precision} on "
        f"{profile.device}{shared}, {profile.repetitions} repetitions",
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("online", no_wrap=True)
    for name in ("batch", "ms/step", "quartiles", "images/s", "data wait", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("sample cost", "by operations"):
        table.add_column(name, justify="right")
    for one in profile.measured:
        table.add_row(*_row(profile, one))
    console.print(table)
    lines = [f"memory: {profile.memory_kind}"]
    if profile.loader is not None:
        rate = profile.loader.images_per_s.median
        lines.append(
            f"loader alone: {rate:,.0f} images/s of {profile.loader.side} x "
            f"{profile.loader.side} px from {profile.data}"
        )
    fixed = profile.fixed
    lines.append(
        f"besides: start-up {fixed.start_s:.1f} s, a checkpoint {fixed.save_s:.2g} s, the first "
        f"batch of an epoch {1000 * fixed.stream_s:.0f} ms"
    )
    for line in lines:
        console.print(Text(f"  {line}", "dim"), soft_wrap=True)
    if map_ is not None:
        console.print()
        console.print(heat_table(map_))


def _row(profile: Profile, one: Measured) -> list[str | Text]:
    step, setting = one.step_ms, one.setting
    analytic = one.flops / setting.batch
    full = profile.full(setting.batch / profile.processes)
    analytic /= full.flops / full.setting.batch
    return [
        encoder_words(setting.online, setting.views[0].online),
        f"{setting.batch:,}",
        f"{step.median:,.4g}",
        f"{step.low:,.4g}-{step.high:,.4g}",
        f"{one.images_per_s:,.0f}",
        f"{one.wait_ms / step.median:.1%}",
        "–" if one.memory is None else f"{one.memory / 1e6:,.0f}",
        Text(f"{profile.sample_cost(one):.3f}", "bold"),
        f"{analytic:.3f}",
    ]
