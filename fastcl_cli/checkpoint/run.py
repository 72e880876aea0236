"""A run's checkpoint: all that the run needs to go on as if it had never stopped.

Random draws are keyed by step (`rng`), so the step is all the state that the generators have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from fastcl_cli.checkpoint.file import below, load_into, read_header, read_tensors, write
from fastcl_cli.errors import CheckpointError
from fastcl_cli.json_fields import WHOLE
from fastcl_cli.methods.base import Method
from fastcl_cli.methods.build import BackboneSpec
from fastcl_cli.shards import alike

_KINDS = {"int": int, "str": str, "dict": dict, "list": list}


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What a run checkpoint says of itself, besides its backbone.

    ``step`` updates have been done. ``config`` and ``plan`` (a digest) must equal those of the run
    that goes on from it; ``data`` identifies the images. ``meter`` holds the sums of the log line
    that was being gathered, ``error`` the running estimate of the gradient error, ``auto`` the
    costs and the moves of the closed loop (``plan`` is the digest before any). ``phases`` are
    those of the schedule, a line each; ``position`` is where in the data the next step stands
    (epoch, offset); ``changes`` are the changes that the run was resumed with. ``pending`` is the
    log line after ``step`` updates that lacks its k-NN, if the run was stopped on the way to it.
    """

    step: int
    plan: str
    config: dict[str, Any]
    data: str
    schedule: str
    meter: dict[str, float]
    error: dict[str, Any]
    auto: dict[str, Any]
    phases: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    pending: dict[str, Any] = field(default_factory=dict)


def save_run(
    path: Path, method: Method, optimizer: AdamW, spec: BackboneSpec, header: RunHeader
) -> None:
    """Write a run checkpoint, in process 0. Where the method is shared out over the processes, all
    of them must come here.

    Raises:
        OSError: the file could not be written; an older one of that name is untouched.
    """
    tensors = dict(method.state_dict())
    tensors |= {f"optimizer.{k}": v for k, v in _take_optimizer(method, optimizer).items()}
    write(path, tensors, {"kind": "run", "backbone": asdict(spec), "run": asdict(header)})


def read_run_header(path: Path) -> RunHeader:
    """The header of a run checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or not a run checkpoint.
    """
    header = read_header(path)
    if header.get("kind") != "run":
        raise CheckpointError(
            f"{path} is a {header.get('kind')} file, not a checkpoint of a run",
            "to start from its weights use --init-from",
        )
    try:
        run = RunHeader(**header["run"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the header is not fastcl's: {error}") from error
    for entry in fields(RunHeader):
        value, kind = getattr(run, entry.name), _KINDS[str(entry.type).partition("[")[0]]
        if not isinstance(value, kind):
            raise CheckpointError(f"{path}: the header's {entry.name} is {str(value)[:40]}")
    if not 0 <= run.step <= WHOLE:
        raise CheckpointError(f"{path}: the header counts {str(run.step)[:40]} steps")
    return run


def load_run(path: Path, method: Method, optimizer: AdamW) -> None:
    """Put a run checkpoint's weights and optimizer state into place.

    Raises:
        CheckpointError: damaged file, or tensors of other names or shapes than this run's.
    """
    tensors = read_tensors(path, read_header(path))
    load_into(path, method, {k: v for k, v in tensors.items() if not k.startswith("optimizer.")})
    try:
        _put_optimizer(method, optimizer, below(tensors, "optimizer."))
    except ValueError as error:
        raise CheckpointError(f"{path}: optimizer state of another model: {error}") from error


def _take_optimizer(method: Method, optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's state as ``NAME/exp_avg``, ``NAME/exp_avg_sq`` and ``NAME/step``."""
    return {
        f"{name}/{key}": value
        for name, parameter in method.trained().items()
        for key, value in optimizer.state[parameter].items()
    }


def _put_optimizer(method: Method, optimizer: AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Put the state of `_take_optimizer` back; a parameter without an entry has not been
    updated yet.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape than its parameter.
    """
    parameters = method.trained()
    shapes = {
        f"{name}/{key}": torch.Size([]) if key == "step" else parameter.shape
        for name, parameter in parameters.items()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    for entry, value in tensors.items():
        if entry not in shapes:
            raise ValueError(f"{entry} is unknown")
        if value.shape != shapes[entry]:
            raise ValueError(f"{entry} is {tuple(value.shape)}, not {tuple(shapes[entry])}")
        name, key = entry.rsplit("/", 1)
        parameter = parameters[name]
        own = value.to(parameter.device) if key == "step" else alike(value, parameter)
        optimizer.state[parameter][key] = own
    for name, parameter in parameters.items():
        if len(optimizer.state.get(parameter, {})) not in (0, 3):
            raise ValueError(f"the state of {name} is not whole")
