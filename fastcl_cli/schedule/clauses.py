"""Checks of one phase's clauses: what each encoder sees, and the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast, overload

from fastcl_cli.schedule import ast
from fastcl_cli.schedule.check import Settings
from fastcl_cli.schedule.diagnostics import Collector, FaultError, did_you_mean
from fastcl_cli.schedule.patch_sides import require_patch, valid_patches
from fastcl_cli.schedule.source import Span, clip
from fastcl_cli.schedule.values import drop_share
from fastcl_cli.schedule.words import MAX_STAIRS, SIDES


@dataclass(frozen=True, slots=True)
class Stairs(Sequence[Fraction]):
    """``length`` >= 2 equal stairs from ``start`` to ``end``, both included."""

    start: Fraction
    end: Fraction
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Fraction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Fraction]: ...
    def __getitem__(self, index: int | slice) -> Fraction | Sequence[Fraction]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.start + (self.end - self.start) * Fraction(index, self.length - 1)


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """A phase without faults. Each list of `drop` and `patch` is a ramp's stairs, or one value.

    With ``auto`` the lists say nothing: the compression comes from the setting `choices`.
    """

    node: ast.Phase
    start: Fraction
    end: Fraction
    batch: int | None
    batch_span: Span | None
    drop_online: Sequence[Fraction]
    drop_target: Sequence[Fraction]
    patch_online: Sequence[int]
    patch_target: Sequence[int]
    auto: bool

    @property
    def stairs(self) -> int:
        """The least number of segments that the phase needs."""
        ramps = (self.drop_online, self.drop_target, self.patch_online, self.patch_target)
        return max(map(len, ramps))


_ALONE = {"full": "means no compression", "auto": "chooses the compression"}
"""Clauses that stand without `drop` and `patch`, and why."""


class Clauses:
    """The clauses of one phase."""

    def __init__(self, phase: ast.Phase, settings: Settings, faults: Collector) -> None:
        self.phase = phase
        self.faults = faults
        self.method = settings.method
        self.image: int | None = settings.values.get("image")
        model = settings.values.get("model")
        self.model_patch: int | None = model.patch if model is not None else None
        self.drop: dict[str, Sequence[Fraction]] = {}
        self.patch: dict[str, Sequence[int]] = {}
        self.alone: dict[str, ast.Clause] = {}
        self.batch: int | None = None
        self.batch_span: Span | None = None

    def spec(self) -> PhaseSpec | None:
        before = len(self.faults.found)
        for clause in self.phase.clauses:
            try:
                self.read(clause)
            except FaultError as fault:
                self.faults.keep(fault.diagnostic)
        named = [c for c in self.phase.clauses if c.name.text != "batch"]
        if not named:
            message = "the phase does not say its compression"
            self.faults.add("FCS027", self.phase.range_span, message, "`full` is none")
        for name, node in self.alone.items():
            other = next((c.name.text for c in named if c.name.text != name), None)
            if other is not None:
                message = f"`{name}` {_ALONE[name]} and stands without `{clip(other)}`"
                self.faults.add("FCS018", node.span, message, f"remove `{name}` or `{clip(other)}`")
                break
        found = self.faults.found[before:]
        if any(d.severity == "error" for d in found) or self.model_patch is None:
            return None
        none, own = (Fraction(0),), (self.model_patch,)
        return PhaseSpec(
            self.phase,
            self.phase.start.value,
            self.phase.end.value,
            self.batch,
            self.batch_span,
            self.drop.get("online", none),
            self.drop.get("target", none),
            self.patch.get("online", own),
            self.patch.get("target", own),
            "auto" in self.alone,
        )

    def read(self, clause: ast.Clause) -> None:
        """Note what a clause says; the parser has reported unknown ones."""
        name = clause.name.text
        if name == "drop":
            self.keep(clause, self.drop, self.read_drop(clause), "online")
        elif name == "patch":
            self.keep(clause, self.patch, self.read_patch(clause), "both")
        elif name in _ALONE:
            extra = clause.amount or clause.ramp or clause.stairs or clause.side
            if extra is not None:
                message = f"`{name}` takes no value"
                raise FaultError("FCS009", extra.span, message, f"write `{name}`")
            if name in self.alone:
                message = f"`{name}` stands twice"
                raise FaultError("FCS018", clause.span, message, "remove one of them")
            self.alone[name] = clause
        elif name == "batch":
            self.read_batch(clause)

    def keep(
        self,
        clause: ast.Clause,
        kept: dict[str, Sequence[Fraction]] | dict[str, Sequence[int]],
        stairs: Sequence[Fraction] | Sequence[int],
        default: str,
    ) -> None:
        """Note a clause's value for the encoders that it is for."""
        side = clause.side.text if clause.side is not None else default
        if clause.side is not None and side not in SIDES:
            message = f"`{clip(side)}` is not an encoder"
            help = did_you_mean(side, SIDES, "encoders")
            raise FaultError("FCS009", clause.side.span, message, help)
        if clause.side is not None and self.method == "simclr" and side != "online":
            if side == "target":
                message = "method simclr has no target encoder"
                raise FaultError("FCS019", clause.side.span, message, "remove `on target`")
            message = "method simclr has one encoder: `on both` means `on online`"
            self.faults.add("FCS106", clause.side.span, message, "remove `on both`")
        for encoder in ("online", "target") if side == "both" else (side,):
            if encoder in kept:
                message = f"`{clause.name.text}` stands twice for the {encoder} encoder"
                other = "target" if encoder == "online" else "online"
                help = f"remove one, or write `on {other}` after it"
                raise FaultError("FCS018", clause.span, message, help)
            cast("dict[str, object]", kept)[encoder] = stairs

    def read_drop(self, clause: ast.Clause) -> Sequence[Fraction]:
        ends = [drop_share(number) for number in (clause.amount, clause.ramp) if number is not None]
        if clause.amount is None:
            raise FaultError(
                "FCS009", clause.name.span, "`drop` lacks a share", "such as `drop 0.5`"
            )
        if clause.ramp is None:
            self.refuse_stairs(clause)
            return (ends[0],)
        if clause.stairs is None:
            message = "the ramp does not say in how many stairs"
            help = "such as `drop 0.75 -> 0.25 in 4`"
            raise FaultError("FCS023", clause.ramp.span, message, help)
        count = clause.stairs.value
        if clause.stairs.percent or count.denominator != 1 or not 2 <= count <= MAX_STAIRS:
            help = f"a whole number from 2 to {MAX_STAIRS:,}"
            message = f"a ramp cannot have {clause.stairs.text} stairs"
            raise FaultError("FCS010", clause.stairs.span, message, help)
        self.refuse_level(clause, ends[0] == ends[1])
        return Stairs(ends[0], ends[1], int(count))

    def read_patch(self, clause: ast.Clause) -> Sequence[int]:
        if clause.amount is None:
            message = "`patch` lacks a side in pixels"
            raise FaultError("FCS009", clause.name.span, message, "such as `patch 32`")
        first = self.patch_side(clause.amount)
        if clause.ramp is None:
            self.refuse_stairs(clause)
            return (first,)
        last = self.patch_side(clause.ramp)
        if clause.stairs is not None:
            message = "a patch ramp has one stair for each valid side and takes no `in`"
            help = f"remove `in {clause.stairs.text}`"
            raise FaultError("FCS023", clause.stairs.span, message, help)
        self.refuse_level(clause, first == last)
        low, high = min(first, last), max(first, last)
        between = [p for p in self.valid_patches() if low <= p <= high]
        return tuple(between if first < last else reversed(between)) or (first, last)

    def refuse_stairs(self, clause: ast.Clause) -> None:
        if clause.stairs is not None:
            message = f"`in {clause.stairs.text}` belongs to a ramp"
            help = f"write `{clause.name.text} A -> B`, or remove it"
            raise FaultError("FCS023", clause.stairs.span, message, help)

    def refuse_level(self, clause: ast.Clause, level: bool) -> None:
        if level:
            assert clause.amount is not None
            message = "the ramp ends where it starts"
            help = f"write `{clause.name.text} {clause.amount.text}`"
            raise FaultError("FCS023", clause.span, message, help)

    def valid_patches(self) -> Sequence[int]:
        if self.image is None or self.model_patch is None:
            return ()
        return valid_patches(self.image, self.model_patch)

    def patch_side(self, number: ast.Number) -> int:
        if number.percent or number.value.denominator != 1 or number.value < 1:
            message = f"`patch` cannot be {number.text}"
            raise FaultError("FCS010", number.span, message, "a whole number of pixels")
        if self.image is not None and self.model_patch is not None:
            require_patch(number, self.image, self.model_patch)
        return int(number.value)

    def read_batch(self, clause: ast.Clause) -> None:
        extra = clause.ramp or clause.stairs or clause.side
        if clause.amount is None:
            message = "`batch` lacks a number"
            raise FaultError("FCS009", clause.name.span, message, "such as `batch 512`")
        if extra is not None:
            message = "`batch` takes one number, for the whole phase"
            raise FaultError("FCS009", extra.span, message, f"write `batch {clause.amount.text}`")
        value = clause.amount.value
        if clause.amount.percent or value.denominator != 1 or not 1 <= value <= 10**6:
            help = "a whole number from 1 to 1,000,000"
            raise FaultError(
                "FCS010", clause.amount.span, f"`batch` cannot be {clause.amount.text}", help
            )
        if self.batch is not None:
            raise FaultError("FCS018", clause.span, "`batch` stands twice", "remove one of them")
        self.batch = int(value)
        self.batch_span = clause.span
