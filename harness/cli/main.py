"""The command `twinloss`, with all its commands."""

from __future__ import annotations

import typer

from twinloss.harness.cli.app import app


def main() -> None:
    """Run the command."""
    with_all_commands()()


def with_all_commands() -> typer.Typer:
    """Return the program, once the modules of its commands have registered themselves."""
    from twinloss.harness.cli import (  # noqa: F401, I001  they register themselves, in this order
        verify,
        list_losses,
        bench,
        check,
        zoo,
        audit,
        compare,
        diagnose,
        migration,
        reliability,
        warmup,
        report,
        explain,
    )  # isort: skip

    return app
