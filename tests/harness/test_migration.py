"""Tests that the table of differences from MONAI shows what the losses return today."""

from pathlib import Path

import monai
import pytest
from typer.testing import CliRunner

from twinloss import fast
from twinloss.compat import monai as compat
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.commands import migration, migration_compat
from twinloss.harness.commands.migration_examples import DIFFERENCES

ROOT = Path(__file__).parents[2]
REPORT, README = ROOT / "reports" / "migration.md", ROOT / "README.md"
COMPAT = ROOT / "reports" / "compat-monai.md"
OLD = ["MONAI 0.5.3", "MONAI 1.5.0"]


@pytest.fixture(scope="module")
def rows():
    return migration.compare()


def kept():
    """The answers in the report, a dict for each difference."""
    lines = REPORT.read_text().splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("| twinloss |")]
    cells = [[line.strip("| ").split(" | ") for line in (lines[n], lines[n + 2])] for n in starts]
    return [dict(zip(names, answers, strict=True)) for names, answers in cells]


def test_report_shows_the_results_of_ours_and_of_the_installed_release(rows):
    assert [{name: told[name] for name in row.answers} for row, told in zip(rows, kept(), strict=True)] == [
        dict(row.answers) for row in rows
    ]
    assert f"MONAI {monai.__version__}" in rows[0].answers


def test_the_report_holds_every_difference_and_every_release(rows):
    text = REPORT.read_text()
    full = [migration.Told(row.difference, told) for row, told in zip(rows, kept(), strict=True)]
    assert migration.as_markdown(full) == text
    assert all(set(OLD) < set(told) for told in kept())


def test_the_readme_has_the_five_differences_that_bite(rows):
    full = [migration.Told(row.difference, told) for row, told in zip(rows, kept(), strict=True)]
    text = README.read_text()
    assert len(migration.that_bite(full)) == 5
    assert migration.put_into(text, migration.as_table(migration.that_bite(full))) == text


def test_every_listed_difference_exists_and_every_loss_is_covered():
    assert all(
        len({answer for name, answer in told.items() if name != "twinloss"} - {told["twinloss"]}) for told in kept()
    )
    classes = {name for name in fast.__all__ if name.endswith("Loss")} & set(vars(monai.losses))
    assert {each.loss for each in DIFFERENCES} == classes | {"all"}
    assert all(len(each.code.splitlines()) <= 3 for each in DIFFERENCES)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("FocalLoss()(x, g)", "FocalLoss(use_softmax=False)(x, g)"),
        ("DiceFocalLoss(softmax=True)(x, g)", "DiceFocalLoss(softmax=True, use_softmax=False)(x, g)"),
        ("DiffusionLoss()(x)", "DiffusionLoss(stencil='wide')(x)"),
        (
            "LocalNormalizedCrossCorrelationLoss(2)(x, g)",
            "LocalNormalizedCrossCorrelationLoss(2, denominator='clamp', smooth_nr=0.0)(x, g)",
        ),
        (
            "GeneralizedDiceFocalLoss(softmax=True)(x, g)",
            "GeneralizedDiceFocalLoss(softmax=True, use_softmax=False)(x, g)",
        ),
        (
            "MaskedLoss(DiceLoss(sigmoid=True))(x, g, g[:, :1])",
            "MaskedLoss(lambda x, g: DiceLoss(sigmoid=True)(x, g))(x, g, g[:, :1])",
        ),
        ("TverskyLoss(reduction='none')(x, g)", "TverskyLoss(reduction='none')(x, g).flatten(1)"),
    ],
)
def test_behaviour_that_the_table_ascribes_to_monai_is_monais(theirs, ours):
    x, g = "torch.rand(1, 2, 6, 7)", "torch.eye(2)[torch.arange(42) % 2].T.reshape(1, 2, 6, 7)"
    drawn = f"torch.manual_seed(0)\nx, g = {x}, {g}\n"
    assert migration.answer(drawn + theirs, monai.losses) == migration.answer(drawn + ours, fast)
    assert "no such" not in migration.answer(drawn + ours, fast)


def test_the_wide_stencil_is_what_older_releases_have():
    code, told = next((e.code, t) for e, t in zip(DIFFERENCES, kept(), strict=True) if "checkerboard" in e.here)
    wide = migration.answer(code.replace("Loss()", "Loss(stencil='wide')"), fast)
    assert wide == told["MONAI 0.5.3"] == told["MONAI 1.5.0"]


def test_a_release_in_a_folder_is_asked_by_itself(tmp_path):
    for package in ("monai", "monai/losses"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "monai" / "__init__.py").write_text("__version__ = '0.0'")
    release, answers = migration.elsewhere(tmp_path)
    assert release == "0.0"
    assert set(answers) == {"no such loss"}


def test_the_command_writes_report_and_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{migration.START}\nold\n{migration.END}\nafter\n")
    made = CliRunner().invoke(with_all_commands(), ["migration", "--out", str(tmp_path), "--readme", str(readme)])
    assert made.exit_code == 0, made.output
    assert (tmp_path / "migration.md").read_text().count("```python") == len(DIFFERENCES)
    assert (tmp_path / "compat-monai.md").read_text() == COMPAT.read_text()
    assert "old" not in readme.read_text()
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")


def test_the_report_of_the_drop_in_shows_the_results_of_today():
    assert migration_compat.as_markdown(migration_compat.compare()) == COMPAT.read_text()


def test_every_difference_of_the_drop_in_is_listed_and_exists():
    listed = {row.difference.code for row in migration_compat.compare()}
    for each in DIFFERENCES:
        answers = {migration.answer(each.code, library) for library in (compat, monai.losses)}
        assert (len(answers) > 1) == (each.code in listed), each.here
    assert all(len(set(row.answers.values())) == 2 for row in migration_compat.compare())


def test_a_file_without_marks_is_refused():
    with pytest.raises(ValueError, match="no <!-- twinloss migration -->"):
        migration.put_into("nothing here", "table")
