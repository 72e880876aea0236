"""`fastcl run`: from its options to a session with a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcl_cli.errors import UsageError
from fastcl_cli.extras import need_train
from fastcl_cli.loggers.attach import LoggerName, attached, make_loggers, need_loggers
from fastcl_cli.processes.launchers import place
from fastcl_cli.schedule import Loaded, load
from fastcl_cli.ui.console import stdout
from fastcl_cli.ui.plan_table import print_plan
from fastcl_cli.ui.processes import must_launch, need_several, processes, requeued
from fastcl_cli.ui.screen import Ui, open_screen


def run(
    schedule: str,
    *,
    out: Path | None,
    data: str | None,
    settings: Sequence[str],
    seed: int,
    resume: str,
    init_from: Path | None,
    overwrite: bool,
    allow_changes: bool,
    max_steps: int | None,
    save_every: int | None,
    log_every: int | None,
    gpus: int | None,
    shard: bool,
    dry_run: bool,
    ui: Ui | None,
    loggers: Sequence[LoggerName],
    arguments: Sequence[str],
) -> int:
    """Train as a schedule says; the options are those of the command, whose ``arguments`` every
    process gets where it starts several.

    Returns:
        the exit status.

    Raises:
        FastclError: see `Session`.
    """
    if overwrite and resume != "never":
        raise UsageError("--overwrite and --resume contradict each other", "give one of them")
    if allow_changes and resume == "never":
        raise UsageError("--allow-changes is for a run that is resumed", "give --resume, too")
    if shard:
        need_several(gpus)

    def checked() -> tuple[Loaded, Path]:
        """The schedule and the run's folder, where nothing is wrong that shows without torch."""
        loaded = load(schedule, overrides=settings, data=data)
        folder = out or Path("runs") / Path(loaded.name).stem
        need_train()
        need_loggers(loggers)
        if place() is None:  # else the others would wait for a process that ends here
            from fastcl_cli.train.paths import need_paths

            fresh = resume == "never" and not overwrite
            need_paths(loaded.config, folder, resume=resume, init_from=init_from, fresh=fresh)
        return loaded, folder

    if must_launch(gpus, schedule):
        checked()
        from fastcl_cli.processes.launch import launch

        assert gpus is not None
        return launch(arguments, gpus)
    with processes(), requeued():
        loaded, folder = checked()
        from fastcl_cli.processes import distributed
        from fastcl_cli.train.request import RunRequest
        from fastcl_cli.train.session import Session

        request = RunRequest(
            loaded,
            out=folder,
            seed=seed,
            resume=resume,
            init_from=init_from,
            overwrite=overwrite,
            allow_changes=allow_changes,
            max_steps=max_steps,
            save_every=save_every,
            log_every=log_every,
            shard=shard,
            arguments=tuple(arguments),
        )
        leads = distributed.rank() == 0
        # Made before the screen takes the terminal: W&B may ask who is there.
        made = make_loggers(loggers) if leads and not dry_run else []
        with (
            open_screen(("plain" if dry_run else ui) if leads else "none") as screen,
            attached(made, screen) as emit,
        ):
            session = Session(request, emit)
            if not dry_run:
                session.train()
                return 0
            begin = session.step_to_begin_at()  # which all processes agree on
            if leads:
                print_plan(stdout(), loaded.name, session.plan, session.config)
                emit(session.started(begin))
    return 0
