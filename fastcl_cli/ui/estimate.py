"""What ``fastcl estimate`` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcl_cli.errors import ConfigError, UsageError
from fastcl_cli.estimate.clocks import AnalyticClock, Clock, choose_clocks
from fastcl_cli.estimate.estimate import (
    Estimate,
    budget_json,
    check_device,
    estimate,
    fit,
    require_fit,
)
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.schedule.load import Loaded, compile_text, load
from fastcl_cli.units import Budget, parse_budget


def run(
    files: Sequence[str],
    budget_text: str | None,
    *,
    gpu: str,
    gpus: int,
    data: str | None,
    settings: Sequence[str],
    images: int | None,
    price: float | None,
    profiles: Sequence[Path],
    write: Path | None,
    as_json: bool,
) -> None:
    """Estimate ``files``, else every built-in schedule, and print the result.

    Raises:
        BudgetError: a named file does not fit, and ``write`` did not make one that does.
        UsageError, ConfigError: an option or a file is wrong.
    """
    budget = None if budget_text is None else parse_budget(budget_text)
    if write is not None:
        _check_write(files, budget, write)
    names = files or builtin_schedules()
    loaded = [load(name, settings, images, data) for name in names]
    clocks, notes = choose_clocks(loaded, profiles, gpu, gpus, named=bool(files))
    if budget is not None:
        check_device(budget, clocks[0][1])
    estimates = [
        estimate(item, budget, clock, named=bool(files), gpus=gpus) for item, clock in clocks
    ]
    assumptions = _assumptions(clocks, gpus) + notes
    if as_json:
        print(json.dumps(_json(clocks, estimates, budget, assumptions, gpus, price)))
    else:
        from fastcl_cli.ui.console import stdout
        from fastcl_cli.ui.estimate_table import print_estimates

        print_estimates(stdout(), estimates, budget, assumptions, gpus, price)
    if budget is None:
        return
    if write is not None:
        _write(write, clocks[0][0], budget, clocks[0][1], gpus)
    else:
        require_fit(estimates, budget)


def _json(
    clocks: Sequence[tuple[Loaded, Clock]],
    estimates: Sequence[Estimate],
    budget: Budget | None,
    assumptions: Sequence[str],
    gpus: int,
    price: float | None,
) -> dict[str, Any]:
    clock = clocks[0][1]
    result: dict[str, Any] = {
        "schema_version": 1,
        "budget": None if budget is None else budget_json(budget),
        "device": clock.device,
        "source": clock.source,
        "assumptions": assumptions,
        "gpus": gpus,
        "schedules": [_row(item, gpus, price) for item in estimates],
    }
    if isinstance(clock, AnalyticClock):
        result["peak_tflops"] = clock.hardware.peak
        result["utilisation"] = clock.hardware.utilisation
    return result


def _row(item: Estimate, gpus: int, price: float | None) -> dict[str, Any]:
    row = {**item.to_json(), "hours": item.gpu_hours / gpus}
    if price is not None:
        row["price"] = item.gpu_hours * price
    return row


def _assumptions(clocks: Sequence[tuple[Loaded, Clock]], gpus: int) -> list[str]:
    """Sentences on what the figures rest on, each once."""
    lines = list(dict.fromkeys(x for item, clock in clocks for x in clock.assumptions(item, gpus)))
    loaded = [item for item, _ in clocks]
    assumed = [item for item in loaded if item.config.images_source == "imagenet-1k"]
    if assumed:
        count = f"{assumed[0].plan.images:,}"
        which = "" if len(assumed) == len(loaded) else f" for {len(assumed)} of them"
        lines.append(f"{count} images (ImageNet-1k) assumed{which}; --images says otherwise")
    if any(item.plan.is_auto for item in loaded):
        lines.append("auto phases counted at their cheapest choice: they decide while they run")
    return lines


def _check_write(files: Sequence[str], budget: Budget | None, write: Path) -> None:
    if budget is None:
        raise UsageError(
            "--write shortens a FILE to fit a --budget", "--budget 100gpuh, 5cpuh or 200Munits"
        )
    if len(files) != 1:
        raise UsageError(
            "--write takes exactly one FILE", "fastcl estimate moco_opt --budget B --write OUT.fcs"
        )
    if write.exists():
        raise UsageError(f"--write {write}: the file exists", "name another, or remove it")


def _write(write: Path, loaded: Loaded, budget: Budget, clock: Clock, gpus: int) -> None:
    text = fit(loaded, budget, clock, gpus)
    try:
        write.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--write {write}: cannot be written: {error.strerror}") from None
    fits = compile_text(text, str(write), loaded.request).plan.epochs == loaded.plan.epochs
    print(f"{'it fits as it is: ' if fits else ''}wrote {write}", file=sys.stderr)
