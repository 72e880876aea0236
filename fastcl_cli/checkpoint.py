"""Checkpoints: safetensors files, written atomically, read without ever unpickling.

A *run checkpoint* holds the method (``online.*``, ``target.*``, ...) and ``optimizer.*``; a
*backbone file* holds one ViT under timm's own names. Both carry one JSON object in the header's
``fastcl`` entry, with a digest of itself and of every tensor's bytes, so that a single bit that has
changed on the way is noticed (SHA-256, which processors compute at 0.7 to 2 GB/s). Random draws are
keyed by step (`rng`), so the step is all the state that the generators have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import AdamW

from fastcl_cli import __version__
from fastcl_cli.config import METHODS
from fastcl_cli.errors import CheckpointError
from fastcl_cli.files import replacing
from fastcl_cli.json_fields import WHOLE
from fastcl_cli.methods.base import Method
from fastcl_cli.methods.build import BackboneSpec, build_backbone
from fastcl_cli.model.vit import Encoder
from fastcl_cli.processes import distributed
from fastcl_cli.shards import alike, fill, gathered, is_shard
from fastcl_cli.tensor_file import write_tensors
from fastcl_cli.vit_table import OPTIONS, vit_shape

FORMAT = 1
Weights: TypeAlias = Literal["target", "online"]
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
    _write(path, tensors, {"kind": "run", "backbone": asdict(spec), "run": asdict(header)})


def read_run_header(path: Path) -> RunHeader:
    """The header of a run checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or not a run checkpoint.
    """
    header = _read_header(path)
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
    tensors = _read_tensors(path, _read_header(path))
    _load(path, method, {k: v for k, v in tensors.items() if not k.startswith("optimizer.")})
    try:
        _put_optimizer(method, optimizer, _below(tensors, "optimizer."))
    except ValueError as error:
        raise CheckpointError(f"{path}: optimizer state of another model: {error}") from error


def check_whole(path: Path) -> None:
    """Read a checkpoint from one end to the other.

    Raises:
        CheckpointError: it is missing or cut short, or is not what was written.
    """
    _read_tensors(path, _read_header(path))


def is_finite(path: Path) -> bool:
    """Whether a checkpoint is whole and every number in it is finite."""
    try:
        tensors = _read_tensors(path, _read_header(path))
    except CheckpointError:
        return False
    return all(bool(value.isfinite().all()) for value in tensors.values())


def save_backbone(
    path: Path,
    backbone: Encoder,
    spec: BackboneSpec,
    step: int,
    resized_from: tuple[int, int] | None = None,
) -> None:
    """Write a ViT for others to use: timm's tensor names, nothing about time, path or host. Process
    0 does; where the ViT is shared out over the processes, all of them must come here.

    Args:
        resized_from: image and patch side that it was trained with, where they are not ``spec``'s.
    """
    header: dict[str, Any] = {"kind": "backbone", "backbone": asdict(spec), "step": step}
    if resized_from is not None:
        header["resized_from"] = resized_from
    _write(path, backbone.vit.state_dict(), header)


def load_backbone(path: Path, weights: Weights | None = None) -> tuple[Encoder, BackboneSpec]:
    """The backbone of a backbone file, or of a run checkpoint.

    Args:
        weights: which of a run's two networks; None takes `default_weights`.

    Raises:
        CheckpointError: missing or damaged file, no such backbone, other names or shapes, or the
            file does not hold the weights asked for.
    """
    header = _read_header(path)
    spec = _read_spec(path, header)
    weights = weights or default_weights(spec)
    if weights != default_weights(spec) and (header["kind"] != "run" or weights == "target"):
        raise CheckpointError(f"{path}: {_other_weights(spec, weights)}")
    tensors = _read_tensors(path, header)
    if header["kind"] == "run":
        tensors = _below(tensors, f"{weights}.backbone.vit.")
    _check_size(path, spec, tensors)
    encoder = build_backbone(spec)
    _load(path, encoder.vit, tensors)
    return encoder, spec


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a backbone comes from: the updates behind it, and the image and patch side that it was
    resized from, or None."""

    step: int
    resized_from: tuple[int, int] | None


def backbone_origin(path: Path) -> Origin:
    """The origin of what `load_backbone` gives.

    Raises:
        CheckpointError: the file is missing, damaged, or its header says no such thing.
    """
    header = _read_header(path)
    if header["kind"] == "run":
        return Origin(read_run_header(path).step, None)
    try:
        resized = header.get("resized_from")
        return Origin(int(header["step"]), None if resized is None else (resized[0], resized[1]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: the header is not fastcl's: {error}") from error


def default_weights(spec: BackboneSpec) -> Weights:
    """The network that a method is judged by, and the only one in a backbone file: the target,
    where there is one."""
    return "online" if spec.method == "simclr" else "target"


def _other_weights(spec: BackboneSpec, weights: Weights) -> str:
    if spec.method == "simclr":
        return f"SimCLR trains one network, the online one; there are no {weights} weights"
    return (
        f"a backbone file holds one network, the {default_weights(spec)}; "
        f"the {weights} weights are in the run's checkpoints"
    )


def copy_backbone(path: Path, method: Method) -> None:
    """Start a run from another file's backbone: into the online network and into the target.

    Raises:
        CheckpointError: as `load_backbone`, or the backbone has another structure than the run's.
    """
    source, _ = load_backbone(path)
    tensors = source.vit.state_dict()
    for network in (method.online, method.target):
        if network is not None:
            encoder = network["backbone"]
            assert isinstance(encoder, Encoder)
            _load(path, encoder.vit, tensors)


def whole_backbone(backbone: Encoder, spec: BackboneSpec) -> Encoder | None:
    """A backbone that one process can run: itself, or where it is shared out over the processes a
    copy of it in the processor's memory, in process 0. The others, of which all must come here, get
    None."""
    tensors = backbone.vit.state_dict()
    if not any(map(is_shard, tensors.values())):
        return backbone
    tensors = gathered(tensors)
    if not tensors:
        return None
    copy = build_backbone(spec)
    copy.vit.load_state_dict(tensors)
    return copy


def timm_arguments(spec: BackboneSpec) -> dict[str, int | float]:
    """What ``timm.create_model`` must be told beside the model's name."""
    return spec.model.timm_arguments(spec.image)


def timm_line(path: Path, spec: BackboneSpec) -> str:
    """The Python line that loads a backbone file into timm."""
    return spec.model.timm_line(spec.image, path)


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    header = {"format": FORMAT, "fastcl": __version__, **header}
    tensors = {name: value.contiguous() for name, value in gathered(tensors).items()}
    if distributed.rank() > 0:
        return
    header["digest"] = _digest(header, tensors)
    with replacing(path) as part:
        # One entry only: safetensors writes several in random order, and equal runs should write
        # equal files.
        write_tensors(part, tensors, {"fastcl": json.dumps(header, sort_keys=True)})


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a header without its digest, and of every tensor's name, type, shape and
    bytes, in the order of the names."""
    rest = {key: value for key, value in header.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        header = json.loads(metadata.get("fastcl", "null"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(header, dict) or header.get("kind") not in ("run", "backbone"):
        raise CheckpointError(f"{path} was not written by fastcl: its header has no fastcl entry")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {repr(header.get('format'))[:40]}; this version reads {FORMAT}"
        )
    return header


def _read_tensors(path: Path, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a file, held to the digest in its ``header`` (older files have none)."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        same = "digest" not in header or header["digest"] == _digest(header, tensors)
    except (OSError, SafetensorError, RuntimeError) as error:  # of torch: types that it lacks
        raise _damaged(path, error) from error
    if not same:
        raise CheckpointError(
            f"{path} is damaged: its bytes are not those that were written",
            "use an older checkpoint of the run, or copy the file again",
        )
    return tensors


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a complete safetensors file: {error}",
        "use an older checkpoint of the run, or copy the file again",
    )


def _read_spec(path: Path, header: dict[str, Any]) -> BackboneSpec:
    """The header's backbone, held to the models and options that a schedule may name."""
    try:
        given = header["backbone"]
        options = dict(given["model"]["options"])
        if not options.keys() <= set(OPTIONS):
            raise ValueError(f"model options {sorted(options)}")
        shape = vit_shape(given["model"]["name"], options)
        spec = BackboneSpec(
            given["method"], shape, int(given["image"]), given["position"], int(given["seed"])
        )
        if spec.method not in METHODS or spec.position not in ("learned", "sincos"):
            raise ValueError(f"method {spec.method!r}, position {spec.position!r}")
        return spec
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header names no known backbone: {error}") from error


def _check_size(path: Path, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a header that asks for a network of another size before one is allocated."""
    model = spec.model
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    expected = {
        "patch_embed.proj.weight": (model.embed_dim, 3, model.patch, model.patch),
        "blocks.0.mlp.fc1.weight": (int(model.embed_dim * model.mlp_ratio), model.embed_dim),
    }
    tokens = (spec.image // model.patch) ** 2 if model.patch > 0 else 0
    position = tensors.get("pos_embed")
    if (
        any(name not in tensors or tensors[name].shape != s for name, s in expected.items())
        or len(blocks) != model.depth
        or not 0 < model.num_heads <= model.embed_dim
        or position is None
        or not 0 <= position.shape[1] - tokens <= model.prefix_tokens
    ):
        raise CheckpointError(
            f"{path}: its tensors are not those of the {model.name} that its header names"
        )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


@torch.no_grad()
def _load(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module's own, by name; every name and every shape must match."""
    own = module.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        side = "lacks" if name in own else "has an unknown"
        raise CheckpointError(f"{path} {side} tensor {name}", "it belongs to another model")
    for name, value in own.items():
        given = tensors[name]
        if given.shape != value.shape or given.dtype != value.dtype:
            raise CheckpointError(
                f"{path}: {name} is {given.dtype} {tuple(given.shape)}, "
                f"the model needs {value.dtype} {tuple(value.shape)}",
                "it belongs to another model",
            )
        fill(value, given)


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
