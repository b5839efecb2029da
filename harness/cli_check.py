"""The commands `twinloss check`, `zoo`, `audit` and `compare`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from twinloss.harness.cli import (
    REPORT,
    Cluster,
    Dtype,
    Jobs,
    app,
    chosen_types,
    console,
    drawn_seed,
    progress,
    remembers,
    with_dask,
    writable,
)

if TYPE_CHECKING:
    from twinloss.harness.checking import Check

EPILOG = """
[bold]The target[/]: package.module:attr or path/file.py:attr; a class, an instance or a function, of torch, NumPy or
Numba. An option of the loss (see [bold]twinloss list[/]) is passed to the target if it has such a parameter. All other
options keep their defaults; use --option if your loss computes something else.

[bold]Examples[/]

twinloss check monai.losses:DiceLoss --as dice

twinloss check my/losses.py:FastDice --as dice --option softmax=True --map input=logits --rank 3

twinloss check my/kernel.py:dice --gradient my/kernel.py:dice_gradient --as dice     functions of arrays

twinloss check my/losses.py:FastDice --as dice --xfails known.toml     with known deviations

twinloss check my/losses.py:LabelDice --as dice --option softmax=True --labels-without-channel

[bold]Conventions[/]: papers leave open how to treat one channel where classes are expected, inputs without spatial
axes, soft targets, and targets of another dtype. A loss that differs only there passes, unless --strict is given.

[bold]Exit status[/]: 0 if the loss agrees, or differs only by rounding or a convention; 1 if it differs, a known
deviation no longer occurs, or --strict is given and it differs by rounding or a convention; 2 usage error, also if the
target cannot be called; 130 interrupted.
"""


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Parse texts of the form name=value."""
    made = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option} takes name=value, got {text!r}")
        made[name.strip()] = value.strip()
    return made


def value(text: str) -> Any:
    """Parse a Python literal; other text is returned as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@app.command(epilog=EPILOG)
def check(
    target: Annotated[str, typer.Argument(help="Your loss: package.module:attr or path/file.py:attr; see below.")],
    like: Annotated[str, typer.Option("--as", metavar="LOSS", help="The loss with the same formula.")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A fixed value of an option; repeat for several.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OURS=THEIRS", help="Your name of an option or argument; repeat for several."),
    ] = None,
    gradient: Annotated[
        str | None, typer.Option(metavar="TARGET", help="For a loss of arrays: the function that returns its gradient.")
    ] = None,
    value_only: Annotated[bool, typer.Option("--value-only", help="Do not judge the gradient.")] = False,
    rank: Annotated[list[int] | None, typer.Option(min=0, max=3, help="Spatial rank; repeat for several.")] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="The number of channels of your loss. Default: one and several.")
    ] = None,
    hard_targets: Annotated[
        bool, typer.Option("--hard-targets", help="Your loss takes only targets of 0 and 1.")
    ] = False,
    labels_without_channel: Annotated[
        bool, typer.Option("--labels-without-channel", help="Your loss takes labels (B, *S), not (B, 1, *S).")
    ] = False,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="Dtype under test; repeat for several. Default: float32, float64.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Cases per dtype.")] = 150,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draws. Default: random, and printed.")] = None,
    xfails: Annotated[Path | None, typer.Option(metavar="FILE", help="Known deviations, in TOML.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also fail if the loss differs only by rounding or a convention.")
    ] = False,
    report: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for report.json and a script for each counterexample.")
    ] = REPORT,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Hunt for an input on which your own loss differs from the reference."""
    folder = writable(report)
    from twinloss.harness.catalogue import UnknownLossError
    from twinloss.harness.checking import check as run
    from twinloss.harness.deviations import DeviationsError
    from twinloss.harness.loading import TargetError

    given = {name: value(text) for name, text in pairs(option, "--option").items()}
    with progress() as tick:
        try:
            made = run(
                target, like, options=given, names=pairs(names, "--map"), gradient=gradient, value_only=value_only,
                ranks=rank, channels=channels, hard_targets=hard_targets,
                labels_without_channel=labels_without_channel,
                dtypes=chosen_types(dtype, ("float32", "float64")), examples=examples,
                seed=drawn_seed(seed), xfails=xfails, strict=strict, tick=tick,
                processes=jobs or 1, cluster=with_dask(dask), remember=remembers(),
            )  # fmt: skip
        except (TargetError, UnknownLossError, DeviationsError) as error:
            raise typer.BadParameter(str(error)) from error
    tell(made, folder)
    raise typer.Exit(made.exit_code)


def tell(made: Check, folder: Path) -> None:
    """Print the table and the results in words, and write the files."""
    from twinloss.harness import report as reports
    from twinloss.harness.snippet import shortened

    console.print(
        reports.table(made, f"twinloss check {made.twin.fast.__name__} as {made.twin.name}, seed {made.seed}")
    )
    console.print(reports.LEGEND, style="dim", soft_wrap=True)
    if not made.twin.differentiable:
        console.print("The gradient was not judged: the reference's gradient was used instead.", style="yellow")
    if made.held:
        held = ", ".join(f"{name}={text}" for name, text in made.held.items())
        console.print(f"Options with a fixed value: {held}", style="dim", markup=False, soft_wrap=True)
    for text, style in story(made):
        console.print(text, style=style, markup=False, soft_wrap=True)
    worst = next((row for row in made.rows if row.counterexample and row.verdict == made.verdict), None)
    if worst and worst.counterexample:
        console.print("This script shows the failure, and fails until the loss is fixed:")
        console.print(Syntax(shortened(worst.counterexample.snippet), "python", word_wrap=True))
        console.print("To accept it as a known deviation, put this into a file for --xfails:")
        console.print(Syntax(worst.counterexample.xfail, "toml", word_wrap=True))
    for path in [*reports.write(made, folder), *write_conventions(made, folder)]:
        console.print(f"wrote {path}")


def write_conventions(made: Check, folder: Path) -> list[Path]:
    """Write for each convention a script that shows an example, and return the paths."""
    paths = []
    for name, found in made.conventions.items():
        words = "_".join("".join(c if c.isalnum() else " " for c in name).split())
        paths.append(folder / f"{made.twin.name}_convention_{words}.py")
        paths[-1].write_text(found.snippet, encoding="utf-8")
    return paths


def story(made: Check) -> list[tuple[str, str]]:
    """Return the results for the target as sentences, each with a style."""
    sentences = []
    for row in made.rows:
        if row.counterexample:
            what, style = ("differs", "red") if row.verdict == "fail" else ("right, but it loses digits", "yellow")
            sentences.append((f"{row.dtype}: {what}: {row.counterexample.message}", style))
        sentences += [(f"{row.dtype}: the check itself failed: {problem}", "red") for problem in row.problems]
        sentences += [
            (f"{row.dtype}: known: {reason} ({count} cases)", "dim") for reason, count in row.expected.items()
        ]
    from twinloss.harness.conventions import ours

    sentences += [
        (f"convention that papers leave open: {name} (ours: {ours(name)}): {found.message}", "cyan")
        for name, found in made.conventions.items()
    ]
    if made.relation:
        sentences.append((f"Overall: {made.relation}", "red"))
    sentences += [(f"no longer occurs: {each.reason}: remove it from the xfails file", "red") for each in made.stale]
    if made.options:
        agree = [probe.name for probe in made.options if probe.failed is None]
        failed, cases = made.options[0].failed, made.options[0].cases
        how, style = ("Differs in no further way with", "yellow") if failed else ("Agrees with", "green")
        sentences.append((f"{how}, in {cases} cases each: {', '.join(agree) or 'no option'}", style))
        sentences += [(f"Differs with {probe}", "red") for probe in made.options if probe.failed]
        broken = [probe for probe in made.laws if probe.failed]
        sentences += [(f"Breaks {probe.failed.message}", "red") for probe in broken if probe.failed]
        kept = len(made.laws) - len(broken)
        sentences.append((f"Keeps {kept} of {len(made.laws)} laws", "green" if not broken else "yellow"))
    return sentences


@app.command("zoo")
def show_zoo(
    names: Annotated[
        list[str] | None, typer.Argument(help="Mutants, or losses whose mutants to test; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for zoo.md.")] = None,
) -> None:
    """Test the harness on losses that are wrong on purpose, and show which judgement kills each."""
    folder = writable(out) if out else None
    from twinloss.harness.zoo import kills, zoo

    known = zoo()
    unknown = set(names or ()) - {name for mutant in known for name in (mutant.name, mutant.of)}
    if unknown:
        raise typer.BadParameter(f"the zoo has no {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in known if not names or {mutant.name, mutant.of} & set(names)]
    with progress() as tick:
        rows = kills.matrix(mutants, seed, tick)
    console.print(kills.table(rows))
    for judgement, alone in kills.only_killers(rows).items():
        console.print(f"only {judgement}: {', '.join(alone) or 'none'}", soft_wrap=True)
    alive = kills.alive(rows)
    console.print(f"{len(rows) - len(alive)} of {len(rows)} killed", style="red" if alive else "green")
    for name in alive:
        console.print(f"alive: {name}", style="red")
    if folder:
        (folder / "zoo.md").write_text(kills.as_markdown(rows, seed), encoding="utf-8")
        console.print(f"wrote {folder / 'zoo.md'}")
    raise typer.Exit(bool(alive))


@app.command()
def audit(
    library: Annotated[str, typer.Argument(help="monai, kornia or segmentation_models_pytorch.")],
    losses: Annotated[
        list[str] | None, typer.Argument(help="Our losses whose counterparts to audit; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for errata.md.")] = None,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Compare the losses of another library with the papers, option by option."""
    folder = writable(out) if out else None
    from twinloss.harness import audit as audits
    from twinloss.harness.shards import PROCESSES

    with progress() as tick:
        try:
            rows = audits.audit(library, losses or (), seed, tick, jobs or PROCESSES, with_dask(dask))
        except audits.LibraryError as error:
            raise typer.BadParameter(str(error)) from error
    made = Table("loss", "option", "verdict", "what", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    styles = {"differs": "red", "raises": "red", "not there": "dim"}
    for row in rows:
        made.add_row(row.loss, row.option, f"[{styles.get(row.verdict, 'green')}]{row.verdict}[/]", escape(row.what))
    console.print(made)
    if folder:
        path = folder / ("errata.md" if library == "monai" else f"errata-{library}.md")
        path.write_text(audits.as_markdown(library, rows, seed), encoding="utf-8")
        console.print(f"wrote {path}")


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="A report that twinloss verify --save wrote.")],
    new: Annotated[Path, typer.Argument(help="A later report of the same hunts.")],
    bits: Annotated[float, typer.Option(min=0, help="The accuracy, in bits, that a result may lose.")] = 1.0,
) -> None:
    """Show what got worse between two verifications; exit with 1 if anything did."""
    from twinloss.harness import ledger

    try:
        before, after = ledger.read(old), ledger.read(new)
    except ledger.LedgerError as error:
        raise typer.BadParameter(str(error)) from error
    if before.get("seed") != after.get("seed"):
        console.print(
            f"the seeds {before.get('seed')} and {after.get('seed')} differ, so the cases differ", style="yellow"
        )
    losses = ledger.compare(before, after, bits)
    made = Table("loss", "dtype", "data", "what", "old", "new", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for each in losses:
        made.add_row(each.loss, each.dtype, each.data, escape(each.what), each.old, each.new)
    console.print(made if losses else f"nothing got worse, in {len(before['rows'])} rows")
    raise typer.Exit(bool(losses))
