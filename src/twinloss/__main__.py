"""The command `twinloss`, which is also `python -m twinloss`."""

import sys

from twinloss import __version__

# The packages of the extra `harness`. `twinloss.reference` and `twinloss.fast` work without them.
HARNESS_ONLY = {"hypothesis", "pytest", "rich", "typer"}


def main() -> None:
    """Run the command line of the harness, or explain how to install what it needs."""
    if sys.argv[1:] == ["--version"]:
        print(f"twinloss {__version__}")
        return
    try:
        from twinloss.harness.cli.main import main as command

        command()
    except ModuleNotFoundError as error:
        if error.name not in HARNESS_ONLY:
            raise
        sys.exit(f'twinloss: no module {error.name}. Run: pip install "twinloss[harness]"')


if __name__ == "__main__":
    main()
