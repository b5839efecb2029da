"""The commands and examples of the README work, and its figures are those of the reports."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from twinloss import reference
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.commands.migration_examples import DIFFERENCES
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.system.toml import tomllib
from twinloss.harness.zoo import zoo

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
README = PAGES["README.md"]
COMMANDS = typer.main.get_command(with_all_commands()).commands


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands():
    """Yield all commands of the pages, in code blocks and in the text."""
    for page in PAGES.values():
        yield from (line.partition("#")[0].strip() for block in blocks(page, "sh") for line in block.splitlines())
        yield from re.findall(
            r"`((?:twinloss|make|pip|pytest) [^`]*)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        )


def called(program):
    return sorted({" ".join(line.split()) for line in commands() if line.split()[:1] == [program]})


def table(after):
    """Return the cells of the first table after a heading."""
    rows = README.partition(f"## {after}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in rows.splitlines() if line[:2] == "| "][
        2:
    ]


def rows_of(report):
    lines = [line for line in (ROOT / "reports" / report).read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


# --- Python ----------------------------------------------------------------------------------------------------------


def test_examples_run_and_print_the_documented_output(tmp_path):
    train, check, plugin, ranks = blocks(README, "python")
    said = []
    for script in (train, f"import torch\n{check}"):
        (tmp_path / "script.py").write_text(script)
        done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said += done.stdout.splitlines()
    fast, slow = map(float, said.pop(0).split())
    assert fast == pytest.approx(slow, rel=1e-6)
    expected = re.findall(r"#: (.*)", check)
    assert said == expected
    assert expected
    assert "twin_check(MyDice" in plugin
    assert "process_group=" in ranks


def test_example_of_the_plugin_fails_in_the_same_way(tmp_path):
    _, check, plugin, _ = blocks(README, "python")
    cls = check.partition("\n\n\n")[2].partition("\n\n\n")[0]
    (tmp_path / "test_mine.py").write_text(f"import torch\n\n\n{cls}\n\n\n{plugin}")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed" in done.stdout, done.stdout + done.stderr
    assert "the gradient is -1 times ours" in done.stdout


def test_example_of_ranks_runs_in_a_group_of_one(tmp_path):
    *_, ranks = blocks(README, "python")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        from twinloss.fast import DiceLoss

        names = {"torch": torch, "DiceLoss": DiceLoss}
        exec(ranks, names)
        x, labels = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 1, 4, 4))
        expected = DiceLoss(softmax=True, to_onehot_y=True, batch=True)(x, labels)
        torch.testing.assert_close(names["loss"](x, labels), expected)
    finally:
        torch.distributed.destroy_process_group()


# --- the shell -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", called("twinloss"))
def test_command_exists_with_these_arguments(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base.json", "new.json", "batch.npz", "README.md", "known.toml"):
        Path(name).write_text("")
    Path("old").mkdir()
    _, name, *arguments = shlex.split(line)
    assert name in COMMANDS
    if arguments:
        COMMANDS[name].make_context(name, arguments)


def test_unknown_command_or_option_would_fail():
    assert "verfiy" not in COMMANDS
    with pytest.raises(Exception, match="No such option: --sede"):
        COMMANDS["zoo"].make_context("zoo", ["--sede", "0"])


@pytest.mark.parametrize("line", ["twinloss list dice", "twinloss list diffusion"])
def test_command_runs(line):
    assert line in called("twinloss")
    done = subprocess.run([sys.executable, "-m", *line.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reduction" in done.stdout


def test_make_has_the_targets():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in called("make")}
    assert {"verify", "test"} <= named <= targets


def test_make_verify_installs_no_more_than_it_needs_and_compiles_nothing_ahead(tmp_path):
    def lines(target):
        command = ["make", "-n", target, f"VENV={tmp_path}/venv"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    verify, test = lines("verify"), lines("test")
    assert [line.split()[-1] for line in verify if "pip install" in line] == ['".[harness,real]"']
    assert not [line for line in verify if "warmup" in line]
    assert [line.split()[-1] for line in test if "pip install" in line] == ['".[harness,real]"', '".[dev]"']
    assert any("warmup" in line for line in test)


def test_extras_exist():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = {extra for line in called("pip") for found in re.findall(r"\[(.*?)\]", line) for extra in found.split(",")}
    assert named
    assert named <= extras


def test_paths_exist():
    for page in PAGES.values():
        for path in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (ROOT / path).exists(), path
        for path in re.findall(r"`((?:reference|fast|harness|tests)/[\w/]+\.py)`", page):
            assert (ROOT / path).exists(), path


# --- figures ---------------------------------------------------------------------------------------------------------


def defects(report):
    """Return the number of causes that a report calls a defect."""
    return sum(row[2] == "defect" for row in rows_of(report) if len(row) == 5)


def audited(report):
    """Return the number of losses that a report covers."""
    return sum(row[1].startswith("`") for row in rows_of(report))


def soak():
    """Return the marked cells of the soak: its outcome and its command."""
    outcome, command, _ = README.partition("<!-- twinloss soak -->")[2].partition("<!-- end -->")[0].split(" | ")
    return outcome.strip(), command.strip("`")


def test_figure_of_the_soak_is_that_of_its_report():
    outcome, command = soak()
    page = ROOT / "reports" / "soak.md"
    if page.exists():
        assert f"**{outcome}.**" in page.read_text()
        assert f"`{command}`" in page.read_text()
    else:
        assert outcome == "not run yet"


def agreeing(report):
    """Return how many of the audited functions agree in every dtype."""
    verdicts = {}
    for function, _, verdict, *_ in rows_of(report):
        verdicts[function] = verdicts.get(function, True) and verdict == "agrees"
    return f"{sum(verdicts.values())} of {len(verdicts)}"


def test_figures_are_those_of_the_reports():
    lines = json.loads((ROOT / "reports" / "reliability.json").read_text()).values()
    trials = [row["passed"] for line in lines for row in line["rows"]]
    killed = sum(any(row[2:7]) for row in rows_of("zoo.md"))
    expected = {
        "twinloss verify": f"{len(TWINS)} losses",
        "twinloss zoo": f"{killed} of {len(zoo())} killed",
        "twinloss reliability": f"{sum(trials)} of {len(trials)} passed",
        "twinloss bench": "each loss",
        "twinloss audit monai": f"{defects('errata.md')} defects in {audited('errata.md')} losses",
        "twinloss audit scipy": f"{agreeing('errata-scipy.md')} functions",
        "twinloss migration": f"{len(DIFFERENCES)} differences",
    }
    rows = {row[2].strip("`"): row[1] for row in table("Why trust it?")}
    assert rows.pop(soak()[1]).endswith(soak()[0])
    assert rows == expected


def names(cell):
    """Return what a cell of a table shows as code."""
    return re.findall(r"`(.*?)`", cell)


def found(text, files):
    """Return the files that hold a text."""
    return [path for path in ROOT.glob(files) if text in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("row", table("The losses"), ids=lambda row: row[3].strip("`"))
def test_row_of_a_loss_leads_to_everything_about_it(row):
    (cls,), (function,), (name,), (file,) = map(names, row[1:5])
    for path in (f"reference/{file}", f"fast/{file}", f"tests/reference/test_{file}", f"tests/fast/test_{file}"):
        assert (ROOT / path).exists(), path
    for form in (function, f"{function}_gradient"):
        assert f"def {form}(" in (ROOT / "reference" / file).read_text()
    assert f"class {cls}(" in (ROOT / "fast" / file).read_text()
    for device, cell in zip(("cpu", "gpu"), row[5:], strict=True):
        folder = ROOT / "fast" / "kernels" / device / "compiled"
        assert names(cell) or "wrapped loss" in cell
        assert all((folder / kernel).exists() for kernel in names(cell)), f"{names(cell)} in {folder}"
    assert len(found(f'name="{name}"', "harness/losses/*.py")) == 1
    assert found(f'@bug("{name}")', "harness/zoo/*.py")
    assert found(f"| {name} |", "reports/*.md")


def test_paths_of_the_map_exist():
    text = re.search(r"## Find your way\n(.*?)\n## ", README, re.DOTALL)[1].rpartition("```")[2]
    # A file without a folder is one of the compiled kernels or one of the tests for GPUs.
    folders = "", "fast/kernels/cpu/compiled", "fast/kernels/gpu/compiled", "tests/fast/gpu"
    for path in re.findall(r"`([\w/]+(?:/|\.py))`", text):
        assert any((ROOT / folder / path).exists() for folder in folders), path
    assert set(re.findall(r"test_\w+\.py", text)) >= {
        path.name for path in (ROOT / "tests" / "fast" / "gpu").glob("test_*.py")
    } - {"test_offline.py"}


@pytest.mark.parametrize(("row", "loss"), [(0, "DiceCELoss"), (1, "DC_and_CE_loss")], ids=["MONAI", "nnU-Net"])
def test_changed_import_has_the_same_names(row, loss):
    rows = [cells for cells in table("From MONAI or nnU-Net") if len(cells) == 4]
    assert len(rows) == 2
    origin, before, after, _ = rows[row]
    losses = []
    for line in (after, before):
        pytest.importorskip(line.strip("`").split()[1], reason=f"needs {origin}")
        names = {}
        exec(line.strip("`"), names)
        losses.append(names[loss])
    assert losses[0].__module__.startswith("twinloss.compat.")
    assert not losses[1].__module__.startswith("twinloss.")


@pytest.mark.parametrize("page", ["fast/README.md", "fast/kernels/README.md", "harness/README.md"])
def test_paths_of_the_map_of_a_wing_exist(page):
    wing = ROOT / page.partition("/")[0]
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    paths = re.findall(r"`([\w/]+(?:/|\.py))`", text)
    # A file without a folder is in one of those that the text is about.
    assert paths
    for path in paths:
        assert any(wing.rglob(path.rstrip("/"))) or (ROOT / path).exists(), f"{path} in {page}"


def test_map_of_the_tree_shows_every_package():
    drawn = re.search(r"## Find your way\n\n```\n(.*?)```", README, re.DOTALL)[1]
    shown, parent = [], ""
    for line in drawn.splitlines():
        parent = parent if line.startswith(" ") else ""
        shown += [parent + folder for folder in line[:26].split()]
        parent = parent or shown[-1]
    assert all((ROOT / folder).is_dir() for folder in shown)
    for wing in ("reference", "fast", "compat", "harness"):
        assert {f"{path.parent.relative_to(ROOT)}/" for path in ROOT.glob(f"{wing}/*/__init__.py")} <= set(shown)


def test_table_of_losses_is_complete():
    rows = table("The losses")
    listed = [(row[1].strip("`"), row[2].strip("`"), row[3].strip("`")) for row in rows]
    left = {twin.name for twin in TWINS} - {name for *_, name in listed}
    assert not left, f"add a row for {left} to the table of losses in README.md"
    for cls, function, name in listed:
        assert hasattr(reference, function)
        assert next(twin for twin in TWINS if twin.name == name).public.__name__ == cls
