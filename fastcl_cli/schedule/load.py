"""The one way from a schedule's text to what a run needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastcl_cli.config import RunConfig
from fastcl_cli.errors import ConfigError
from fastcl_cli.plan import Plan
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.advice import advise
from fastcl_cli.schedule.check import build_config, check_settings, help_for_unknown
from fastcl_cli.schedule.diagnostics import (
    Collector,
    Diagnostic,
    TooManyFaultsError,
    render,
)
from fastcl_cli.schedule.library import find
from fastcl_cli.schedule.parser import parse
from fastcl_cli.schedule.phases import check_phases
from fastcl_cli.schedule.pieces import decode
from fastcl_cli.schedule.resolve import resolve
from fastcl_cli.schedule.settings import SETTINGS
from fastcl_cli.schedule.source import Source
from fastcl_cli.schedule.values import read_data
from fastcl_cli.schedule.words import CLAUSES, MAX_BYTES, UNITS


class ScheduleError(ConfigError):
    """A schedule is not valid. ``details`` has every fault as text with its caret, and ``alone``
    says whether it is one only."""

    def __init__(self, name: str, diagnostics: Sequence[Diagnostic]) -> None:
        errors = [d for d in diagnostics if d.severity == "error"]
        self.alone = len(errors) == 1
        if self.alone:
            line, column = errors[0].place
            place = f"{errors[0].file}:{line}:{column}"
            super().__init__(f"{place}: {errors[0].message}", errors[0].help)
        else:
            super().__init__(f"{name} has {len(errors)} errors", "see them above")
        self.diagnostics = tuple(diagnostics)

    @property
    def details(self) -> str:
        return "\n".join(render(d) for d in self.diagnostics)


@dataclass(frozen=True)
class Report:
    """All that can be said of a schedule: ``config`` and ``plan`` are None where it has errors."""

    name: str
    text: str
    schedule: ast.Schedule | None
    diagnostics: tuple[Diagnostic, ...]
    config: RunConfig | None
    plan: Plan | None

    @property
    def valid(self) -> bool:
        return self.plan is not None


@dataclass(frozen=True)
class Request:
    """What the command line adds to a file.

    ``overrides`` are ``name=text`` in place of the file's statement ``name text;``. ``images`` is
    their number and where it is from (``option``, or ``data`` once the data has been opened).
    """

    overrides: tuple[str, ...] = ()
    images: tuple[int, str] | None = None
    data: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A valid schedule, ready to run; ``diagnostics`` holds warnings only."""

    name: str
    text: str
    schedule: ast.Schedule
    diagnostics: tuple[Diagnostic, ...]
    config: RunConfig
    plan: Plan
    request: Request = field(repr=False)

    def with_images(self, images: int) -> Loaded:
        """The same schedule for data that holds ``images`` images.

        Raises:
            ScheduleError: it cannot be planned for so many, e.g. a batch is larger.
        """
        return compile_text(self.text, self.name, replace(self.request, images=(images, "data")))


def read_source(source: str | Path) -> tuple[str, bytes]:
    """Name and bytes of a schedule file, of a built-in schedule, or (``-``) of standard input.

    Reads no more than is needed to see that a file is too large.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    if str(source) == "-":
        import sys

        return "<stdin>", sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with find(source).open("rb") as file:
            return str(source), file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{str(source)[:200]}: cannot be read: {reason}") from None


def check(name: str, data: bytes, request: Request | None = None) -> Report:
    """Check a schedule's bytes; never raises for what they hold."""
    request = request or Request()
    faults = Collector()
    tree, config, plan, text = None, None, None, ""
    try:
        source = decode(name, data, faults)
        text = source.text
        if not faults.found:
            tree = parse(source, faults)
            if len(faults.found) == 0 or faults.found[-1].code != "FCS026":
                config, plan = _compile(tree, request, faults)
    except TooManyFaultsError:
        pass
    if faults.failed:
        config, plan = None, None
    return Report(name, text, tree, tuple(faults.sorted()), config, plan)


def _compile(
    tree: ast.Schedule, request: Request, faults: Collector
) -> tuple[RunConfig | None, Plan | None]:
    overrides = read_overrides(request, faults)
    settings = check_settings(tree, overrides, faults)
    phases = check_phases(tree, settings, faults)
    if faults.failed or phases is None or settings.method is None:
        return None, None
    config = build_config(settings, request.images, request.data)
    length = settings.values.get("length")
    plan = resolve(phases, config, length and length.value, settings.span("batch"), faults)
    if plan is None:
        return None, None
    faults.found += advise(plan, phases, settings, config)
    return config, plan


def read_overrides(request: Request, faults: Collector) -> list[ast.Setting]:
    """The statements that the command line puts in place of the file's.

    Raises:
        ConfigError: one names no setting, or is more than one.
    """
    return [setting for text in request.overrides for setting in _override(text, faults)]


def _override(text: str, faults: Collector) -> list[ast.Setting]:
    """The statement that ``--set name=text`` stands for."""
    name, _, value = text.partition("=")
    name = name.strip()
    if name not in SETTINGS:
        help = help_for_unknown(name)
        if name in (*CLAUSES, *UNITS):
            help += "; --set changes no phases: edit the file, or a copy of the built-in one"
        raise ConfigError(f"--set {text[:80]}: `{name[:40]}` is not a setting", help)
    if SETTINGS[name].read is read_data:
        value = _quoted(value)
    tree = parse(Source(f"--set {name}", f"{name} {value}"), faults)
    if len(tree.statements) != 1:
        raise ConfigError(f"--set {text[:80]}: one statement at a time", "repeat --set for others")
    return tree.settings


def _quoted(value: str) -> str:
    """A path in the quotes that a file needs and a command line has no use for."""
    bare = value.strip().removesuffix(";").rstrip()
    return value if bare in ("", "digits") or '"' in bare else f'"{bare}"'


def compile_text(text: str, name: str = "<text>", request: Request | None = None) -> Loaded:
    """A schedule's text, checked and planned.

    Raises:
        ScheduleError: it has errors; ``details`` shows them all.
    """
    request = request or Request()
    return _loaded(check(name, text.encode("utf-8", "surrogateescape"), request), request)


def _loaded(report: Report, request: Request) -> Loaded:
    if report.schedule is None or report.config is None or report.plan is None:
        raise ScheduleError(report.name, report.diagnostics)
    return Loaded(
        report.name,
        report.text,
        report.schedule,
        report.diagnostics,
        report.config,
        report.plan,
        request,
    )


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    images: int | None = None,
    data: str | None = None,
) -> Loaded:
    """A schedule file or built-in schedule, checked and planned.

    Args:
        source: a path, a built-in schedule's name, or ``-`` for standard input.
        overrides: ``name=text`` items, each in place of the file's statement ``name text;``.
        images: number of training images, in place of what the file or its data say.
        data: data path, in place of the file's.

    Raises:
        ConfigError: the file cannot be read; as `ScheduleError`, it has errors.
    """
    name, content = read_source(source)
    request = Request(tuple(overrides), (images, "option") if images is not None else None, data)
    return _loaded(check(name, content, request), request)
