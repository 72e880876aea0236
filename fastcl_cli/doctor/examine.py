"""All that the doctor looks at, in the order in which it says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.doctor import cores, libraries, storage
from fastcl_cli.doctor.finding import Finding, first_line


@dataclass(frozen=True, slots=True)
class Report:
    """The findings; ``ready`` where no problem is among them: training will work."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        return all(finding.status != "problem" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "fastcl": __version__,
            "ready": self.ready,
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine() -> Report:
    """Look at everything. What needs a library that is missing is left out, not guessed."""
    findings = [libraries.python(), libraries.fastcl(), libraries.library("torch")]
    torch_works = findings[-1].status == "ok"
    gpus = 0
    if torch_works:
        accelerators = _tried("CUDA", _accelerators)
        gpus = sum(f.name.startswith("GPU") and f.status != "problem" for f in accelerators)
        findings += accelerators
    findings += [libraries.library(name) for name in ("timm", "torchvision", "numba")]
    if torch_works and findings[-1].status == "ok":
        findings += _tried("FFCV", libraries.ffcv)
        findings += _tried("threading layer", libraries.threading_layer)
    findings += _tried("cores", cores.cores)
    findings += _tried("loader", partial(cores.loader, gpus))
    findings += _tried("/dev/shm", storage.shared_memory)
    findings += _tried("cache", storage.cache)
    findings += _tried("runs", storage.runs)
    return Report(tuple(findings))


def _accelerators() -> list[Finding]:
    from fastcl_cli.doctor import accelerators

    return accelerators.findings()


def _tried(name: str, look: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """What a look finds; a broken machine may break the look, too."""
    try:
        found = look()
    except Exception as error:
        value = f"cannot be looked at: {type(error).__name__}: {first_line(error)}"
        return [Finding(name, "problem", value, "fastcl doctor --debug")]
    return [found] if isinstance(found, Finding) else found
