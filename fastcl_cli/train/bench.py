"""What training steps take on this machine: real steps of a real trainer, timed in turn.

Every setting is measured with one network, optimizer and loader, in rounds: each round times every
setting once, beginning with another one each time, so that the machine's drift hits all of them.
The learning rate is as good as 0, which changes no time and keeps the network where it began.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fastcl_cli import __version__
from fastcl_cli.checkpoint import RunHeader, save_run
from fastcl_cli.config import Decay, LearningRate, RunConfig
from fastcl_cli.cost import forward_flops
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.order import epoch_order
from fastcl_cli.errors import UsageError
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
from fastcl_cli.methods.build import BackboneSpec, build_method
from fastcl_cli.plan import Plan, Position, Segment, advance
from fastcl_cli.processes import distributed
from fastcl_cli.train.ahead import prepared_ahead
from fastcl_cli.train.compiling import compile_method
from fastcl_cli.train.device import Device, choose_device
from fastcl_cli.train.inputs import InputMaker, decoded_side
from fastcl_cli.train.loop import Meter, batches, check_batches
from fastcl_cli.train.memory import PeakMemory
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.schedules import Schedules
from fastcl_cli.train.step import Trainer
from fastcl_cli.train.synthetic import SyntheticImages, SyntheticLoader
from fastcl_cli.units import time_words

Progress = Callable[[int, int], None]

_SEED = 0
_LONG = 10**7
"""Steps of a segment of the plan that is measured with: more than are ever taken."""
_LEAST_STEPS, _MOST_STEPS = 3, 200
"""Of one timing, however long or short they are; a single step where that alone takes longer than
was asked for."""
_FASTEST_LOADER = 200_000
"""Images a second: a list of so many lasts as long as the loader is timed."""


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure: a step of each of the ``segments`` of a schedule that ``config`` is of, for
    about ``seconds`` in each of ``repetitions`` rounds. Checkpoints are written to ``scratch`` and
    removed."""

    config: RunConfig
    segments: tuple[Segment, ...]
    repetitions: int
    seconds: float
    scratch: Path


@dataclass(frozen=True, slots=True)
class _Timing:
    """Means of one timing, in seconds: of a step, of its wait for data, and of the wait for a
    stream's first batch; ``log`` of a log line."""

    step: float
    wait: float
    first: float
    log: float


class Bench:
    """A trainer whose plan holds one endless segment for each setting.

    Args:
        request: what to measure.
        data: the images to train on, or None for synthetic ones.

    Attributes:
        plan, loader, trainer: as a run has them; the plan's segments are the settings.

    Raises:
        ConfigError: the model or the precision cannot be had, or processes cannot share a batch.
    """

    def __init__(self, request: BenchRequest, data: Beton | None) -> None:
        self._request, self._data = request, data
        self._device: Device = choose_device(request.config.precision)
        images = SyntheticImages() if data is None else data
        self._config = replace(
            request.config,
            lr=LearningRate(1e-12, None),
            decay=Decay("constant", 1.0, 0.0),
            # The prototypes stand still in the first epoch only.
            freeze_last_layer=0.0,
            precision=self._device.precision,
            decode=request.config.decode or decoded_side(request.config.image, images),
        )
        assert self._config.decode is not None
        self._decode: int = self._config.decode
        self.plan = _endless(self._config, request.segments, images.images)
        check_batches(self.plan, distributed.size())
        method = build_method(self._config, _SEED).to(self._device.device)
        self._device.begin()
        self._began = time.perf_counter()
        self.loader: DecodedLoader | SyntheticLoader = (
            SyntheticLoader(self._decode)
            if data is None
            else DecodedLoader(data, self._decode, self._device.loader_threads)
        )
        self.trainer = Trainer(
            method,
            build_optimizer(method, self._config.betas),
            Schedules(self._config, self.plan, method.momentum_lead),
            InputMaker(self._config, images, _SEED, self._device.device),
            self._device,
            self._config.clip,
        )
        self._memory = PeakMemory(self._device.device)
        # Where in the plan each setting goes on, and the most memory that it was seen to take: a
        # recorded step allocates nothing.
        self._next = [segment.first_step for segment in self.plan.segments]
        self._peaks: list[int | None] = [None] * len(self._next)

    def compile(self, announce: Callable[[str], None]) -> None:
        """Compile what all settings run, where a run does so."""
        dropped = self._config.drop_path > 0
        method = self.trainer.method
        compile_method(method, self.plan, self._device, announce, dropped_paths=dropped)

    def measure(self, announce: Callable[[str], None], progress: Progress) -> Profile:
        """Measure everything.

        Args:
            announce: called with a line for each setting that does not fit into memory, and with
                how long the rounds will take once that is known.
            progress: called with timings done and their total.

        Raises:
            UsageError: training without compression does not fit into memory (with several
                processes: any setting).
        """
        self.compile(announce)
        settings, rounds = len(self._request.segments), self._request.repetitions
        total = settings * (1 + rounds)
        steps, start_s = self._warm_up(announce, lambda done: progress(done, total))
        timings: dict[int, list[_Timing]] = {index: [] for index in steps}
        rates: list[float] = []
        saves: list[float] = []
        for round_ in range(rounds):
            since = time.perf_counter()
            turn = round_ % len(steps)
            order = [*steps][turn:] + [*steps][:turn]
            for place, index in enumerate(order, 1):
                timings[index].append(self._time(index, steps[index]))
                progress(settings * (1 + round_) + place, total)
            if isinstance(self.loader, DecodedLoader):
                rates.append(self._loader_rate(self.loader))
            saves.append(self._save_seconds())
            if round_ == 0 and rounds > 1:
                taken = time.perf_counter() - since
                rest = time_words(taken * (rounds - 1))
                announce(f"a round takes {time_words(taken)}: about {rest} more")
        fixed = Fixed(start_s, _stream_seconds(timings), statistics.median(saves))
        return self._profile(timings, rates, fixed)

    def _warm_up(
        self, announce: Callable[[str], None], progress: Callable[[int], None]
    ) -> tuple[dict[int, int], float]:
        """Steps of each setting that take about as long as asked, and the start-up's seconds."""
        steps: dict[int, int] = {}
        start_s = 0.0
        for index, segment in enumerate(self.plan.segments):
            try:
                timing = self._time(index, 1)
                begun = time.perf_counter() - self._began
                slow = distributed.greatest(int(timing.step > self._request.seconds))
                if not slow:
                    timing = self._time(index, _LEAST_STEPS)
            except torch.OutOfMemoryError as error:
                if distributed.size() > 1:  # the others wait for a step that does not come
                    raise _too_large(segment) from error
                torch.cuda.empty_cache()
                announce(f"does not fit into memory, left out: {describe(segment)}")
                continue
            if not steps:
                # Of what has passed, that which a run counts elsewhere.
                stream = 0.0 if slow else timing.first - timing.wait  # else the start's own
                start_s = max(0.0, begun - (2 * timing.step + stream + timing.log))
            wanted = round(self._request.seconds / timing.step)
            least = 1 if slow else _LEAST_STEPS
            # The same number in all processes, which step together.
            steps[index] = distributed.greatest(min(max(least, wanted), _MOST_STEPS))
            progress(index + 1)
        patch = self._config.model.patch
        if not any(is_full(self.plan.segments[index].views, patch) for index in steps):
            raise _too_large(self.plan.segments[-1])
        return steps, start_s

    def _time(self, index: int, steps: int) -> _Timing:
        """Time ``steps`` steps of a setting, after those that are not counted."""
        first = self._next[index]
        counted = first + self._uncounted
        end = self._next[index] = counted + steps
        meter = Meter(self.plan, {})
        waits: list[float] = []
        first_waits: list[float] = []
        computing = 0.0
        self._memory.reset()
        # Longer than what is timed, so that the loader is at work until the end.
        source = batches(self.plan, self.loader, _SEED, first, first + _LONG // 2)
        with prepared_ahead(source, self.trainer.inputs) as ahead:
            since = time.perf_counter()
            for step, segment, batch in ahead:
                arrived = time.perf_counter()
                result = self.trainer.step(step, segment.views, batch)
                if step + 1 in (counted, end):
                    self._synchronise()
                done = time.perf_counter()
                meter.add(segment, result, arrived - since)
                begins = step == first or self.plan.position(step).offset == 0
                (first_waits if begins else waits).append(arrived - since)
                computing += done - arrived if step >= counted else 0.0
                if step + 1 == end:
                    break
                since = time.perf_counter()
        if (memory := self._memory.bytes()) is not None:
            self._peaks[index] = max(memory, self._peaks[index] or 0)
        since = time.perf_counter()
        meter.line(step + 1, segment, result)
        log = time.perf_counter() - since
        wait = statistics.fmean(waits) if waits else 0.0
        return _Timing(computing / steps + wait, wait, statistics.fmean(first_waits), log)

    @property
    def _uncounted(self) -> int:
        return self.trainer.differentiated.settling

    def _synchronise(self) -> None:
        if self._device.device.type == "cuda":
            torch.cuda.synchronize()

    def _loader_rate(self, loader: DecodedLoader) -> float:
        """Images a second that the loaders of all processes deliver while nothing else is done."""
        batch = max(s.batch for s in self._request.segments) // distributed.size()
        seconds = self._request.seconds
        order = epoch_order(self.plan.images, _SEED, 0)
        order = np.resize(order, 4 * batch + round(_FASTEST_LOADER * seconds))
        distributed.wait()
        with loader.stream(order, batch) as stream:
            next(stream)
            since, taken, count = time.perf_counter(), 0.0, 0
            while taken < seconds and (decoded := next(stream, None)) is not None:
                count += len(decoded.images)
                taken = time.perf_counter() - since
        return count / taken * distributed.size()

    def _save_seconds(self) -> float:
        header = RunHeader(0, self.plan.hash(), self._config.to_json(), "", "", {}, {}, {})
        spec = BackboneSpec.of(self._config, _SEED)
        if distributed.rank() > 0:
            return 0.0
        try:
            with TemporaryDirectory(dir=self._request.scratch) as folder:
                path = Path(folder) / "bench.safetensors"
                since = time.perf_counter()
                save_run(path, self.trainer.method, self.trainer.optimizer, spec, header)
                return time.perf_counter() - since
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"{self._request.scratch}: cannot be written to: {reason}") from error

    def _profile(
        self, timings: Mapping[int, Sequence[_Timing]], rates: Sequence[float], fixed: Fixed
    ) -> Profile:
        return Profile(
            device=self._device.hardware,
            precision=self._device.precision,
            processes=distributed.size(),
            versions={
                "fastcl": __version__,
                "torch": torch.__version__,
                **{name: version(name) for name in ("timm", "ffcv")},
            },
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            repetitions=self._request.repetitions,
            data=None if self._data is None else self._config.data,
            images=self.plan.images,
            memory_kind=self._memory.kind,
            workload=Workload.of(self._config),
            recipe=Recipe.of(self._config),
            measured=tuple(self._measured(index, times) for index, times in timings.items()),
            loader=Loader(Spread.of(rates), self._decode) if rates else None,
            fixed=fixed,
        )

    def _measured(self, index: int, timings: Sequence[_Timing]) -> Measured:
        segment = self.plan.segments[index]
        flops = forward_flops(self._config, segment.views, segment.batch).training
        return Measured(
            Setting(segment.views, segment.batch, segment.online, segment.target),
            Spread.of([1000 * t.step for t in timings]),
            1000 * statistics.median(t.wait for t in timings),
            1000 * statistics.median(t.log for t in timings),
            self._peaks[index],
            flops * segment.batch,
        )


def describe(segment: Segment) -> str:
    """A setting in a line."""
    tokens = segment.views[0].online
    return f"{tokens.kept} of {tokens.grid**2} tokens of {tokens.patch} px, batch {segment.batch:,}"


def _too_large(segment: Segment) -> UsageError:
    return UsageError(
        f"does not fit into memory: {describe(segment)}",
        f"measure with fewer images for each device: --set batch={max(1, segment.batch // 2)}",
    )


def _endless(config: RunConfig, segments: Sequence[Segment], images: int) -> Plan:
    """A plan in which each of ``segments`` lasts for ever, each from the start of the data."""
    start = Position(0, 0)
    endless = tuple(
        replace(segment, first_step=i * _LONG, end_step=(i + 1) * _LONG, position=start)
        for i, segment in enumerate(segments)
    )
    end = advance(start, segments[-1].batch, _LONG, images)
    return Plan(config.method, "steps", Fraction(len(endless) * _LONG), images, endless, end)


def _stream_seconds(timings: Mapping[int, Sequence[_Timing]]) -> float:
    """How much longer the first batch of a stream is waited for than others."""
    more = [t.first - t.wait for times in timings.values() for t in times]
    return max(0.0, statistics.median(more))
