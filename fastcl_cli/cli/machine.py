"""The command on the machine: doctor."""

from __future__ import annotations

import typer

from fastcl_cli.cli.options import Json


def doctor(as_json: Json = False) -> None:
    """Say whether this machine can train, and what would mend it: exit 0 if it can, 1 if not."""
    from fastcl_cli.ui import doctor as view

    raise typer.Exit(view.run(as_json))
