"""`fastcl export`: a checkpoint's backbone in another format, for an image and a patch side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.checkpoint import (
    Weights,
    backbone_origin,
    default_weights,
    load_backbone,
    timm_arguments,
)
from fastcl_cli.errors import CheckpointError
from fastcl_cli.export import hf_folder, onnx_file, timm_file
from fastcl_cli.export.backbone import Backbone
from fastcl_cli.export.compare import Difference, compare, require_rounding
from fastcl_cli.export.place import Format, choose_place, staged
from fastcl_cli.export.resize import resized
from fastcl_cli.methods.build import BackboneSpec

_WRITERS: dict[Format, ModuleType] = {"timm": timm_file, "hf": hf_folder, "onnx": onnx_file}


@dataclass(frozen=True, slots=True)
class Exported:
    """What `fastcl export` wrote: ``line`` is the Python that loads it."""

    path: Path
    format: Format
    spec: BackboneSpec
    weights: Weights
    step: int
    resized_from: tuple[int, int] | None
    found: Difference
    line: str

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "fastcl": __version__,
            "path": str(self.path),
            "format": self.format,
            "model": self.spec.model.name,
            "model_args": timm_arguments(self.spec),
            "image": self.spec.image,
            "patch": self.spec.model.patch,
            "weights": self.weights,
            "step": self.step,
            "resized_from": self.resized_from and list(self.resized_from),
            "difference": self.found.difference,
            "largest_feature": self.found.feature,
            "load": self.line,
        }


def export(
    checkpoint: Path,
    out: Path,
    format: Format | None = None,
    *,
    image: int | None = None,
    patch: int | None = None,
    weights: Weights | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a checkpoint's backbone to ``out``, load it again and compare features.

    Args:
        format: None tells it from the end of ``out``'s name.
        image, patch: sides in pixels; None keeps what the backbone was trained with.
        weights: as for `load_backbone`.

    Raises:
        UsageError, MissingLibraryError: as `choose_place`, or sizes that do not fit.
        CheckpointError: as `load_backbone`, or sizes are asked of a file that was resized before.
        RunFailedError: the features differ by more than rounding; nothing was written.
    """
    format = choose_place(checkpoint, out, format, overwrite)
    encoder, spec = load_backbone(checkpoint, weights)
    origin = backbone_origin(checkpoint)
    image, patch = image or spec.image, patch or spec.model.patch
    other, made = resized(encoder, spec, image, patch)
    resized_from = origin.resized_from
    if other is not encoder:
        if resized_from is not None:
            raise CheckpointError(
                f"{checkpoint} was resized before, from {resized_from[0]} pixels in patches of "
                f"{resized_from[1]}",
                "export from the file that it was made of: to resize twice is not the same",
            )
        resized_from = (spec.image, spec.model.patch)
    backbone = Backbone(other, made, origin.step, resized_from)
    writer = _WRITERS[format]
    with staged(out) as place:
        writer.write(place, backbone)
        found = compare(writer.load(place, backbone), encoder, image, patch)
        require_rounding(found, str(out))
    return Exported(
        out,
        format,
        made,
        weights or default_weights(spec),
        origin.step,
        resized_from,
        found,
        writer.line(out, backbone),
    )
