"""What can be said against a schedule: codes, collection, and the text with the caret.

Codes below 100 are errors, the others warnings: legal, but unwise for the reason given.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastcl_cli.schedule.source import Span, clip

Severity = Literal["error", "warning"]
MAX_FAULTS = 500

CODES: dict[str, tuple[str, str]] = {
    "FCS001": (
        "the file is not UTF-8 text",
        "A schedule is plain text in UTF-8 (a byte order mark and CRLF line ends are accepted).",
    ),
    "FCS002": (
        "the file is too large",
        "A file may have 1 MB and 10,000 phases; a statement 48 words and 300 characters (4,000 "
        "with a string); a plan 20,000 segments.",
    ),
    "FCS003": (
        "the statement cannot be read",
        "A statement is a setting, `batch 1024;`, or a phase, `epochs 0-60: drop 0.5 patch 32;`.",
    ),
    "FCS004": (
        "a `;` is missing",
        "Every statement ends in `;`; only the last one of the file may omit it.",
    ),
    "FCS005": (
        "a string is not closed",
        'A string stands between double quotes on one line: data "train.beton";',
    ),
    "FCS006": (
        "a number cannot be read",
        "Numbers are plain decimals without a sign, such as 12, 0.05 or 5e-4, with at most 12 "
        "significant digits, an exponent within ±6 and a value of at most 1,000,000,000.",
    ),
    "FCS007": (
        "the setting is unknown",
        "The settings are a closed list: these, each with its form.",
    ),
    "FCS008": (
        "the clause is unknown",
        "A phase has the clauses `drop R`, `patch P`, `batch N`, `full` or `auto`; `on online`, "
        "`on target` or `on both` binds to the clause before it.",
    ),
    "FCS009": (
        "a value has the wrong form",
        "The value is missing, is of another kind than the setting or clause takes, or more "
        "follows than it takes.",
    ),
    "FCS010": (
        "a value is out of range",
        "The message names the range. Numbers of tokens, images and pixels are whole.",
    ),
    "FCS011": (
        "a setting stands twice",
        "Each setting may stand once in a file. To replace one for a run, use --set.",
    ),
    "FCS012": (
        "the patch side does not divide the image side",
        "`patch P` cuts the image into (image/P)² tokens, so P must divide the image side without "
        "remainder and must not be smaller than the model's own patch. 240 has more divisors "
        "than 224: with `image 240;`, 16, 20, 24, 30, 40 and 48 are all valid.",
    ),
    "FCS013": (
        "there is no phase",
        "A schedule has at least one phase: `epochs 0-100: full;` is one without compression.",
    ),
    "FCS014": (
        "phases leave a gap or overlap",
        "Ranges are half-open, [a, b): the first starts at 0 and each next one where the one "
        "before it ends.",
    ),
    "FCS015": (
        "a range is empty",
        "A range ends after it starts: `epochs 0-60` is 60 epochs, the 60th not included.",
    ),
    "FCS016": (
        "units are mixed or missing",
        "All ranges of a file are in one unit: `epochs 0-60:`, `steps 0-5000:` or `0%-60%:`.",
    ),
    "FCS017": (
        "per cent and `length` need each other",
        "Ranges in per cent are shares of `length 100 epochs;` and end at 100%; with any other "
        "unit, `length` has no effect and is refused.",
    ),
    "FCS018": (
        "clauses of a phase contradict each other",
        "A clause may stand once for each encoder; `full` means no compression and `auto` chooses "
        "it, so both stand without `drop` and `patch`.",
    ),
    "FCS019": (
        "the method has no target encoder",
        "SimCLR trains one encoder, the online one: there is no momentum copy to compress.",
    ),
    "FCS020": (
        "a setting has no effect with this method",
        "A setting that would be ignored is refused, so that a file says only what is done.",
    ),
    "FCS021": (
        "the model is unknown",
        "`model` takes the name of a plain timm VisionTransformer with a class token, without a "
        "tag for pre-trained weights; nothing in a schedule can name weights to load.",
    ),
    "FCS022": (
        "the model and the image do not fit each other",
        "The image side must be a multiple of the model's patch side, the width a multiple of "
        "the number of heads (and of 4 with sin-cos positions).",
    ),
    "FCS023": (
        "a ramp is not complete",
        "`drop 0.75 -> 0.25 in 4` goes in 4 equal stairs, ends included; `patch 56 -> 16` walks "
        "the valid sides between in order, one stair each, and takes no `in`.",
    ),
    "FCS024": (
        "a phase is shorter than one step",
        "A phase, and each stair of a ramp, needs at least one step of `batch` images.",
    ),
    "FCS025": (
        "the batch is larger than the data",
        "A step takes `batch` different images, so there must be as many.",
    ),
    "FCS026": (
        "too many faults",
        f"After {MAX_FAULTS} faults the rest of the file is not checked.",
    ),
    "FCS027": (
        "a phase says nothing",
        "A phase names its compression; `full` is none.",
    ),
    "FCS028": (
        "`auto` and `choices` need each other",
        "In a phase `auto` the run itself chooses its compression, by measuring how wrong and how "
        "cheap the gradients of each setting are. It chooses from `choices drop 0 0.5 0.75 patch "
        "16 28 32 56;`: every share to drop with every patch side. Without an `auto` phase, "
        "`choices` has no effect and is refused.",
    ),
    "FCS101": (
        "compression grows later",
        "Late in training the gradient is small and its bias from compression weighs more, so "
        "strong compression belongs first and full sequences last.",
    ),
    "FCS102": (
        "the warm-up is longer than the run",
        "The learning rate would never reach its peak and never decay.",
    ),
    "FCS103": (
        "very few tokens",
        "With fewer than 8 tokens an encoder sees next to nothing of a view: the gradient is "
        "mostly noise, and the class token's share of the cost is no longer small.",
    ),
    "FCS104": (
        "the batch is small for this method",
        "MoCo-v3 and SimCLR contrast an image with the rest of its batch, and their heads' batch "
        "norm and DINO's centre are estimated on it: in a small one the task is too easy and the "
        "estimates are noisy. Write a larger `batch` (`lr 1.5e-4 per 256` follows it); where "
        "memory is too small for that, `accumulate 4` puts it through the backbone in parts, and "
        "torchrun shares it among devices.",
    ),
    "FCS105": (
        "patch scaling leaves almost nothing of the local views",
        "A local view of side S has max(2, round(S/P)) tokens per side: where that is 2, further "
        "patch scaling changes nothing but the global views.",
    ),
    "FCS106": (
        "`on both` with one encoder",
        "SimCLR has one encoder: `on both` means `on online` there.",
    ),
}


def severity_of(code: str) -> Severity:
    return "error" if code < "FCS100" else "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One fault: code, place, what is wrong and what is allowed instead."""

    code: str
    span: Span
    message: str
    help: str

    @property
    def severity(self) -> Severity:
        return severity_of(self.code)

    @property
    def file(self) -> str:
        return self.span.source.name

    @property
    def place(self) -> tuple[int, int]:
        """Line and column, both from 1."""
        return self.span.source.place(self.span.start)

    def to_json(self) -> dict[str, Any]:
        line, column = self.place
        return {
            "code": self.code,
            "severity": self.severity,
            "line": line,
            "column": column,
            "message": self.message,
            "help": self.help,
        }


class FaultError(Exception):
    """Raised where a statement cannot be taken further; caught and kept by a `Collector`."""

    def __init__(self, code: str, span: Span, message: str, help: str = "") -> None:
        super().__init__(message)
        self.diagnostic = Diagnostic(code, span, message, help)


class TooManyFaultsError(Exception):
    """Enough has been said; the rest of the file is not read."""


class Collector:
    """Keeps every fault found, in any order; `sorted` gives them in the order of the file."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    def add(self, code: str, span: Span, message: str, help: str = "") -> None:
        """Keep a fault.

        Raises:
            TooManyFaultsError: once there are more than anybody reads.
        """
        self.keep(Diagnostic(code, span, message, help))

    def keep(self, diagnostic: Diagnostic) -> None:
        self.found.append(diagnostic)
        if len(self.found) == MAX_FAULTS:
            message = f"{MAX_FAULTS} faults: the rest of the file is not checked"
            self.found.append(Diagnostic("FCS026", diagnostic.span, message, "mend these first"))
            raise TooManyFaultsError

    @property
    def failed(self) -> bool:
        return any(d.severity == "error" for d in self.found)

    def sorted(self) -> list[Diagnostic]:
        """Faults of the command line first, then the file's from top to bottom."""
        return sorted(
            self.found,
            key=lambda d: (not d.file.startswith("--"), d.span.start, d.code == "FCS026"),
        )


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word most like ``word``, or None where none is close."""
    if len(word) > 60:
        return None
    matches = difflib.get_close_matches(word.lower(), list(allowed), n=1, cutoff=0.6)
    return matches[0] if matches else None


def listed(words: Sequence[str], last: str = "or") -> str:
    """``a, b or c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def did_you_mean(word: str, allowed: Sequence[str], noun: str) -> str:
    """The help for an unknown word: the nearest one, else all of them."""
    match = nearest(word, allowed)
    if match is not None:
        return f"did you mean `{match}`?"
    return f"{noun}: {listed(allowed)}"


_WIDTH = 100


def render(diagnostic: Diagnostic) -> str:
    """A fault as text: place, code, message, the line with a caret under it, and help."""
    line, column = diagnostic.place
    text = diagnostic.span.source.line(line)
    left = max(0, column - 1 - _WIDTH // 2) if len(text) > _WIDTH else 0
    shown = clip(text[left : left + _WIDTH].rstrip("\r").replace("\t", " "), _WIDTH)
    length = min(diagnostic.span.end - diagnostic.span.start, len(shown) - (column - 1 - left))
    gutter = str(line)
    pad = " " * len(gutter)
    carets = " " * (column - 1 - left) + "^" * max(1, length)
    rows = [
        f"{clip(diagnostic.file, 200)}:{line}:{column}: "
        f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}",
        f" {gutter} | {shown}",
        f" {pad} | {carets}",
    ]
    if diagnostic.help:
        rows.append(f" {pad} = help: {diagnostic.help}")
    return "\n".join(rows)
