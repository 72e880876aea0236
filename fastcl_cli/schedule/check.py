"""Checks of a whole file's settings, and the configuration that comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fastcl_cli.config import (
    IMAGENET_IMAGES,
    METHODS,
    Augmentation,
    Method,
    RunConfig,
)
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.diagnostics import Collector, FaultError, listed, nearest
from fastcl_cli.schedule.held import images_held
from fastcl_cli.schedule.parser import parse
from fastcl_cli.schedule.patch_sides import require_patch
from fastcl_cli.schedule.reader import Values
from fastcl_cli.schedule.settings import NONE, SETTING_NAMES, SETTINGS, SettingSpec
from fastcl_cli.schedule.source import Source, Span, clip
from fastcl_cli.schedule.words import CLAUSES


@dataclass(slots=True)
class Settings:
    """A file's settings, read: ``values`` has given and default ones by name, ``nodes`` where the
    given ones stand. What could not be read is in neither; ``damaged`` names it."""

    method: Method | None
    values: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, ast.Setting] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    def span(self, *names: str) -> Span | None:
        """Where the first of these settings that is given stands."""
        return next((self.nodes[name].span for name in names if name in self.nodes), None)


def check_settings(
    schedule: ast.Schedule, overrides: Sequence[ast.Setting], faults: Collector
) -> Settings:
    """Read every setting of a file, ``overrides`` (of the command line) in place of its own."""
    broken = {s.name for s in schedule.statements if isinstance(s, ast.Broken) and not s.is_phase}
    replaced = {setting.name.text for setting in overrides}
    nodes: dict[str, ast.Setting] = {}
    # A statement that an override replaces is not read at all.
    own = [setting for setting in schedule.settings if setting.name.text not in replaced]
    for setting in [*overrides, *own]:
        name = setting.name.text
        if name not in SETTINGS:
            _unknown(setting.name, faults)
        elif name in nodes:
            line, _ = nodes[name].span.source.place(nodes[name].span.start)
            message = f"`{name}` stands twice; first in line {line}"
            faults.add("FCS011", setting.name.span, message, "remove one of them")
        else:
            nodes[name] = setting
    settings = Settings(_method(nodes, broken, faults), nodes=nodes, damaged=broken - replaced)
    for name, setting in nodes.items():
        if name != "method":
            _read(settings, SETTINGS[name], setting, faults)
    for spec in SETTINGS.values():
        texts = {spec.defaults.get(method, NONE) for method in METHODS}
        if settings.method is not None:
            texts = {spec.defaults.get(settings.method, NONE)}
        if spec.name not in nodes and spec.name not in settings.damaged and len(texts) == 1:
            settings.values[spec.name] = _default(spec.name, *texts)
    _check_fit(settings, faults)
    return settings


_ALIASES = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "wd": "weight_decay",
    "ema": "momentum",
    "dataset": "data",
    "schedule": "decay",
}


def _unknown(name: ast.Word, faults: Collector) -> None:
    message = f"`{clip(name.text)}` is not a setting"
    faults.add("FCS007", name.span, message, help_for_unknown(name.text))


def help_for_unknown(name: str) -> str:
    """What to do about a name that is no setting's."""
    if name in CLAUSES:
        return f"`{name}` belongs in a phase: `epochs 0-60: drop 0.5 patch 32;`"
    if name in ("epochs", "steps"):
        return f"a phase is written `{name} 0-60: drop 0.5 patch 32;`"
    match = _ALIASES.get(name) or nearest(name, [*SETTING_NAMES, "epochs", "steps"])
    if match is not None:
        return f"did you mean `{match}`?"
    return "`fastcl validate --explain FCS007` lists them"


def _method(nodes: dict[str, ast.Setting], broken: set[str], faults: Collector) -> Method | None:
    """The method, or None where the file does not say it in a way that can be read."""
    setting = nodes.get("method")
    if setting is None:
        return None if "method" in broken else "moco"
    spec = SETTINGS["method"]
    values = Values(setting, spec.syntax)
    try:
        method: Method = spec.read(values)
        values.end()
    except FaultError as fault:
        faults.keep(fault.diagnostic)
        return None
    return method


def _read(settings: Settings, spec: SettingSpec, node: ast.Setting, faults: Collector) -> None:
    if settings.method is not None and settings.method not in spec.defaults:
        message = f"`{spec.name}` has no effect with method {settings.method}"
        help = f"it is a setting of {listed(spec.methods, 'and')}: remove it"
        faults.add("FCS020", node.name.span, message, help)
        settings.damaged.add(spec.name)
        return
    values = Values(node, spec.syntax)
    try:
        settings.values[spec.name] = spec.read(values)
        values.end()
    except FaultError as fault:
        settings.values.pop(spec.name, None)
        settings.damaged.add(spec.name)
        faults.keep(fault.diagnostic)


@cache
def _default(name: str, text: str) -> Any:
    """A default of the table, read like a file's own statement."""
    if text == NONE:
        return None
    faults = Collector()
    tree = parse(Source("the table of settings", f"{name} {text};"), faults)
    assert not faults.found, (name, text)
    values = Values(tree.settings[0], SETTINGS[name].syntax)
    value = SETTINGS[name].read(values)
    values.end()
    return value


def _check_fit(settings: Settings, faults: Collector) -> None:
    """Faults that only two settings together have."""
    values, nodes = settings.values, settings.nodes
    image, model = values.get("image"), values.get("model")
    place = settings.span("image", "model")
    if image is not None and model is not None and image % model.patch and place:
        sides = sorted({image - image % model.patch, image + -image % model.patch} - {0})
        message = f"image {image} is not a multiple of {model.name}'s patch side {model.patch}"
        help = f"use image {listed([str(side) for side in sides])}"
        faults.add("FCS022", place, message, help)
    place = settings.span("position", "model")
    if model is not None and values.get("position") == "sincos" and model.embed_dim % 4 and place:
        message = f"sin-cos positions need a width in fours, not {model.embed_dim}"
        help = f"use embed_dim={model.embed_dim + -model.embed_dim % 4} or position learned"
        faults.add("FCS022", place, message, help)
    _check_choices(settings, faults)
    if settings.method is None:
        return
    dino = settings.method == "dino"
    for name, why in (
        ("head", "hidden, bottleneck and prototypes" if dino else "hidden and out"),
        ("blur", "two global views and the local ones" if dino else "two views"),
        ("solarize", "two global views and the local ones" if dino else "two views"),
    ):
        count = 3 if dino else 2
        if name in nodes and name in values and len(values[name]) != count:
            message = f"with {settings.method}, `{name}` takes {count} values"
            faults.add("FCS009", nodes[name].span, message, f"for {why}")
    views = values.get("locals")
    if views is not None and views.count == 0 and "local_crop" in nodes:
        message = "`local_crop` has no effect: `locals` asks for none"
        faults.add("FCS020", nodes["local_crop"].name.span, message, "remove it")


def _check_choices(settings: Settings, faults: Collector) -> None:
    """Refuse patch sides of `choices` that do not fit the image and the model."""
    image, model = settings.values.get("image"), settings.values.get("model")
    if settings.values.get("choices") is None or image is None or model is None:
        return
    kind = ""
    for value in settings.nodes["choices"].values:
        if isinstance(value, ast.Word):
            kind = value.text
        elif isinstance(value, ast.Number) and kind == "patch":
            try:
                require_patch(value, image, model.patch)
            except FaultError as fault:
                faults.keep(fault.diagnostic)


def build_config(
    settings: Settings, images: tuple[int, str] | None, data: str | None = None
) -> RunConfig:
    """The complete configuration of settings without faults.

    Args:
        images: number of images and where it is from (``data`` or ``option``), above all else.
        data: a path of the command line, in place of the setting.
    """
    v = settings.values
    method = settings.method
    assert method is not None
    data = data if data is not None else v["data"]
    if images is not None:
        count, source = images
    elif (held := images_held(data)) is not None:
        count, source = held, "data"
    elif v["images"] is not None:
        count, source = v["images"], "setting"
    else:
        count, source = IMAGENET_IMAGES, "imagenet-1k"
    views = v["locals"]
    blur, solarize = ((*v[name], 0.0)[:3] for name in ("blur", "solarize"))
    return RunConfig(
        method=method,
        model=v["model"],
        image=v["image"],
        locals=views if views is not None and views.count else None,
        data=data,
        val=v["val"],
        images=count,
        images_source=source,  # type: ignore[arg-type]
        batch=v["batch"],
        accumulate=v["accumulate"],
        lr=v["lr"],
        decay=v["decay"],
        warmup=v["warmup"],
        betas=v["betas"],
        weight_decay=v["weight_decay"],
        clip=v["clip"],
        momentum=v["momentum"],
        temperature=v["temperature"],
        teacher_temperature=v["teacher_temperature"],
        head=v["head"],
        head_norm=bool(v["head_norm"]),
        position=v["position"],
        freeze_patch=v["freeze_patch"],
        freeze_last_layer=v["freeze_last_layer"] or 0.0,
        norm_last_layer=bool(v["norm_last_layer"]),
        center_momentum=v["center_momentum"] or 0.0,
        drop_path=v["drop_path"],
        augmentation=Augmentation(
            crop=v["crop"],
            local_crop=v["local_crop"] or (0.0, 0.0),
            resize=v["resize"],
            flip=v["flip"],
            jitter=v["jitter"],
            grayscale=v["grayscale"],
            blur=blur,
            solarize=solarize,
        ),
        precision=v["precision"],
        decode=v["decode"],
        choices=v["choices"],
        gradient_error=v["gradient_error"],
        knn=v["knn"],
    )
