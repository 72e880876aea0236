"""Profiles as files: written for anyone to read, read as if anyone had written them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from fastcl_cli.config import METHODS
from fastcl_cli.errors import ConfigError, UsageError
from fastcl_cli.estimate.profile import (
    Fixed,
    Loader,
    Measured,
    Profile,
    Recipe,
    Setting,
    Spread,
    Workload,
    is_full,
)
from fastcl_cli.files import cache_folder, write_text
from fastcl_cli.json_fields import FieldError, Fields
from fastcl_cli.plan import Compression, Tokens, View
from fastcl_cli.units import plain_number

SCHEMA_VERSION = 1
MAX_BYTES = 4_000_000
MAX_SETTINGS = 4096
_MS = 1e9


def to_json(profile: Profile) -> dict[str, Any]:
    """A profile as JSON values; what `from_json` reads."""
    settings = []
    for one in profile.measured:
        settings.append(
            {
                "online": _compression_json(one.setting.online),
                "target": _compression_json(one.setting.target),
                "views": [asdict(view) for view in one.setting.views],
                "batch": one.setting.batch,
                "step_ms": asdict(one.step_ms),
                "wait_ms": one.wait_ms,
                "log_ms": one.log_ms,
                "images_per_s": one.images_per_s,
                "peak_bytes": one.memory,
                "flops": one.flops,
                "sample_cost": profile.sample_cost(one),
            }
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "device": profile.device,
        "precision": profile.precision,
        "processes": profile.processes,
        "versions": profile.versions,
        "date": profile.date,
        "repetitions": profile.repetitions,
        "data": profile.data,
        "images": profile.images,
        "memory_kind": profile.memory_kind,
        "workload": asdict(profile.workload),
        "recipe": asdict(profile.recipe),
        "settings": settings,
        "loader": None if profile.loader is None else asdict(profile.loader),
        "fixed": asdict(profile.fixed),
    }


def _compression_json(compression: Compression | None) -> dict[str, Any] | None:
    if compression is None:
        return None
    return {"drop": plain_number(compression.drop), "patch": compression.patch}


def from_json(value: object) -> Profile:
    """The profile that JSON values describe; figures that follow from others are not read.

    Raises:
        ValueError: they describe none, with the place and what is allowed there.
    """
    top = Fields(value, "")
    version = top.whole("schema_version", 0)
    if version != SCHEMA_VERSION:
        raise FieldError(f"schema_version is {version}; this fastcl reads {SCHEMA_VERSION}")
    versions = top.inner("versions")
    loader = None
    if not top.null("loader"):
        given = top.inner("loader")
        loader = Loader(_spread(given, "images_per_s"), given.whole("side", 1, 100_000))
    fixed = top.inner("fixed")
    workload = _workload(top.inner("workload"))
    measured = tuple(_measured(item) for item in top.objects("settings", 1, MAX_SETTINGS))
    if not any(is_full(one.setting.views, workload.patch) for one in measured):
        raise FieldError("settings hold none without compression")
    return Profile(
        device=top.text("device"),
        precision=top.text("precision", ("float32", "bf16")),
        processes=top.whole("processes", 1, 100_000),
        versions={name: versions.text(name) for name in versions.names()[:20]},
        date=top.text("date"),
        repetitions=top.whole("repetitions"),
        data=None if top.null("data") else top.text("data"),
        images=top.whole("images"),
        memory_kind=top.text("memory_kind"),
        workload=workload,
        recipe=_recipe(top.inner("recipe")),
        measured=measured,
        loader=loader,
        fixed=Fixed(
            *(fixed.number(name, 0, _MS) for name in ("start_s", "stream_s", "save_s")),
        ),
    )


def _spread(fields: Fields, name: str) -> Spread:
    inner = fields.inner(name)
    median = inner.number("median", 0, 1e12, above=True)
    return Spread(median, inner.number("low", 0, median), inner.number("high", median, 1e12))


def _workload(fields: Fields) -> Workload:
    views = None if fields.null("locals") else fields.several("locals", 2, 2)
    head = fields.several("head", 2, 3)
    return Workload(
        method=fields.text("method", METHODS),
        model=fields.text("model"),
        patch=fields.whole("patch"),
        embed_dim=fields.whole("embed_dim"),
        depth=fields.whole("depth"),
        num_heads=fields.whole("num_heads"),
        mlp_ratio=fields.number("mlp_ratio", 0, 1000),
        prefix_tokens=fields.whole("prefix_tokens", 0),
        image=fields.whole("image"),
        locals=None if views is None else (views.whole("0"), views.whole("1")),
        head=tuple(head.whole(name) for name in head.names()),
    )


def _recipe(fields: Fields) -> Recipe:
    blur, solarize = (fields.several(name, 3, 3) for name in ("blur", "solarize"))
    return Recipe(
        drop_path=fields.number("drop_path", 0, 1),
        clip=fields.flag("clip"),
        resize=fields.text("resize", ("bilinear", "bicubic")),
        jitter=fields.number("jitter", 0, 1),
        blur=tuple(blur.number(name, 0, 1) for name in blur.names()),
        solarize=tuple(solarize.number(name, 0, 1) for name in solarize.names()),
        decode=None if fields.null("decode") else fields.whole("decode"),
        accumulate=fields.whole("accumulate") if "accumulate" in fields.names() else 1,
    )


def _measured(fields: Fields) -> Measured:
    online = _compression(fields.inner("online"))
    target = None if fields.null("target") else _compression(fields.inner("target"))
    views = tuple(_view(item) for item in fields.objects("views", 1, 2))
    step = _spread(fields, "step_ms")
    return Measured(
        Setting(views, fields.whole("batch"), online, target),
        step,
        # Below the whole step, so that something is left for computing.
        fields.number("wait_ms", 0, 0.999999 * step.median),
        fields.number("log_ms", 0, _MS),
        None if fields.null("peak_bytes") else fields.whole("peak_bytes", 0, 10**15),
        fields.whole("flops", 1, 10**24),
    )


def _compression(fields: Fields) -> Compression:
    drop = fields.number("drop", 0, 1)
    return Compression(Fraction(repr(drop)), fields.whole("patch"))


def _view(fields: Fields) -> View:
    name = fields.text("name", ("global", "local"))
    target = None if fields.null("target") else _tokens(fields.inner("target"))
    count, side = fields.whole("count", 1, 1000), fields.whole("side")
    online = _tokens(fields.inner("online"))
    return View("global" if name == "global" else "local", count, side, online, target)


def _tokens(fields: Fields) -> Tokens:
    grid = fields.whole("grid", 1, 100_000)
    return Tokens(fields.whole("patch"), grid, fields.whole("kept", 1, grid * grid))


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        ConfigError: there is none, or it is not one: the field, its value and what is allowed.
    """
    help = "`fastcl bench FILE --out PROFILE.json` makes one"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{str(path)[:200]}: cannot be read: {reason}", help) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than the {MAX_BYTES:,} bytes of any profile", help)
    try:
        return from_json(json.loads(content))
    except FieldError as error:
        raise ConfigError(f"{path}: not a profile: {error}", help) from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not JSON", help) from None


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile, making its folder.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(to_json(profile), indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def profile_folder() -> Path:
    """Where profiles are kept that are given no other place."""
    return cache_folder() / "profiles"


def default_path(profile: Profile) -> Path:
    """A profile's place: the same for one that measures the same again."""
    key = repr(
        (
            profile.device,
            profile.precision,
            profile.processes,
            profile.workload,
            profile.recipe,
            profile.data,
            sorted(repr(one.setting) for one in profile.measured),
        )
    )
    words = f"{profile.device} {profile.workload.method} {profile.workload.model}"
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:100]
    return profile_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def stored_profiles() -> tuple[list[tuple[Path, Profile]], list[str]]:
    """Every profile in `profile_folder`, newest first, and a line for each file that is none."""
    found, faults = [], []
    for path in sorted(profile_folder().glob("*.json")):
        try:
            found.append((path, read_profile(path)))
        except ConfigError as error:
            faults.append(f"{error.message}: left aside")
    return sorted(found, key=lambda item: item[1].date, reverse=True), faults
