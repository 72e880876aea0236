"""The figures of a report: each from a run's log lines as they are, or from several runs'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fastcl_cli.plan import Plan, Segment
from fastcl_cli.report.chart import Chart, Curve, draw, svg, ticks
from fastcl_cli.report.runs import Run
from fastcl_cli.units import plain_number

COLUMNS = 480
"""Of the plan's strip: segments narrower than one are not drawn one by one."""
MAX_BOUNDS = 40
_ERRORS = {"bias2": "bias²", "ca_mse": "CA-MSE", "variance": "variance"}


@dataclass(frozen=True)
class Figure:
    """A drawing with its title, a name for its file, and a note on how to read it."""

    name: str
    title: str
    note: str
    svg: str


def encoder_words(drop: float, patch: int, kept: int, grid: int) -> str:
    """What one encoder sees of a view: ``drop 0.5 patch 32: 25 of 49 tokens``."""
    whole = grid * grid
    dropped = f"drop {drop:.3g} " if drop else ""
    tokens = f"{kept}" if kept == whole else f"{kept} of {whole}"
    return f"{dropped}patch {patch}: {tokens} tokens"


def online_words(segment: Segment) -> str:
    """The same for a segment's online encoder and global views."""
    seen = segment.views[0].online
    drop = float(plain_number(segment.online.drop))
    auto = "auto: " if segment.auto else ""
    return auto + encoder_words(drop, seen.patch, seen.kept, seen.grid)


def plan_strip(plan: Plan, width: int, key: str) -> str:
    """The plan from left to right: as wide as its epochs, as high as an image costs, with what the
    online encoder sees of it where there is room."""
    top, height, left = 22, 62, 1
    room, total = width - 2 * left, plan.epochs
    cells = min(COLUMNS, room)
    parts = []
    columns = ((c, plan.index(c * plan.steps // cells)) for c in range(cells))
    for index, group in groupby(columns, key=lambda item: item[1]):
        segment = plan.segments[index]
        first, last = (plan.epochs_at(s) / total for s in (segment.first_step, segment.end_step))
        if segment.end_step - segment.first_step < plan.steps / cells:
            shown = [column for column, _ in group]
            first, last = shown[0] / cells, (shown[-1] + 1) / cells
        x, wide = left + first * room, (last - first) * room
        high = max(height * min(segment.sample_cost, 1.0), 2)
        name = f"{online_words(segment)}, sample cost {segment.sample_cost:.3f}"
        colour = "c3" if segment.auto else "c0"
        parts.append(
            f'<rect class="cell mark {colour}" x="{x:.1f}" y="{top + height - high:.1f}" '
            f'width="{wide:.1f}" height="{high:.1f}"><title>{name}</title></rect>'
        )
        seen = segment.views[0].online
        for label in (
            f"{seen.kept} tokens of {seen.patch} px",
            f"{seen.kept} × {seen.patch} px",
            f"{seen.kept}",
        ):
            if 6.8 * len(label) + 4 < wide:
                parts.append(f'<text class="name" x="{x + 1:.1f}" y="{top - 8}">{label}</text>')
                break
    base = top + height
    parts.append(f'<path class="axis" d="M{left} {base}H{width - left}"/>')
    for tick in ticks(0.0, total, max(4, width // 110)):
        if tick <= total:
            x = left + tick / total * room
            anchor = "start" if tick == 0 else "end" if tick > 0.97 * total else "middle"
            label = f"{tick:g}" if tick else "epoch 0"
            parts.append(f'<path class="tick" d="M{x:.1f} {base}v5"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 19}" text-anchor="{anchor}">{label}</text>')
    said = "; ".join(online_words(s) for s in plan.segments[:20])
    return svg(width, base + 26, "Plan", f"{len(plan.segments)} segments: {said}", key, parts)


def run_figures(run: Run, key: str) -> dict[str, Figure]:
    """Every figure that a run has something for, by name."""
    lines = run.lines.items
    plan = run.described.plan
    bounds = [plan.epochs_at(segment.first_step) for segment in plan.segments[1:]]
    epochs = [line["epoch"] for line in lines]

    def over(
        name: str, title: str, y_label: str, note: str, curves: Sequence[Curve], **how: Any
    ) -> Figure:
        shown = bounds if len(bounds) <= MAX_BOUNDS else []
        end = epochs[-1] if epochs else 0.0
        chart = Chart(title, note, "epoch", y_label, curves, x_end=end, bounds=shown, **how)
        return Figure(name, title, note, draw(chart, f"{key}-{name}"))

    def curve(read: Callable[[Mapping[str, Any]], float]) -> Curve:
        return Curve("", epochs, [read(line) for line in lines])

    found = []
    if lines:
        first, last = lines[0]["loss"], lines[-1]["loss"]
        note = f"Mean over the steps of each log line: {first:.4f} at first, {last:.4f} at last."
        found.append(over("loss", "Loss", "loss", note, [curve(lambda m: m["loss"])]))
    judged = run.judged.items
    if judged:
        best = max(judged, key=lambda m: m["knn"]["top1"])
        note = (
            f"Top-1 of held-out images: {judged[-1]['knn']['top1']:.1%} at last, "
            f"{best['knn']['top1']:.1%} at best (epoch {best['epoch']:.4g})."
        )
        found.append(over("knn", "k-NN accuracy", "top-1", note, [knn_curve(run, "", 0, _epoch)],
                          y_format=_percent))  # fmt: skip
    if lines:
        top = max(lines, key=lambda m: m["lr"])
        note = f"Greatest {top['lr']:.3g}, at epoch {top['epoch']:.3g}."
        found.append(over("lr", "Learning rate", "learning rate", note,
                          [curve(lambda m: m["lr"])], zero=True))  # fmt: skip
        note = "Of whole steps, loading and logging included; k-NN and gradient error left out."
        found.append(over("speed", "Images per second", "images/s", note,
                          [curve(lambda m: m["images_per_s"])], zero=True))  # fmt: skip
        share = run.times.waiting / run.times.training
        note = f"Share of a step's time that the trainer waited for data: {share:.1%} of the run."
        found.append(over("wait", "Data wait", "share of time", note,
                          [curve(lambda m: m["data_wait_s"] / m["step_s"])], y_format=_percent,
                          zero=True))  # fmt: skip
        found += _errors(lines, over)
    if (against := ideal(run)) is not None:
        found.append(_against_ideal(run, against, key))
    return {figure.name: figure for figure in found}


def _errors(lines: Sequence[Mapping[str, Any]], over: Callable[..., Figure]) -> list[Figure]:
    """Bias², CA-MSE and variance; over the signal, unless that is unknown for most lines."""
    measured = [line for line in lines if "grad_error" in line]
    if not measured:
        return []
    relative = is_relative(lines)
    unit = " / ‖g‖²" if relative else ""

    def of(name: str) -> Curve:
        x, y, bands = [], [], []
        for line in measured:
            error = line["grad_error"]
            value = error["relative"][name] if relative else error[name]
            if value is None:
                continue
            band = error["interval"][name]
            if relative and error["signal"] <= 0:
                band = None
            elif band is not None and relative:
                band = band[0] / error["signal"], band[1] / error["signal"]
            x.append(line["epoch"])
            y.append(value)
            bands.append(band)
        styles = list(_ERRORS)
        title = "" if name == "variance" else _ERRORS[name]
        return Curve(title, x, y, bands, style=styles.index(name))

    note = "Running estimate for the setting at hand; the band is its 95 % interval."
    known = "Over the squared length of the mean gradient. " if relative else ""
    cut = " Outliers beyond the axis are not shown." if len(measured) >= 20 else ""
    return [
        over("error", f"Gradient error: bias² and CA-MSE{unit}", f"error{unit}",
             f"{known}{note}{cut}", [of("bias2"), of("ca_mse")], robust=True),
        over("variance", f"Gradient error: variance{unit}", f"variance{unit}",
             f"{known}Of a probe batch. {note}{cut}", [of("variance")], robust=True, zero=True),
    ]  # fmt: skip


def is_relative(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether most lines with a gradient error know its signal."""
    known = [line["grad_error"]["relative"]["bias2"] for line in lines if "grad_error" in line]
    return sum(value is not None for value in known) > len(known) / 2


@dataclass(frozen=True, slots=True)
class Ideal:
    """A setting's time over that without compression, as counted (the sample cost) and as the run
    itself measured it; ``seconds`` an image takes, over so many log ``lines``."""

    segment: Segment
    cost: float
    measured: float
    seconds: float
    lines: int


def ideal(run: Run) -> list[Ideal] | None:
    """Measured against counted cost; None where the run never trained without compression, and so
    cannot tell."""
    full = [speed for speed in run.speeds if abs(speed.segment.sample_cost - 1) < 1e-9]
    if not full or len(run.speeds) < 2:
        return None
    whole = max(full, key=lambda speed: speed.lines).seconds
    return [
        Ideal(s.segment, s.segment.sample_cost, s.seconds / whole, s.seconds, s.lines)
        for s in run.speeds
    ]


def _against_ideal(run: Run, rows: Sequence[Ideal], key: str) -> Figure:
    title = "Measured against counted cost"
    note = (
        "Time an image takes over that without compression, waiting for data left out. On the "
        "dashed line a setting saves all the operations that it leaves out."
    )
    tips = [f"{online_words(r.segment)}: {r.measured:.3f}" for r in rows]
    points = Curve("", [r.cost for r in rows], [r.measured for r in rows], marks=True, line=False,
                   tips=tips)  # fmt: skip
    chart = Chart(title, note, "sample cost (counted)", "measured", [points], diagonal=True,
                  zero=True)  # fmt: skip
    return Figure("ideal", title, note, draw(chart, f"{key}-ideal"))


def knn_curve(
    run: Run, name: str, style: int, at: Callable[[Run, Mapping[str, Any]], float]
) -> Curve:
    """Accuracy at each measurement, against ``at`` of its line."""
    judged = run.judged.items
    tips = [f"epoch {m['epoch']:.4g}: {m['knn']['top1']:.1%}" for m in judged]
    x = [at(run, m) for m in judged]
    y = [m["knn"]["top1"] for m in judged]
    return Curve(name, x, y, marks=len(x) <= 60, tips=tips, style=style)


def comparison(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """Accuracy and loss of several runs against what they cost."""
    models = {(run.described.model, run.described.image) for run in runs}
    if len(models) == 1:
        unit, at = "units (forward passes of the uncompressed model)", _units
    else:
        unit, at = "share of the cost of the whole run without compression", _share
    figures = []
    known = list(zip(runs, names, range(len(runs)), strict=True))
    curves = [knn_curve(run, name, style, at) for run, name, style in known if run.judged.count]
    if curves:
        title = "Accuracy against cost"
        note = "Each mark is a k-NN measurement. Further left is cheaper, further up is better."
        chart = Chart(title, note, unit, "k-NN top-1", curves, y_format=_percent, x_format=_compact)
        figures.append(Figure("accuracy-cost", title, note, draw(chart, "all-knn")))
    for method in dict.fromkeys(run.described.plan.method for run in runs):
        curves = [
            Curve(name, [at(run, m) for m in run.lines.items],
                  [m["loss"] for m in run.lines.items], style=style)
            for run, name, style in known
            if run.described.plan.method == method and run.lines.count
        ]  # fmt: skip
        if curves:
            title = f"Loss against cost: {method}"
            note = "Losses of runs with other temperatures or batches have other scales."
            chart = Chart(title, note, unit, "loss", curves, x_format=_compact)
            figures.append(Figure(f"loss-cost-{method}", title, note, draw(chart, f"all-{method}")))
    return figures


def _epoch(run: Run, line: Mapping[str, Any]) -> float:
    return float(line["epoch"])


def _units(run: Run, line: Mapping[str, Any]) -> float:
    return run.units(line["step"])


def _share(run: Run, line: Mapping[str, Any]) -> float:
    return run.share(line["step"])


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _compact(value: float) -> str:
    """``250k``, ``1.5M``."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"
