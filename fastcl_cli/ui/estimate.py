"""What ``fastcl estimate`` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastcl_cli.devices import Device, find_device
from fastcl_cli.errors import ConfigError, UsageError
from fastcl_cli.estimate import Estimate, budget_json, estimate, fit, require_fit
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.schedule.load import Loaded, load
from fastcl_cli.units import Budget, parse_budget


def run(
    files: Sequence[str],
    budget_text: str,
    gpu: str,
    gpus: int,
    images: int | None,
    price: float | None,
    write: Path | None,
    as_json: bool,
) -> None:
    """Estimate ``files``, else every built-in schedule, and print the result.

    Raises:
        BudgetError: a named file does not fit, and ``write`` did not make one that does.
        UsageError, ConfigError: an option or a file is wrong.
    """
    budget = parse_budget(budget_text)
    device, how = find_device(gpu)
    if write is not None:
        _check_write(files, write)
    loaded = [load(name, images=images) for name in files or builtin_schedules()]
    estimates = [estimate(item, budget, device, named=bool(files)) for item in loaded]
    assumptions = _assumptions(loaded, device, how)
    if as_json:
        rows = [_row(item, gpus, price) for item in estimates]
        result = {
            "schema_version": 1,
            "budget": budget_json(budget),
            "device": device.name,
            "source": "analytic",
            "assumptions": assumptions,
            "peak_tflops": device.peak,
            "utilisation": device.utilisation,
            "gpus": gpus,
            "schedules": rows,
        }
        print(json.dumps(result))
    else:
        from fastcl_cli.ui.console import stdout
        from fastcl_cli.ui.estimate_table import print_estimates

        print_estimates(stdout(), estimates, budget, assumptions, gpus, price)
    if write is not None:
        _write(write, loaded[0], budget, device)
    else:
        require_fit(estimates, budget)


def _row(item: Estimate, gpus: int, price: float | None) -> dict[str, object]:
    row = {**item.to_json(), "hours": item.gpu_hours / gpus}
    if price is not None:
        row["price"] = item.gpu_hours * price
    return row


def _assumptions(loaded: Sequence[Loaded], device: Device, how: str) -> list[str]:
    lines = [
        f"{device.name} ({how}): {device.peak:g} TFLOP/s bf16 peak, of which "
        f"{device.utilisation:.0%} assumed",
        "analytic operation count (3 x online forward + target forward), not measured here",
    ]
    assumed = [item for item in loaded if item.config.images_source == "imagenet-1k"]
    if assumed:
        count = f"{assumed[0].plan.images:,}"
        which = "" if len(assumed) == len(loaded) else f" for {len(assumed)} of them"
        lines.append(f"{count} images (ImageNet-1k) assumed{which}; --images says otherwise")
    if any(item.plan.is_auto for item in loaded):
        lines.append("auto phases counted at their cheapest choice: they decide while they run")
    return lines


def _check_write(files: Sequence[str], write: Path) -> None:
    if len(files) != 1:
        raise UsageError(
            "--write takes exactly one FILE", "fastcl estimate moco_opt --budget B --write OUT.fcs"
        )
    if write.exists():
        raise UsageError(f"--write {write}: the file exists", "name another, or remove it")


def _write(write: Path, loaded: Loaded, budget: Budget, device: Device) -> None:
    text = fit(loaded, budget, device)
    try:
        write.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--write {write}: cannot be written: {error.strerror}") from None
    print(f"wrote {write}", file=sys.stderr)
