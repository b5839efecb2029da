"""The trials of `twinloss reliability`, at small sizes; what takes a time is measured by the command alone."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinloss.harness import reliability
from twinloss.harness.cli_reliability import app
from twinloss.harness.reliability import as_markdown, lines

REPORT = Path(__file__).parents[1] / "reports" / "reliability.md"
TIMED = ("imports", "first_calls", "large_volumes")
TRIALS = [trial for of_line in lines().values() for trial in of_line if trial.__name__ not in TIMED]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.__name__)
def test_trial_passes(trial):
    rows = list(trial(True))
    assert rows
    assert [row for row in rows if not row.passed] == []


def test_report_has_a_row_for_each_line():
    rows = [line.split(" | ") for line in REPORT.read_text().splitlines() if re.match(r"\| (?!line|-)", line)]
    assert {row[0].strip("| ") for row in rows} == set(lines())
    assert {row[-1].strip("| ") for row in rows} <= {"passed", "**FAILED**"}


def test_a_trial_that_raises_is_a_row_that_failed(monkeypatch):
    def broken(name, index, quick):
        raise RuntimeError("no luck")

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, context):
            super().__init__(workers)

    monkeypatch.setattr(reliability, "_done", broken)
    monkeypatch.setattr(reliability, "ProcessPoolExecutor", Pool)
    rows, _ = reliability.run(["State"], True, lambda what: None)
    assert [row.passed for row in rows["State"]] == [False]
    assert "the trial itself: RuntimeError: no luck | **FAILED** |" in as_markdown(rows)


def test_the_command_runs_the_lines_that_are_named_and_refuses_others(tmp_path):
    made = CliRunner().invoke(app, ["reliability", "state", "--quick", "--out", str(tmp_path)])
    assert made.exit_code == 0
    assert (tmp_path / "reliability.md").read_text().count("passed") == 12
    refused = CliRunner().invoke(app, ["reliability", "statues"])
    assert refused.exit_code == 2


def test_warm_up_compiles_for_the_losses_that_are_named():
    made = CliRunner().invoke(app, ["warmup", "dice", "bending_energy"])
    assert made.exit_code == 0
    assert "compiled" in made.output
