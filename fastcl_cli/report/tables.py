"""The words and tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastcl_cli.plan import Plan, Segment
from fastcl_cli.report.figures import encoder_words, ideal, is_relative, online_words
from fastcl_cli.report.html import Html, details, element, join, number, table
from fastcl_cli.report.records import Decision
from fastcl_cli.report.runs import Run
from fastcl_cli.units import plain_number, short_number

MAX_SEGMENTS, MAX_ROWS = 60, 400
_UNIT = {"epochs": "epochs", "steps": "steps", "percent": "%"}


def duration(seconds: float) -> str:
    """``42 s``, ``3:07 min``, ``2:05 h``, ``3.2 d``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{whole / 86400:.1f} d"


def state(run: Run) -> tuple[str, str]:
    """Where the run stands: in words, and in one of four."""
    ended = run.sessions[-1][1]
    if ended is None:
        return f"at step {run.step:,} of {run.stop_step:,}", "running"
    if ended.outcome == "done":
        whole = run.stop_step == run.described.plan.steps
        return ("complete", "done") if whole else (f"done: {run.stop_step:,} steps", "done")
    return f"{ended.outcome} at step {ended.step or run.step:,}", ended.outcome


def subtitle(run: Run) -> str:
    """What was trained on what."""
    one = run.described
    options = ", ".join(f"{name}={value:g}" for name, value in one.model.options)
    return (
        f"{one.plan.method} · {one.model.name}{f' ({options})' if options else ''} · "
        f"{one.image} px · {one.data} ({one.plan.images:,} images) · {one.plan.epochs:,.4g} epochs"
    )


def facts(run: Run) -> Html:
    """The figures that matter most."""
    shown: list[tuple[str, Html, str]] = []
    judged = run.judged.items
    if judged:
        last, best = judged[-1]["knn"]["top1"], max(m["knn"]["top1"] for m in judged)
        shown.append(("k-NN", number(last, f"{last:.1%}"), f"best {best:.1%}"))
    if run.lines.last:
        loss = run.lines.last["loss"]
        shown.append(("loss", number(loss, f"{loss:.4f}"), f"after {run.step:,} steps"))
    share, units = run.share(run.step), run.units(run.step)
    planned = run.described.plan.mean_cost
    shown.append(
        (
            "cost",
            number(share, f"{share:.3f}"),
            f"of the whole run uncompressed; {planned:.3f} planned",
        )
    )
    shown.append(("units", number(units, _units(units)), "uncompressed forward passes"))
    times = run.times
    if times.training:
        rate = run.described.plan.images_at(run.step) / times.training
        shown.append(("speed", number(rate, f"{rate:,.0f}"), "images/s over the whole run"))
        wait = times.waiting / times.training
        shown.append(("data wait", number(wait, f"{wait:.1%}"), "of the training time"))
    items = (
        element(
            "div", element("dt", name), element("dd", value), element("dd", note, class_="note")
        )
        for name, value, note in shown
    )
    return element("dl", *items, class_="facts")


def warnings(run: Run) -> Html:
    """What the run warned of."""
    if not run.warnings:
        return Html("")
    items = (element("li", one.text) for one in run.warnings)
    return element("aside", element("strong", "The run warned:"), element("ul", *items))


def _units(value: float) -> str:
    for scale, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def plan_table(run: Run, key: str) -> Html:
    """The segments, and what share of steps and cost each has."""
    plan = run.described.plan
    target = any(segment.target is not None for segment in plan.segments)
    local = any(len(segment.views) > 1 for segment in plan.segments)
    head = [_UNIT[plan.unit], "online" if target else "encoder", *["target"] * target]
    words = len(head)
    head += [*["local views"] * local, "batch", "steps", "sample cost", "% of steps", "% of cost"]
    rows = [_segment(s, plan, target, local) for s in plan.segments[:MAX_SEGMENTS]]
    more = len(plan.segments) - MAX_SEGMENTS
    note = f"; the first {MAX_SEGMENTS} of {len(plan.segments):,}" if more > 0 else ""
    caption = f"Segments of the plan{note}. Mean sample cost {plan.mean_cost:.3f}: "
    caption += f"{plan.speedup:.2f} times fewer operations than without compression."
    return table(caption, head, rows, name=f"{key}-plan", words=words)


def _segment(segment: Segment, plan: Plan, target: bool, local: bool) -> list[str]:
    steps = segment.end_step - segment.first_step
    row = [f"{short_number(segment.start)}–{short_number(segment.end)}", online_words(segment)]
    if target:
        seen = segment.views[0].target
        drop = float(plain_number(segment.target.drop)) if segment.target else 0.0
        row.append(encoder_words(drop, seen.patch, seen.kept, seen.grid) if seen else "–")
    if local:
        view = segment.views[-1]
        row.append(f"{view.count} × {view.online.kept} tokens of {view.side} px")
    total = plan.mean_cost * plan.images_at(plan.steps)
    cost = segment.sample_cost * steps * segment.batch / total
    return [
        *row,
        number(segment.batch, f"{segment.batch:,}"),
        number(steps, f"{steps:,}"),
        number(segment.sample_cost, f"{segment.sample_cost:.3f}"),
        number(steps / plan.steps, f"{100 * steps / plan.steps:.1f}"),
        number(cost, f"{100 * cost:.1f}"),
    ]


def measured_cost(run: Run, key: str) -> Html:
    """Speed of each setting, and against what its operations promise."""
    if not run.speeds:
        return Html("")
    against = ideal(run)
    rows = [
        [
            online_words(speed.segment),
            number(speed.segment.sample_cost, f"{speed.segment.sample_cost:.3f}"),
            number(1000 * speed.seconds, f"{1000 * speed.seconds:.3g}"),
            number(1 / speed.seconds, f"{1 / speed.seconds:,.0f}"),
            number(speed.lines, f"{speed.lines:,}"),
        ]
        for speed in run.speeds
    ]
    head = ["setting", "counted cost", "ms an image", "images/s", "log lines"]
    caption = "Medians over log lines within one segment, its first one and data wait left out."
    if against is None:
        caption += " What they come to against no compression this run cannot tell: it needs log "
        caption += "lines of a full phase and of another."
    else:
        head.insert(2, "measured")
        for row, found in zip(rows, against, strict=True):
            row.insert(2, number(found.measured, f"{found.measured:.3f}"))
    return table(caption, head, rows, name=f"{key}-speeds")


def decisions(run: Run, key: str) -> Html:
    """What `auto` phases, or the stages of a search, decided, and why."""
    if not run.decisions:
        return Html("")
    rows = [
        [
            number(one.step, f"{one.step:,}"),
            one.after if one.after != one.before else f"stays: {one.after}",
            one.why or "no neighbour is better by more than the noise",
            number(one.epoch, f"{one.epoch:.4g}"),
            number(one.seconds, duration(one.seconds)),
        ]
        for one in run.decisions
    ]
    head = ["step", "goes on with", "why", "epoch", "took"]
    caption = f"Decisions, in the {run.decisions[-1].metric or 'euclidean'} metric"
    content = [table(caption, head, rows, name=f"{key}-decisions", words=3)]
    content += [
        details(f"what was measured at step {one.step:,}", _measured(one, f"{key}-d{one.step}"))
        for one in run.decisions
    ]
    return join(*content)


def _measured(one: Decision, name: str) -> Html:
    known = all(row["relative"]["ca_mse"] is not None for row in one.settings)
    rows = []
    for row in one.settings:
        figures = row["relative"] if known else row
        setting = f"drop {row['drop']} patch {row['patch']}"
        rows.append([
            f"{setting} (chosen)" if setting == one.after else setting,
            number(row["cost"], f"{row['cost']:.3f}"),
            *(number(figures[f], f"{figures[f]:.3g}") for f in ("bias2", "variance", "ca_mse")),
        ])  # fmt: skip
    unit = " / ‖g‖²" if known else ""
    head = ["setting", "cost", f"bias²{unit}", f"variance{unit}", f"CA-MSE{unit}"]
    first = one.settings[0]
    caption = f"{first['pairs']} pairs in {first['groups']} groups, batches of "
    caption += f"{first['probe_batch']} images"
    return table(caption, head, rows, name=name)


def cost(run: Run, key: str) -> Html:
    """What the run cost, in every currency."""
    plan, times, step = run.described.plan, run.times, run.step
    images = plan.images_at(step)
    wall = sum(ended.seconds for _, ended in run.sessions if ended is not None)
    units = run.units(step)
    full = images * run.described.units_per_image
    rows = [
        ["steps", number(step, f"{step:,}"), f"of {plan.steps:,}"],
        ["epochs", number(plan.epochs_at(step), f"{plan.epochs_at(step):.4g}"),
         f"of {plan.epochs:.4g}"],
        ["images", number(images, f"{images:,}"), "seen by the trainer, each with all its views"],
        ["units", number(units, f"{units:,.0f}"),
         "forward passes of the uncompressed model; "
         f"{run.described.units_per_image:.3g} an image without compression"],
        ["the same without compression", number(full, f"{full:,.0f}"), "units"],
        ["training", number(times.training, duration(times.training)),
         "whole steps, with loading and logging"],
        ["waiting for data", number(times.waiting, duration(times.waiting)), "part of training"],
    ]  # fmt: skip
    aside = (
        ("k-NN", times.judging, "beside training"),
        ("gradient error", times.measuring, "running estimate, beside training"),
        ("decisions", times.deciding, "gradients measured for them"),
        ("whole processes", wall, "from start to end, of those that left word"),
    )
    rows += [[n, number(s, duration(s)), note] for n, s, note in aside if s]
    return table("What was spent", ["", "amount", ""], rows, name=f"{key}-cost", notes=True)


def evaluation(run: Run, key: str) -> Html:
    """How good the features were, and how that was judged."""
    judged = run.judged.items
    if not judged:
        why = "its data held no images out, or none with labels, or `knn none`"
        return element("p", f"The run judged no features: {why}.")
    last = judged[-1]["knn"]
    weight = f", votes weighted at temperature {last['temperature']:g}" * ("temperature" in last)
    encoder = "online" if run.described.plan.method == "simclr" else "target"
    protocol = (
        f"Weighted k-NN on cosine similarity, k = {last['k']}{weight}: {last['queries']:,} "
        f"held-out images against a bank of {last['bank']:,} training images. Features are those "
        f"of the {encoder} encoder on centre crops of {run.described.image} px, all tokens kept. "
        "A figure to follow a run by; fastcl probe judges with all images."
    )
    rows = [
        [
            number(m["step"], f"{m['step']:,}"),
            number(m["epoch"], f"{m['epoch']:.4g}"),
            number(run.units(m["step"]), _units(run.units(m["step"]))),
            number(m["knn"]["top1"], f"{m['knn']['top1']:.2%}"),
            number(m["knn"]["mean_class"], f"{m['knn']['mean_class']:.2%}"),
        ]
        for m in _at_most(judged, MAX_ROWS)
    ]
    head = ["step", "epoch", "units", "top-1", "mean over classes"]
    caption = _shown("k-NN accuracy", len(rows), run.judged.count)
    return join(element("p", protocol), table(caption, head, rows, name=f"{key}-knn"))


_COLUMNS = {
    "loss": "{:.4f}", "lr": "{:.3e}", "images_per_s": "{:,.0f}", "step_s": "{:.4f}",
    "data_wait_s": "{:.4f}", "sample_cost": "{:.3f}", "speedup": "{:.2f}",
    "tflops": "{:.3g}", "gradient_norm": "{:.3g}", "feature_std": "{:.3f}",
    "effective_rank": "{:.2f}",
}  # fmt: skip
_ERRORS = {"bias2": "bias²", "variance": "variance", "ca_mse": "CA-MSE"}


def log(run: Run, key: str) -> Html:
    """The log lines."""
    if not run.lines.count:
        return element("p", "The run has not logged a line yet.")
    lines = _at_most(run.lines.items, MAX_ROWS)
    relative = is_relative(lines)
    unit = " / ‖g‖²" if relative else ""
    head = ["step", "epoch", *_COLUMNS, *(f"{name}{unit}" for name in _ERRORS.values())]
    rows = [_line(line, relative) for line in lines]
    caption = _shown("Log lines", len(rows), run.lines.count)
    return details(caption, table(caption, head, rows, name=f"{key}-log"))


def _line(line: Mapping[str, Any], relative: bool) -> list[str]:
    row: list[str] = [
        number(line["step"], f"{line['step']:,}"),
        number(line["epoch"], f"{line['epoch']:.3f}"),
    ]
    for name, form in _COLUMNS.items():
        row.append(number(line[name], form.format(line[name])) if name in line else "–")
    error = line.get("grad_error")
    figures = {} if error is None else error["relative"] if relative else error
    for name in _ERRORS:
        value = figures.get(name)
        row.append("–" if value is None else number(value, f"{value:.3g}"))
    return row


def _at_most(lines: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Every line, or every k-th and the last."""
    stride = -(-len(lines) // most)
    kept = list(lines[::stride])
    return kept if kept[-1] is lines[-1] else [*kept, lines[-1]]


def _shown(what: str, shown: int, count: int) -> str:
    return f"{what}: all {count:,}" if shown == count else f"{what}: {shown:,} of {count:,}"


def compared(runs: Sequence[Run], names: Sequence[str]) -> Html:
    """The runs' main figures, one in a row."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        judged = run.judged.items
        accuracies = [m["knn"]["top1"] for m in judged]
        share, units = run.share(run.step), run.units(run.step)
        epochs = run.described.plan.epochs_at(run.step)
        loss = run.lines.last["loss"] if run.lines.last else None
        rows.append([
            name,
            run.described.plan.method,
            state(run)[0],
            number(accuracies[-1], f"{accuracies[-1]:.1%}") if judged else "–",
            number(max(accuracies), f"{max(accuracies):.1%}") if judged else "–",
            "–" if loss is None else number(loss, f"{loss:.4f}"),
            number(epochs, f"{epochs:.4g}"),
            number(share, f"{share:.3f}"),
            number(units, _units(units)),
            number(run.times.training, duration(run.times.training)),
        ])  # fmt: skip
    head = ["run", "method", "state", "k-NN", "best", "loss", "epochs", "cost", "units", "training"]
    caption = "The runs; cost is relative to the whole run without compression."
    return table(caption, head, rows, name="runs", words=3)
