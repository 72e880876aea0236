"""A run from its request to its backbone: everything is opened and checked before training."""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

from fastcl_cli import __version__
from fastcl_cli.checkpoint import (
    RunHeader,
    copy_backbone,
    load_run,
    save_backbone,
    save_run,
    timm_line,
)
from fastcl_cli.config import RunConfig
from fastcl_cli.cost import units_per_image
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.source import once, open_split
from fastcl_cli.errors import (
    CheckpointError,
    InterruptError,
    NumericalError,
    RequeueError,
    UsageError,
)
from fastcl_cli.events import (
    CheckpointSaved,
    Decided,
    Emit,
    Measuring,
    Notice,
    Packing,
    RunFinished,
    RunStarted,
    StepLogged,
)
from fastcl_cli.extras import available_cores
from fastcl_cli.files import write_text
from fastcl_cli.methods.base import Method
from fastcl_cli.methods.build import BackboneSpec, build_method
from fastcl_cli.plan import Plan, default_log_interval, default_save_interval
from fastcl_cli.processes import distributed
from fastcl_cli.run_files import library_versions
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.schedule.taken import taken_schedule
from fastcl_cli.train.auto import words
from fastcl_cli.train.changes import Changes, phase_lines, place
from fastcl_cli.train.compiling import compile_method
from fastcl_cli.train.device import Device, choose_device
from fastcl_cli.train.estimates import Estimates
from fastcl_cli.train.folder import RunFolder, refused_update
from fastcl_cli.train.health import Watch
from fastcl_cli.train.inputs import InputMaker, decoded_side
from fastcl_cli.train.judge import open_judge
from fastcl_cli.train.loop import Meter, Stop, check_batches, run_steps
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.paths import data_of
from fastcl_cli.train.record import Record, writing
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.resume import accepted, to_resume
from fastcl_cli.train.schedules import Schedules
from fastcl_cli.train.sharding import place_method
from fastcl_cli.train.step import Trainer
from fastcl_cli.train.usage import Usage


class _GivenUpError(Exception):
    """A signal came while gradients were being measured."""


class Session:
    """A run that is ready to start: data open, plan resolved for it, network built.

    Nothing is written before `train`. Of several processes each makes its own; process 0 alone
    packs, writes the folder and emits events.

    Raises:
        FastclError: whatever is wrong with the request, in one line.
    """

    def __init__(self, request: RunRequest, emit: Emit) -> None:
        self._request = request
        self._leads = distributed.rank() == 0
        self._emit: Emit = emit if self._leads else lambda event: None
        self._announce = once(lambda text: self._emit(Notice(text)))
        config = request.schedule.config
        data = data_of(config)
        check_batches(request.schedule.plan, distributed.size())
        self.device: Device = choose_device(config.precision)
        if (remark := self.device.remark) is not None:
            self._announce(remark)
        # Built first: a method or model that cannot be trained should not cost a packing.
        method = build_method(config, request.seed)
        self.method: Method = place_method(method, self.device.device, shard=request.shard)
        with distributed.leader_first():
            self.data: Beton = open_split(
                data,
                "train",
                announce=self._announce,
                workers=available_cores(),
                progress=self._packing,
            )
        resolved = request.schedule.with_images(self.data.images)
        self.plan: Plan = resolved.plan
        self.config: RunConfig = replace(
            resolved.config,
            precision=self.device.precision,
            decode=config.decode or decoded_side(config.image, self.data),
        )
        self.spec = BackboneSpec.of(self.config, request.seed)
        self.optimizer: AdamW = build_optimizer(self.method, self.config.betas)
        self.folder = RunFolder(request.out)
        self._record = Record(self.folder, self._leads)
        self._planned = self.plan
        self._meter = Meter(self.plan, {})
        self._usage = Usage(self.config, self.device)
        self.estimates = Estimates(
            self.method,
            self.optimizer,
            self.config,
            self.plan,
            self.data,
            self.device,
            request.seed,
            request.policy,
            request.clock,
            lambda: self._loader,
        )
        self._saved: int | None = None
        self._changes: list[dict[str, Any]] = []
        self._pending: dict[str, Any] = {}
        self._watch = Watch(
            self.config.method, self.plan.epochs, self.plan.in_epochs(self.config.warmup)
        )
        judged = (self.config.knn, self.config.val)
        distributed.need_equal(repr((self._header(0), judged, request.shard)), "the run")
        self.judge = open_judge(
            self.config,
            self.plan,
            self.data,
            request.seed,
            self.device,
            announce=self._announce,
            progress=self._packing,
        )

    def _packing(self, done: int, total: int) -> None:
        self._emit(Packing(done, total))

    @property
    def stop_step(self) -> int:
        limit = self._request.max_steps
        return self.plan.steps if limit is None else min(limit, self.plan.steps)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.method.trained().values())

    def train(self) -> None:
        """Train, write checkpoints and the backbone, and tell the screen.

        Raises:
            RequeueError, InterruptError: SIGTERM, SIGUSR1 or SIGINT came; a checkpoint was written.
            NumericalError: the loss or a gradient is not finite; the last checkpoint is good.
            UsageError, CheckpointError: the folder, or what is in it, is not for this run.
            RunFailedError: the folder cannot be written any more, or memory is too small.
        """
        stop = Stop(self._announce)
        fresh = self._request.resume == "never" and not self._request.overwrite
        held = self.folder.held(empty=fresh, announce=self._announce)
        with stop.listening(), held if self._leads else nullcontext():
            done = self._open_folder()
            with self._life(done):
                self._emit(self.started(done))
                began = time.monotonic()
                self.device.begin()
                try:
                    done = self._steps(done, stop)
                except NumericalError as error:
                    raise refused_update(error, self.folder) from error
                self._finish(done, stop, time.monotonic() - began)

    def _life(self, step: int) -> AbstractContextManager[None]:
        """Goes into ``events.jsonl``: what goes on after ``step`` updates, and how it ends."""
        request = self._request
        return self._record.of_life(
            lambda: self._saved,
            arguments=list(request.arguments),
            title=Path(request.schedule.name).stem,
            step=step,
            stop_step=self.stop_step,
            init_from=None if request.init_from is None else str(request.init_from),
            log_every=request.log_every,
            device=self.device.name,
            precision=self.device.precision,
            processes=distributed.size(),
            parameters=self.parameters,
            images=self.data.images,
            versions=library_versions(),
        )

    def _steps(self, done: int, stop: Stop) -> int:
        """Train from ``done`` updates on, with the decisions of `auto` phases between; returns the
        number of updates then."""
        trainer, auto = self.trainer(), self.estimates.auto
        if self._pending and not self._log_pending(stop):
            return done
        while done < self.stop_step and not stop.agreed():
            if auto is not None and auto.due(done):
                try:
                    self._decide(done, stop)
                except _GivenUpError:
                    break
            end = self.stop_step if auto is None else auto.next_decision(done + 1)
            done = run_steps(
                trainer,
                self.plan,
                self._loader,
                self._request.seed,
                done,
                min(end, self.stop_step),
                meter=self._meter,
                error=self.estimates.error,
                judge=self.judge,
                log_every=self._request.log_every or default_log_interval(self.plan.steps),
                save_every=self._request.save_every or default_save_interval(self.plan.steps),
                log=self._log,
                log_later=self._put_off,
                save=self._save,
                stop=stop,
            )
        if self._saved != done:
            self._save(done)
        return done

    def trainer(self) -> Trainer:
        """What does the steps."""
        dropped = self.config.drop_path > 0
        if not self._request.shard:  # the code of a compiled block would not wait for its weights
            compile_method(
                self.method, self.plan, self.device, self._announce, dropped_paths=dropped
            )
        return Trainer(
            self.method,
            self.optimizer,
            Schedules(self.config, self.plan, self.method.momentum_lead),
            InputMaker(self.config, self.data, self._request.seed, self.device.device),
            self.device,
            self.config.clip,
        )

    def _decide(self, step: int, stop: Stop) -> None:
        def progress(done: int, total: int) -> None:
            self._emit(Measuring(done, total))
            if stop.agreed():
                raise _GivenUpError

        with self._meter.paused():
            decision = self.estimates.decide(step, progress)
        self.plan = self._meter.plan = self.estimates.plan
        if self.judge is not None:
            self.judge.plan = self.plan
        self._record.decision(decision.record, self.plan)
        self._emit(Decided(step, words(decision.rung), decision.record["why"], self.plan))

    @cached_property
    def _loader(self) -> DecodedLoader:
        """Of all that the run reads while it trains."""
        assert self.config.decode is not None
        return DecodedLoader(self.data, self.config.decode, self.device.loader_threads)

    def step_to_begin_at(self) -> int:
        """The number of updates that `train` would find done, without writing or loading anything.
        All processes must come here.

        Raises:
            UsageError, CheckpointError: as `train`, of the checkpoint to go on from.
        """
        checkpoint = to_resume(self._request, self.folder, self._announce)
        if checkpoint is None:
            return 0
        header, changes = self._accepted(checkpoint)
        self._announce(f"goes on from {checkpoint} after {header.step:,} steps")
        self._announce_changes(changes)
        return header.step

    def _open_folder(self) -> int:
        """Make or resume the folder; returns the number of updates done before."""
        request, folder = self._request, self.folder
        checkpoint = to_resume(request, folder, self._announce)
        if checkpoint is None:
            if request.init_from is not None:
                copy_backbone(request.init_from, self.method)
            if self._leads:
                # With --resume auto, one that was stopped before its first checkpoint.
                folder.create()
                self._describe()
                if request.resume == "auto":
                    self._announce(f"no checkpoint in {folder.path}: starting from the beginning")
            distributed.wait()
            return 0
        return self._resume(checkpoint)

    def _accepted(self, checkpoint: Path) -> tuple[RunHeader, Changes]:
        allowed, limit = self._request.allow_changes, self._request.max_steps
        header, changes = accepted(checkpoint, self._header(0), self.plan, allow_changes=allowed)
        if limit is not None and limit < header.step:
            raise UsageError(
                f"--max-steps {limit}: the run is after step {header.step:,} already",
                "it counts from the beginning of the run: give more, or leave it out",
            )
        return header, changes

    def _announce_changes(self, changes: Changes) -> None:
        if changes:
            self._emit(Notice(f"with these changes from there on:\n{changes.details()}"))

    def _resume(self, checkpoint: Path) -> int:
        header, changes = self._accepted(checkpoint)
        load_run(checkpoint, self.method, self.optimizer)
        try:
            # Sums and estimates of other settings would be mixed with those to come.
            self.estimates.restore({} if changes else header.error, header.auto)
            self.plan = self.estimates.plan
            self._meter = Meter(self.plan, {} if changes else header.meter)
            if header.pending and header.pending["step"] != header.step:
                raise ValueError("its log line is of another step")
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{checkpoint}: its header's measurements are not of this run: {error}"
            ) from error
        self._saved, self._pending = header.step, header.pending
        self._changes = [*header.changes, *([changes.record(header.step)] if changes else [])]
        distributed.wait()  # all have read it
        if self._leads:
            self.folder.rewind(header.step)
            if changes or not self.folder.config.exists():
                self._describe()
        self._emit(Notice(f"resumed from {checkpoint} after {header.step} steps"))
        self._announce_changes(changes)
        return header.step

    def _header(self, step: int) -> RunHeader:
        # Where the images lie may change between two halves of a run; what they are may not.
        # What is measured beside it changes nothing in it, nor does what saves memory.
        free = ("data", "val", "knn", "gradient_error", "accumulate")
        config = {k: v for k, v in self.config.to_json().items() if k not in free}
        config["seed"] = self._request.seed
        schedule = self._request.schedule.text
        return RunHeader(
            step,
            self._planned.hash(),
            config,
            self.data.identity,
            schedule,
            self._meter.state,
            {} if self.estimates.error is None else self.estimates.error.state,
            {} if self.estimates.auto is None else self.estimates.auto.state,
            phase_lines(self._planned),
            place(self._planned, step),
            self._changes,
            self._pending,
        )

    def _describe(self) -> None:
        config: dict[str, Any] = {
            "schema_version": 1,
            "fastcl": __version__,
            "torch": torch.__version__,
            "device": self.device.name,
            "processes": distributed.size(),
            "shard": self._request.shard,
            "seed": self._request.seed,
            "data_digest": self.data.identity,
            "set": list(self._request.schedule.request.overrides),
            "units_per_image": units_per_image(self.config, full_views(self.config)),
            "config": self.config.to_json(),
        }
        if self._changes:
            config["changes"] = self._changes
        self._record.description(self._request.schedule.text, config, self.plan)

    def started(self, first_step: int) -> RunStarted:
        """The event that opens the screen of a run which begins after ``first_step`` updates."""
        return RunStarted(
            title=Path(self._request.schedule.name).stem,
            folder=self.folder.path,
            plan=self.plan,
            step=first_step,
            stop_step=self.stop_step,
            device=self.device.name,
            precision=self.device.precision,
            parameters=self.parameters,
            images=self.data.images,
        )

    def _log(self, metrics: dict[str, Any]) -> None:
        segment = self.plan.at(metrics["step"] - 1)
        metrics |= self._usage.fields(segment, metrics["images_per_s"])
        self._record.metrics(metrics)
        self._emit(StepLogged(metrics))
        for warning in self._watch.look(metrics, self.method.collapse_loss(metrics["batch"])):
            self._record.note("warning", step=metrics["step"], text=warning)
            self._emit(Notice(warning))

    def _put_off(self, metrics: dict[str, Any]) -> None:
        """Keep a log line for the run that goes on from here, which measures its k-NN first."""
        self._pending = metrics

    def _log_pending(self, stop: Stop) -> bool:
        """Measure what the line that was put off lacks, and log it; false if that is given up."""
        knn: dict[str, Any] | None = {}
        if self.judge is not None:
            knn = self.judge.measure(self.method.backbone, stop.asked)
        if knn is not None:
            line, self._pending = self._pending | knn, {}
            self._log(line)
        return knn is not None

    def _save(self, step: int) -> None:
        self._saved = step
        path = self.folder.checkpoint(step)
        with writing(path):
            if self._leads:
                self.folder.sync_metrics()
            save_run(path, self.method, self.optimizer, self.spec, self._header(step))
            if self._leads:
                self.folder.prune()
        self._emit(CheckpointSaved(step, path))

    def _finish(self, done: int, stop: Stop, seconds: float) -> None:
        path = self.folder.path
        distributed.wait()  # the last checkpoint is whole: now any process may end
        if stop.signal is not None and (done < self.stop_step or self._pending):
            message = f"stopped by {stop.signal.name} after {done} of {self.plan.steps} steps"
            help = f"the same command goes on with `--resume auto --out {path}`"
            kind = InterruptError if stop.signal is signal.SIGINT else RequeueError
            raise kind(message, help)
        with writing(self.folder.backbone):
            save_backbone(self.folder.backbone, self.method.backbone, self.spec, done)
            if self._leads and self.estimates.auto is not None:
                taken = taken_schedule(self._request.schedule, self.plan, path.name)
                write_text(self.folder.taken, taken)
        line = timm_line(self.folder.backbone, self.spec)
        self._emit(RunFinished(done, self.plan.steps, seconds, path, line))
