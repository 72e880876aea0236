"""A run from its request to its backbone: everything is opened and checked before training."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim import AdamW

from fastcl_cli import __version__, distributed
from fastcl_cli.checkpoint import (
    RunHeader,
    copy_backbone,
    load_run,
    read_run_header,
    save_backbone,
    save_run,
    timm_line,
)
from fastcl_cli.config import RunConfig
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.source import open_split
from fastcl_cli.errors import (
    CheckpointError,
    ConfigError,
    InterruptError,
    NumericalError,
    RequeueError,
    RunFailedError,
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
from fastcl_cli.schedule.taken import taken_schedule
from fastcl_cli.train.auto import words
from fastcl_cli.train.device import Device, choose_device
from fastcl_cli.train.estimates import Estimates
from fastcl_cli.train.folder import RunFolder, refused_update, unwritable
from fastcl_cli.train.health import Watch
from fastcl_cli.train.inputs import InputMaker, decoded_side
from fastcl_cli.train.judge import open_judge
from fastcl_cli.train.loop import Meter, Stop, check_batches, run_steps
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.schedules import Schedules
from fastcl_cli.train.step import Trainer


class _StoppedError(Exception):
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
        config = request.schedule.config
        if config.data is None:
            raise ConfigError(
                "the schedule names no data", 'add `data "imagenet.beton";` or pass --data'
            )
        check_batches(request.schedule.plan, distributed.size())
        self.device: Device = choose_device(config.precision)
        # Built first: a method or model that cannot be trained should not cost a packing.
        self.method: Method = build_method(config, request.seed).to(self.device.device)
        with distributed.leader_first():
            self.data: Beton = open_split(
                config.data,
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
        self._planned = self.plan
        self._meter = Meter(self.plan, {})
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
        self._watch = Watch(self.plan.epochs, self.plan.in_epochs(self.config.warmup))
        judged = (self.config.knn, self.config.val)
        distributed.need_equal(repr((self._header(0), judged)), "the run")
        self.judge = open_judge(
            self.config,
            self.plan,
            self.data,
            request.seed,
            self.device,
            asked=request.schedule.names("knn"),
            announce=self._announce,
            progress=self._packing,
        )

    def _announce(self, text: str) -> None:
        self._emit(Notice(text))

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
            RequeueError, InterruptError: SIGTERM or SIGINT came; a checkpoint was written.
            NumericalError: the loss or a gradient is not finite; the last checkpoint is good.
        """
        stop = Stop()
        done = self._open_folder()
        self._emit(self.started(done))
        began = time.monotonic()
        torch.set_num_threads(self.device.threads)
        with stop.listening():
            try:
                done = self._steps(done, stop)
            except NumericalError as error:
                raise refused_update(error, self.folder) from error
        self._finish(done, stop, time.monotonic() - began)

    def _steps(self, done: int, stop: Stop) -> int:
        """Train from ``done`` updates on, with the decisions of `auto` phases between; returns the
        number of updates then."""
        trainer, auto = self.trainer(), self.estimates.auto
        while done < self.stop_step and not stop.agreed():
            if auto is not None and auto.due(done):
                try:
                    self._decide(done, stop)
                except _StoppedError:
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
                save=self._save,
                stop=stop,
            )
        if self._saved != done:
            self._save(done)
        return done

    def trainer(self) -> Trainer:
        """What does the steps."""
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
                raise _StoppedError

        with self._meter.paused():
            decision = self.estimates.decide(step, progress)
        self.plan = self._meter.plan = self.estimates.plan
        if self.judge is not None:
            self.judge.plan = self.plan
        if self._leads:
            self.folder.append_decision(decision.record)
            self.folder.write_plan(self.plan.to_json())
        self._emit(Decided(step, words(decision.rung), decision.record["why"], self.plan))

    @cached_property
    def _loader(self) -> DecodedLoader:
        """Of all that the run reads while it trains, for FFCV compiles for a second to make one."""
        assert self.config.decode is not None
        return DecodedLoader(self.data, self.config.decode, self.device.threads)

    def _open_folder(self) -> int:
        """Make or resume the folder; returns the number of updates done before."""
        request, folder = self._request, self.folder
        checkpoint = None
        if request.resume == "auto":
            checkpoint = folder.newest()
        elif request.resume != "never":
            checkpoint = Path(request.resume)
        distributed.need_equal(str(checkpoint), "the checkpoint to go on from")
        if checkpoint is None:
            if request.init_from is not None:
                copy_backbone(request.init_from, self.method)
            if self._leads:
                # A run that was stopped before its first checkpoint starts again.
                folder.create(overwrite=request.overwrite or request.resume == "auto")
                self._describe()
            distributed.wait()
            return 0
        if request.init_from is not None:
            raise UsageError("--init-from starts a new run and cannot go with a resumed one")
        return self._resume(checkpoint)

    def _resume(self, checkpoint: Path) -> int:
        header = read_run_header(checkpoint)
        differences = self._differences(header)
        if differences:
            raise CheckpointError(
                f"{checkpoint} is of another run: {'; '.join(differences)}",
                "resume with the options that the run was started with, or start a new one",
            )
        load_run(checkpoint, self.method, self.optimizer)
        try:
            self.estimates.restore(header.error, header.auto)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint}: its header's measurements are not of this run: {error}"
            ) from error
        self.plan = self.estimates.plan
        self._meter = Meter(self.plan, header.meter)
        self._saved = header.step
        distributed.wait()  # all have read it
        if self._leads:
            self._tidy(checkpoint, header)
        self._emit(Notice(f"resumed from {checkpoint} after {header.step} steps"))
        return header.step

    def _tidy(self, checkpoint: Path, header: RunHeader) -> None:
        """Drop from the folder what the resumed run will write again."""
        try:
            self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
            for newer in self.folder.saved():
                if newer > self.folder.checkpoint(header.step):
                    newer.unlink()
            self.folder.truncate(header.step)
        except OSError as error:
            raise unwritable(self.folder.path, error) from error
        if not self.folder.config.exists():
            self._describe()

    def _differences(self, header: RunHeader) -> list[str]:
        """What a checkpoint's run and this one do not share, for people."""
        here = self._header(header.step)
        changed = [
            f"{key} was {header.config.get(key)}, is {value}"
            for key, value in here.config.items()
            if header.config.get(key) != value
        ]
        if header.plan != here.plan and not changed:
            changed.append("the phases differ")
        if header.auto.get("policy") != here.auto.get("policy") and not changed:
            changed.append(f"decisions were by {header.auto.get('policy')}")
        if header.data != here.data:
            changed.append("the images differ")
        return changed

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
        )

    def _describe(self) -> None:
        config: dict[str, Any] = {
            "schema_version": 1,
            "fastcl": __version__,
            "torch": torch.__version__,
            "device": self.device.name,
            "processes": distributed.size(),
            "seed": self._request.seed,
            "data_digest": self.data.identity,
            "set": list(self._request.schedule.request.overrides),
            "config": self.config.to_json(),
        }
        self.folder.write_description(self._request.schedule.text, config, self.plan.to_json())

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
        if self._leads:
            self.folder.append_metrics(metrics)
        self._emit(StepLogged(metrics))
        for warning in self._watch.look(metrics, self.method.collapse_loss(metrics["batch"])):
            self._emit(Notice(warning))

    def _save(self, step: int) -> None:
        self._saved = step
        if not self._leads:
            return
        path = self.folder.checkpoint(step)
        try:
            save_run(path, self.method, self.optimizer, self.spec, self._header(step))
            self.folder.prune()
        except (OSError, SafetensorError) as error:
            raise RunFailedError(
                f"cannot save {path}: {error}",
                "the checkpoints before it are whole: make room, then `--resume auto`",
            ) from error
        self._emit(CheckpointSaved(step, path))

    def _finish(self, done: int, stop: Stop, seconds: float) -> None:
        path = self.folder.path
        distributed.wait()  # the last checkpoint is whole: now any process may end
        if stop.signal is not None and done < self.stop_step:
            message = f"stopped by {stop.signal.name} after {done} of {self.plan.steps} steps"
            help = f"continue with `--resume auto --out {path}`"
            kind = InterruptError if stop.signal is signal.SIGINT else RequeueError
            raise kind(message, help)
        if self._leads:
            save_backbone(self.folder.backbone, self.method.backbone, self.spec, done)
            if self.estimates.auto is not None:
                taken = taken_schedule(self._request.schedule, self.plan, path.name)
                write_text(self.folder.taken, taken)
        line = timm_line(self.folder.backbone, self.spec)
        self._emit(RunFinished(done, seconds, path, line))
