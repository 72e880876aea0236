"""`fastcl export` on the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fastcl_cli.export.place import Format, choose_place
from fastcl_cli.extras import need_train
from fastcl_cli.ui.console import stdout

if TYPE_CHECKING:
    from fastcl_cli.checkpoint import Weights
    from fastcl_cli.export.export import Exported


def run(
    checkpoint: Path,
    out: Path,
    format: Format | None,
    *,
    image: int | None,
    patch: int | None,
    weights: Weights | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export a backbone and print what was written and how to load it."""
    need_train()
    choose_place(checkpoint, out, format, overwrite)  # again in `export`, which loads torch first
    from fastcl_cli.export.export import export

    exported = export(
        checkpoint, out, format, image=image, patch=patch, weights=weights, overwrite=overwrite
    )
    if as_json:
        print(json.dumps(exported.to_json(), indent=1))
        return
    for line in _lines(exported):
        stdout().print(line, soft_wrap=True)


def _lines(exported: Exported) -> list[str]:
    spec, found = exported.spec, exported.found
    resized = ""
    if exported.resized_from is not None:
        image, patch = exported.resized_from
        resized = f", resized from {image} and {patch}"
    return [
        f"{exported.path}: the {exported.weights} {spec.model.name} after {exported.step:,} steps, "
        f"for {spec.image}-pixel images in patches of {spec.model.patch}{resized}",
        f"greatest difference from the checkpoint's features: {found.difference:.1e} "
        f"(the greatest feature is {found.feature:.2g})",
        f"load it:  {exported.line}",
    ]
