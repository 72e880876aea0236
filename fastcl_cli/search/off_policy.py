"""The gradient error of given checkpoints, whatever they were trained with.

This is off policy: a network that never saw a compression answers it badly, so its gradients say
little about training with that compression (and a search therefore trains as it goes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.checkpoint import load_run, read_run_header
from fastcl_cli.events import Emit
from fastcl_cli.gradient_error.paired import adam_scale
from fastcl_cli.schedule import Loaded, compile_text
from fastcl_cli.schedule.resolve import full_views, ladder
from fastcl_cli.search.on_policy import DEFAULT_BATCH
from fastcl_cli.search.texts import length_of, trial
from fastcl_cli.train.auto import Metric, measure_rungs
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session


def schedule_of(checkpoint: Path) -> Loaded:
    """The schedule that a checkpoint's run was started with, without what ``--set`` said.

    Raises:
        CheckpointError: it is not a checkpoint of a run.
    """
    return compile_text(read_run_header(checkpoint).schedule, str(checkpoint))


def measure_checkpoints(
    base: Loaded,
    checkpoints: Sequence[Path],
    grid: str | None,
    *,
    groups: int,
    pairs: int,
    batch: int | None,
    metric: Metric,
    seed: int,
    emit: Emit,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure the grid with the weights of each checkpoint.

    Returns:
        the record that ``OUT.json`` holds: one entry of ``stages`` for each checkpoint.

    Raises:
        CheckpointError: a file is not a checkpoint of a run with these settings.
        FastclError: as `Session` has it.
    """
    loaded = trial(base, grid, length_of(base))
    # Nothing is written: the session gives data, network and device.
    session = Session(RunRequest(loaded, Path(), seed), emit)
    config, plan = session.config, session.plan
    size = min(batch or DEFAULT_BATCH, config.batch, plan.images)
    gradients = session.estimates.gradients("checkpoints", size)
    rungs = {i: (r, r.sample_cost) for i, r in enumerate(ladder(config, config.batch))}
    stages = []
    for number, path in enumerate(checkpoints):
        header = read_run_header(path)
        load_run(path, session.method, session.optimizer)
        if metric == "adam":
            gradients.precondition = adam_scale(session.method, session.optimizer)
        epochs = plan.epochs_at(min(header.step, plan.steps))

        def report(done: int, total: int, name: str = path.name) -> None:
            if progress is not None:
                progress(f"gradients of {name}", done, total)

        table, _ = measure_rungs(
            gradients, full_views(config), rungs, config.batch, epochs,
            groups=groups, pairs=pairs, first=number * groups * pairs, progress=report,
        )  # fmt: skip
        stages.append({"checkpoint": str(path), "step": header.step, "settings": table})
    return {
        "schema_version": 1,
        "fastcl": __version__,
        "kind": "off-policy",
        "base": base.name,
        "method": config.method,
        "data": config.data,
        "images": plan.images,
        "seed": seed,
        "device": session.device.name,
        "precision": session.device.precision,
        "metric": metric,
        "groups": groups,
        "pairs": pairs,
        "probe_batch": size,
        "stages": stages,
    }
