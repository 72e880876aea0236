"""One ViT: written for others to use, and read from such a file or from a run's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor

from fastcl_cli.checkpoint.file import below, load_into, read_header, read_tensors, write
from fastcl_cli.checkpoint.run import read_run_header
from fastcl_cli.config import METHODS
from fastcl_cli.errors import CheckpointError
from fastcl_cli.methods.base import Method
from fastcl_cli.methods.build import BackboneSpec, build_backbone
from fastcl_cli.model.vit import Encoder
from fastcl_cli.shards import gathered, is_shard
from fastcl_cli.vit_table import OPTIONS, vit_shape

Weights: TypeAlias = Literal["target", "online"]


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
    write(path, backbone.vit.state_dict(), header)


def load_backbone(path: Path, weights: Weights | None = None) -> tuple[Encoder, BackboneSpec]:
    """The backbone of a backbone file, or of a run checkpoint.

    Args:
        weights: which of a run's two networks; None takes `default_weights`.

    Raises:
        CheckpointError: missing or damaged file, no such backbone, other names or shapes, or the
            file does not hold the weights asked for.
    """
    header = read_header(path)
    spec = _read_spec(path, header)
    weights = weights or default_weights(spec)
    if weights != default_weights(spec) and (header["kind"] != "run" or weights == "target"):
        raise CheckpointError(f"{path}: {_other_weights(spec, weights)}")
    tensors = read_tensors(path, header)
    if header["kind"] == "run":
        tensors = below(tensors, f"{weights}.backbone.vit.")
    _check_size(path, spec, tensors)
    encoder = build_backbone(spec)
    load_into(path, encoder.vit, tensors)
    return encoder, spec


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
    header = read_header(path)
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
            load_into(path, encoder.vit, tensors)


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
