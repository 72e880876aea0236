"""How long a training step takes: counted from operations, or looked up in a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fastcl_cli.config import RunConfig
from fastcl_cli.cost import forward_flops, repeated_flops
from fastcl_cli.errors import ConfigError, UsageError
from fastcl_cli.estimate.devices import Device, find_device, is_hardware, nvidia_smi
from fastcl_cli.estimate.profile import Fixed, Measured, Profile
from fastcl_cli.estimate.profile_file import read_profile, stored_profiles
from fastcl_cli.extras import processor_name, same_processor
from fastcl_cli.plan import View
from fastcl_cli.schedule.load import Loaded
from fastcl_cli.schedule.resolve import full_views

Source = Literal["measured", "scaled", "analytic"]


@dataclass(frozen=True, slots=True)
class ImageTime:
    """Seconds that a step takes for each of its images, times the devices that share it;
    ``computing`` leaves waiting for data out; ``log`` is seconds of a log line."""

    seconds: float
    computing: float
    log: float
    source: Source


class Clock(Protocol):
    """Tells times on devices of one kind."""

    @property
    def device(self) -> str: ...

    @property
    def source(self) -> Literal["measured", "analytic"]: ...

    @property
    def ceiling(self) -> float | None:
        """Images a second that the loader delivers at most; None where that is not known."""

    @property
    def fixed(self) -> Fixed:
        """What a run takes besides its steps."""

    @property
    def words(self) -> str:
        """What the times rest on, in a few words."""

    def image(self, config: RunConfig, views: tuple[View, ...], batch: int, gpus: int) -> ImageTime:
        """What an image in such views takes where ``gpus`` devices share a ``batch``."""

    def assumptions(self, loaded: Loaded, gpus: int) -> list[str]:
        """Sentences on what the times rest on."""


@dataclass(frozen=True)
class AnalyticClock:
    """Operations (`fastcl_cli.cost`) at the share of a device's peak that is assumed; nothing but
    steps is counted. ``how`` says how the device was found."""

    hardware: Device
    how: str = ""

    source: Literal["analytic"] = "analytic"
    ceiling: None = None

    @property
    def fixed(self) -> Fixed:
        return Fixed(0, 0, 0)

    @property
    def device(self) -> str:
        return self.hardware.name

    @property
    def words(self) -> str:
        device = self.hardware
        return f"{device.name} at {device.utilisation:.0%} of {device.peak:g} TFLOP/s, analytic"

    def image(self, config: RunConfig, views: tuple[View, ...], batch: int, gpus: int) -> ImageTime:
        flops = forward_flops(config, views, batch).training + repeated_flops(config, views)
        seconds = flops / (self.hardware.peak * 1e12 * self.hardware.utilisation)
        return ImageTime(seconds, seconds, 0, "analytic")

    def assumptions(self, loaded: Loaded, gpus: int) -> list[str]:
        device = self.hardware
        return [
            f"{device.name} ({self.how}): {device.peak:g} TFLOP/s bf16 peak, of which "
            f"{device.utilisation:.0%} assumed",
            "analytic operation count (3 x online forward + target forward), not measured here",
            *(
                [f"{loaded.name}: `accumulate` repeats the online backbone's forward pass"]
                if loaded.config.accumulate > 1
                else []
            ),
        ]


@dataclass(frozen=True)
class ProfileClock:
    """Times of a profile. Views that it does not hold are taken to need what no compression needs,
    times the ratio of operations."""

    path: Path
    profile: Profile
    source: Literal["measured"] = "measured"

    @property
    def device(self) -> str:
        return self.profile.device

    @property
    def ceiling(self) -> float | None:
        loader = self.profile.loader
        return None if loader is None else loader.images_per_s.median

    @property
    def fixed(self) -> Fixed:
        return self.profile.fixed

    @property
    def words(self) -> str:
        return f"measured on {self.profile.device}"

    def image(self, config: RunConfig, views: tuple[View, ...], batch: int, gpus: int) -> ImageTime:
        found = self.profile.find(views, batch / gpus)
        if found is not None:
            return self._time(found, 1.0, "measured")
        full = self.profile.full(batch / gpus)
        flops = forward_flops(config, views, full.setting.batch).training
        whole = forward_flops(config, full_views(config), full.setting.batch).training
        return self._time(full, flops / whole, "scaled")

    def _time(self, measured: Measured, factor: float, source: Source) -> ImageTime:
        factor *= self.profile.processes / 1000
        return ImageTime(
            measured.image_ms * factor,
            measured.computing_ms * factor,
            measured.log_ms / 1000,
            source,
        )

    def assumptions(self, loaded: Loaded, gpus: int) -> list[str]:
        profile = self.profile
        versions = ", ".join(f"{name} {version}" for name, version in profile.versions.items())
        data = profile.data or "synthetic images"
        lines = [
            f"measured on {profile.device}, {profile.precision}, on {profile.date} with {data} "
            f"({versions}): {self.path}",
            "start-up, log lines and checkpoints at their default intervals are in; other work "
            "between steps is not",
        ]
        if gpus != profile.processes:
            lines.append(
                f"{gpus} devices taken to be {gpus / profile.processes:g} times as fast as "
                f"{profile.processes}: what they say to each other is not counted"
            )
        if profile.loader is None:
            lines.append("no loader was measured: waiting for data is not in")
        elif gpus > 1:
            lines.append("all devices fed by the loader of one machine like that one")
        return lines + self._of_schedule(loaded, gpus)

    def _of_schedule(self, loaded: Loaded, gpus: int) -> list[str]:
        """What is assumed for one schedule."""
        lines = [f"{loaded.name}: {text}" for text in self.profile.remarks(loaded.config)]
        missing = self.profile.missing(loaded.plan)
        if missing:
            numbers = ", ".join(str(i + 1) for i in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            lines.append(
                f"{loaded.name}: segments {numbers}{more} were not measured: taken as no "
                "compression times the ratio of operations; `fastcl bench` measures them"
            )
        used = {}
        for segment in loaded.plan.segments:
            share = segment.batch / gpus
            found = self.profile.find(segment.views, share) or self.profile.full(share)
            used[share] = found.setting.batch / self.profile.processes
        for share, batch in used.items():
            if share != batch:
                lines.append(
                    f"{loaded.name}: {share:g} images for each device taken to need as much each "
                    f"as the {batch:g} that were measured"
                )
        return lines


def choose_clocks(
    schedules: Sequence[Loaded], given: Sequence[Path], gpu: str, gpus: int, named: bool
) -> tuple[list[tuple[Loaded, Clock]], list[str]]:
    """The clock of each schedule, all of one device, and sentences on the choice.

    Profiles that are ``given`` must serve: a schedule that was ``named`` and that none of them
    applies to is an error, a built-in one is left out. Else stored profiles of the device that
    ``gpu`` asks for serve if every schedule has one, or none does.

    Raises:
        UsageError: there is no such device, or the profiles are of several.
        ConfigError: a given profile cannot be read, or none applies.
    """
    wanted = is_hardware(gpu)
    if given:
        profiles = [(path, read_profile(path)) for path in given]
        _check_hardware(profiles, gpu)
        return _given_clocks(schedules, profiles, gpus, named)
    found, notes = stored_profiles()
    stored = [(path, profile) for path, profile in found if wanted(profile.device)]
    chosen = [_best(stored, loaded, gpus) for loaded in schedules]
    measured = [(loaded, clock) for loaded, clock in zip(schedules, chosen, strict=True) if clock]
    if len(measured) == len(schedules):
        return [*measured], notes
    if measured:
        names = ", ".join(loaded.name for loaded, _ in measured)
        notes.append(
            f"measured on {measured[0][1].device}: {names}; estimate these alone to use it"
        )
    analytic = AnalyticClock(*find_device(gpu))
    if gpu.lower() == "auto" and nvidia_smi("name") is None:
        notes += _of_other_cores(found, schedules, gpus)
        file = schedules[0].name if len(schedules) == 1 else "FILE"
        notes.append(
            f"these are not times of this machine ({processor_name()}): `fastcl bench {file}` "
            "measures those, and `estimate` then takes them"
        )
    return [(loaded, analytic) for loaded in schedules], notes


def _of_other_cores(
    found: Sequence[tuple[Path, Profile]], schedules: Sequence[Loaded], gpus: int
) -> list[str]:
    """A line for each profile that would serve if this process ran on as many cores."""
    here = processor_name()
    same = [item for item in found if same_processor(item[1].device, here)]
    best = [_best(same, loaded, gpus) for loaded in schedules]
    used = {clock.path: clock.device for clock in best if clock is not None}
    return [
        f"not used, for it is of {device}, and this is {here}: {path}; --profile takes it"
        for path, device in used.items()
    ]


def _check_hardware(profiles: Sequence[tuple[Path, Profile]], gpu: str) -> None:
    names = sorted({profile.device for _, profile in profiles})
    if len(names) > 1:
        raise UsageError(
            f"the profiles are of different devices: {'; '.join(names)}", "estimate one at a time"
        )
    if gpu.lower() != "auto" and not is_hardware(gpu)(names[0]):
        raise UsageError(
            f"--gpu '{gpu}', but the profile is of {names[0]}", "leave --gpu out with --profile"
        )


def _given_clocks(
    schedules: Sequence[Loaded], profiles: list[tuple[Path, Profile]], gpus: int, named: bool
) -> tuple[list[tuple[Loaded, Clock]], list[str]]:
    clocks: list[tuple[Loaded, Clock]] = []
    left_out = []
    for loaded in schedules:
        clock = _best(profiles, loaded, gpus)
        if clock is not None:
            clocks.append((loaded, clock))
            continue
        path, profile = profiles[0]
        if named:
            raise ConfigError(
                f"{path} does not apply to {loaded.name}: "
                + "; ".join(profile.differences(loaded.config)),
                f"measure it: fastcl bench {loaded.name}",
            )
        left_out.append(loaded.name)
    if not clocks:
        raise ConfigError(
            f"{profiles[0][0]} applies to no built-in schedule", "name the FILE that it is for"
        )
    lines = [f"left out, for the profile does not apply: {', '.join(left_out)}"] if left_out else []
    return clocks, lines


def _best(
    profiles: Sequence[tuple[Path, Profile]], loaded: Loaded, gpus: int
) -> ProfileClock | None:
    """Of the profiles that apply: one of as many processes, else of one, that lacks the fewest
    segments; of equals the first."""

    def lack(item: tuple[Path, Profile]) -> tuple[int, int]:
        processes = item[1].processes
        rank = 0 if processes == gpus else 1 if processes == 1 else 2
        return rank, len(item[1].missing(loaded.plan))

    fitting = [item for item in profiles if not item[1].differences(loaded.config)]
    return ProfileClock(*min(fitting, key=lack)) if fitting else None
