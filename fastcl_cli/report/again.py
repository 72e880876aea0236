"""What it takes to do a run again: machines and versions, the command, schedule and settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from fastcl_cli.errors import RunFolderError
from fastcl_cli.report.html import Html, details, element, join, number, table
from fastcl_cli.report.lines import open_file
from fastcl_cli.report.runs import Run
from fastcl_cli.report.tables import duration
from fastcl_cli.schedule.source import clip

MAX_SETTINGS = 300
MAX_SCHEDULE = 1_000_000
"""Bytes, as the language has it."""


def environment(run: Run, key: str) -> Html:
    """Which machine and which versions each part of the run had."""
    rows = []
    for started, ended in run.sessions:
        versions = ", ".join(f"{name} {version}" for name, version in started.versions.items())
        how = "no word of its end" if ended is None else ended.outcome
        why = "" if ended is None or not ended.why else f": {ended.why}"
        rows.append([
            started.time,
            f"{started.device}, {started.precision}, {started.processes} process"
            + "es" * (started.processes > 1),
            versions,
            f"{how}{why}",
            number(started.step, f"{started.step:,}"),
            "–" if ended is None else number(ended.seconds, duration(ended.seconds)),
        ])  # fmt: skip
    head = ["began", "device", "versions", "ended", "from step", "for"]
    return table("Processes that worked on it", head, rows, name=f"{key}-sessions", words=4)


def command(run: Run) -> list[str]:
    """The arguments of the command that does the run again."""
    one, first = run.described, run.sessions[0][0]
    if first.arguments[:1] == ("search",):
        return ["fastcl", *first.arguments]
    words = ["fastcl", "run", str(one.files.schedule)]
    for override in one.overrides:
        words += ["--set", override]
    words += ["--data", one.data, "--seed", str(one.seed)]
    if first.init_from:
        words += ["--init-from", first.init_from]
    if run.stop_step < one.plan.steps:
        words += ["--max-steps", str(run.stop_step)]
    if first.log_every is not None:
        words += ["--log-every", str(first.log_every)]
    if first.processes > 1:
        words += ["--gpus", str(first.processes)]
    if "--shard" in first.arguments:
        words.append("--shard")
    return [*words, "--out", "again"]


def reproduce(run: Run) -> Html:
    """The command, and what it needs."""
    one = run.described
    notes = [
        f"Needs the same images (digest {one.digest}) and precision ({one.precision}). On the CPU "
        "the same versions give the same bytes, stopped and resumed or not; on other devices the "
        "same up to rounding.",
    ]
    if one.plan.is_auto and one.files.taken.exists():
        notes.append(f"{one.files.taken} is the plain schedule that the auto phases took.")
    return join(
        element("pre", element("code", shlex.join(command(run))), class_="command"),
        *(element("p", note, class_="note") for note in notes),
        element("p", "The backbone, in timm:", class_="note"),
        element("pre", element("code", one.load_line)),
        details("schedule.fcs", element("pre", element("code", _schedule(run)))),
    )


def _schedule(run: Run) -> str:
    path = run.described.files.schedule
    try:
        with open_file(path) as file:
            content = file.read(MAX_SCHEDULE + 1)
    except FileNotFoundError:
        raise RunFolderError(f"{path}: no such file") from None
    if len(content) > MAX_SCHEDULE:
        raise RunFolderError(f"{path}: larger than the {MAX_SCHEDULE:,} bytes of any schedule")
    shown = content.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return "\n".join(clip(line.replace("\t", "    "), 4000) for line in shown)


def settings(run: Run, key: str) -> Html:
    """The whole configuration."""
    rows = list(_flat(run.described.settings, ""))[:MAX_SETTINGS]
    listed = [[clip(name, 80), clip(value, 300)] for name, value in rows]
    return details(
        "every setting",
        table("Configuration, all defaults resolved", ["setting", "value"], listed,
              name=f"{key}-settings", words=2),
    )  # fmt: skip


def _flat(value: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and place.count(".") < 4:
            yield from _flat(inner, f"{place}{name}.")
        else:
            yield f"{place}{name}", json.dumps(inner, ensure_ascii=False)
