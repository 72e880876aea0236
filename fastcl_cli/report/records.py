"""The lines of a run's files as checked records: known fields of the right type and range, text
without control characters. What a newer fastcl adds is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcl_cli.json_fields import Fields
from fastcl_cli.report.plan_file import encoder
from fastcl_cli.schedule.source import clip

LARGE = 1e100
"""Figures above are none: sums and products of what is below stay finite."""
FIGURES = ("bias2", "variance", "ca_mse")
_NEEDED = {"lr": 0.0, "images_per_s": 0.0, "data_wait_s": 0.0, "sample_cost": 0.0, "speedup": 0.0}
_OPTIONAL = (
    "gradient_norm", "feature_std", "effective_rank", "teacher_entropy", "prototypes_used",
    "weight_decay", "momentum", "knn_s", "grad_error_s", "tflops", "mfu", "memory",
)  # fmt: skip


def text(fields: Fields, name: str, width: int = 300) -> str:
    """A string made fit to be shown, on one line; empty where it is missing."""
    value = fields.get(name)
    if not isinstance(value, str):
        if value is None:
            return ""
        fields.refuse(name, value, "text")
    return clip(re.sub(r"[\t\n\r]", " ", value[: width + 1]), width)


def metrics(fields: Fields) -> dict[str, Any]:
    """A line of ``metrics.jsonl``, with the keys that it has there."""
    line: dict[str, Any] = {
        "step": fields.whole("step"),
        "epoch": fields.number("epoch", 0, LARGE),
        "batch": fields.whole("batch"),
        "loss": fields.number("loss", -LARGE, LARGE),
        "step_s": fields.number("step_s", 1e-12, 1e9),
        **{name: fields.number(name, low, LARGE) for name, low in _NEEDED.items()},
        "online": _encoder(fields.inner("online")),
        "target": _encoder(fields.inner("target")) if fields.has("target") else None,
    }
    for name in _OPTIONAL:
        if fields.has(name):
            line[name] = fields.number(name, -LARGE, LARGE)
    if fields.has("knn"):
        line["knn"] = _knn(fields.inner("knn"))
    if fields.has("grad_error"):
        line["grad_error"] = gradient_error(fields.inner("grad_error"))
    return line


def _encoder(fields: Fields) -> dict[str, Any]:
    compression, tokens = encoder(fields)
    return {
        "drop": float(compression.drop),
        "patch": tokens.patch,
        "grid": tokens.grid,
        "tokens": tokens.kept,
    }


def _knn(fields: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {name: fields.number(name, 0, 1) for name in ("top1", "mean_class")}
    found |= {name: fields.whole(name) for name in ("k", "bank", "queries")}
    if fields.has("temperature"):
        found["temperature"] = fields.number("temperature", 0, LARGE)
    return found


def gradient_error(fields: Fields) -> dict[str, Any]:
    """What `GradientError.record` wrote."""
    found: dict[str, Any] = {
        name: fields.number(name, -LARGE, LARGE) for name in (*FIGURES, "signal")
    }
    intervals, relative = fields.inner("interval"), fields.inner("relative")
    found["interval"] = {
        name: _interval(intervals, name) if intervals.has(name) else None for name in FIGURES
    }
    found["relative"] = {
        name: relative.number(name, -LARGE, LARGE) if relative.has(name) else None
        for name in FIGURES
    }
    found |= {name: fields.whole(name) for name in ("pairs", "groups", "probe_batch", "batch")}
    return found | {"cost": fields.number("cost", 0, LARGE)}


def _interval(fields: Fields, name: str) -> tuple[float, float]:
    both = fields.several(name, 2, 2)
    low = both.number("0", -LARGE, LARGE)
    return low, both.number("1", low, LARGE)


@dataclass(frozen=True, slots=True)
class Decision:
    """A line of ``decisions.jsonl``. ``settings`` are its rows, ``metric`` in which lengths are
    taken."""

    step: int
    epoch: float
    before: str
    after: str
    why: str
    metric: str
    seconds: float
    settings: tuple[Mapping[str, Any], ...]


def decision(fields: Fields) -> Decision:
    """A line of ``decisions.jsonl``."""
    rows = []
    for item in fields.objects("settings", 1, 10_000):
        drop = item.text("drop")
        if not re.fullmatch(r"[01](\.[0-9]{1,20})?|[1-9](\.[0-9]{1,20})?e-[0-9]", drop):
            item.refuse("drop", drop, "a share from 0 to 1")
        rows.append({"drop": drop, "patch": item.whole("patch"), **gradient_error(item)})
    return Decision(
        fields.whole("step", 0),
        fields.number("epoch", 0, LARGE),
        text(fields, "from"),
        text(fields, "to"),
        text(fields, "why", 1000),
        text(fields, "metric"),
        fields.number("seconds", 0, LARGE),
        tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class Started:
    """A process has begun, or gone on, with a run after ``step`` updates, to stop at
    ``stop_step``. ``arguments`` are those of its command line."""

    time: str
    arguments: tuple[str, ...]
    title: str
    step: int
    stop_step: int
    init_from: str
    log_every: int | None
    device: str
    precision: str
    processes: int
    parameters: int
    images: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Warned:
    """A sign of collapse or instability, in words."""

    time: str
    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The process has ended after ``step`` updates (None before its first checkpoint).
    ``outcome`` is ``done``, ``stopped`` (by a signal) or ``failed``."""

    time: str
    step: int | None
    outcome: str
    why: str
    seconds: float


def happened(fields: Fields) -> Started | Warned | Ended | None:
    """A line of ``events.jsonl``; None where it tells what this fastcl does not know."""
    kind, time = text(fields, "event"), text(fields, "time", 40)
    if kind == "started":
        given = fields.several("arguments", 0, 1000)
        versions = fields.inner("versions")
        return Started(
            time,
            tuple(text(given, name, 1000) for name in given.names()),
            text(fields, "title"),
            fields.whole("step", 0),
            fields.whole("stop_step", 0),
            text(fields, "init_from", 1000),
            fields.whole("log_every") if fields.has("log_every") else None,
            text(fields, "device"),
            text(fields, "precision"),
            fields.whole("processes"),
            fields.whole("parameters", 0, 10**12),
            fields.whole("images"),
            {clip(name): text(versions, name, 80) for name in versions.names()[:20]},
        )
    if kind == "warning":
        return Warned(time, fields.whole("step", 0), text(fields, "text", 1000))
    if kind == "ended":
        step = fields.whole("step", 0) if fields.has("step") else None
        outcome = fields.text("outcome", ("done", "stopped", "failed"))
        return Ended(
            time, step, outcome, text(fields, "why", 1000), fields.number("seconds", 0, LARGE)
        )
    return None
