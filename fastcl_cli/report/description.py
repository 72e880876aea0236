"""What a run is: its ``config.json`` and ``plan.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcl_cli.config import VitShape
from fastcl_cli.errors import RunFolderError
from fastcl_cli.json_fields import FieldError, Fields
from fastcl_cli.plan import Plan
from fastcl_cli.report.lines import read_json
from fastcl_cli.report.plan_file import plan_from_json
from fastcl_cli.report.records import text
from fastcl_cli.run_files import RunFiles

MAX_CONFIG, MAX_PLAN = 1_000_000, 50_000_000
"""Bytes; a plan of 20,000 segments takes half of it."""


@dataclass(frozen=True)
class Description:
    """A run's configuration and plan.

    Attributes:
        overrides: ``name=text`` items that replaced statements of ``schedule.fcs``.
        data: what was trained on, as the run named it; ``digest`` is of its images.
        units_per_image: forward passes that an image costs without compression.
        settings: the whole configuration, as JSON values.
    """

    files: RunFiles
    model: VitShape
    image: int
    data: str
    digest: str
    precision: str
    seed: int
    overrides: tuple[str, ...]
    units_per_image: float
    settings: Mapping[str, Any]
    plan: Plan

    @property
    def load_line(self) -> str:
        """The Python line that loads the run's backbone into timm."""
        return self.model.timm_line(self.image, self.files.backbone)


def describe(folder: Path) -> Description:
    """Read what a run is from its folder.

    Raises:
        RunFolderError: it is not a run's.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise RunFolderError(f"{folder}: {what}", "name the folder that `fastcl run --out` wrote")
    files = RunFiles(folder)
    plan = read_json(files.plan, MAX_PLAN, plan_from_json)

    def configuration(value: object) -> Description:
        top = Fields(value, "")
        config, given = top.inner("config"), top.several("set", 0, 1000)
        assert isinstance(value, dict)
        return Description(
            files,
            _model(config.inner("model")),
            config.whole("image"),
            text(config, "data", 4096),
            text(top, "data_digest"),
            text(config, "precision"),
            top.whole("seed", 0, 2**64),
            tuple(text(given, name, 4096) for name in given.names()),
            top.number("units_per_image", 0, 1e9, above=True),
            value["config"],
            plan,
        )

    return read_json(files.config, MAX_CONFIG, configuration)


def _model(fields: Fields) -> VitShape:
    given = fields.several("options", 0, 100)
    options = []
    for index in given.names():
        pair = given.several(index, 2, 2)
        value = pair.number("1", 0, 1e9)
        if not (name := pair.text("0")).isidentifier():
            raise FieldError(f"config.model.options: {name!r} is no option")
        options.append((name, int(value) if value.is_integer() and name != "mlp_ratio" else value))
    return VitShape(
        fields.text("name"),
        tuple(options),
        fields.whole("patch"),
        fields.whole("embed_dim"),
        fields.whole("depth"),
        fields.whole("num_heads"),
        fields.number("mlp_ratio", 0, 1000),
        fields.whole("prefix_tokens", 0),
    )
