"""Run the tests of `twinloss reliability` at small sizes, except those that measure a time."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinloss.harness import reliability
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.hunting.warmup import warm_up
from twinloss.harness.losses.catalogue import TWINS, find
from twinloss.harness.reliability import fuzz, int32_overflow, lines
from twinloss.harness.reliability.everyday import everyday
from twinloss.harness.reliability.registry import Row
from twinloss.harness.reliability.report import MEANING, ReportSection, as_markdown, load, update
from twinloss.harness.reliability.training import Curve, plot

APP = with_all_commands()
REPORTS = Path(__file__).parents[2] / "reports"
TIMED = ("imports", "first_calls", "large_volumes")
TRIALS = [trial for of_line in lines().values() for trial in of_line if trial.__name__ not in TIMED]
HELD, BROKEN = Row("a thing", "held", True), Row("a thing", "broke", False)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.__name__)
def test_trial_passes(trial):
    rows = list(trial(True))
    assert rows
    assert [row for row in rows if not row.passed] == []


def test_exception_in_a_test_is_a_failed_row(monkeypatch):
    def broken(name, index, quick):
        raise RuntimeError("no luck")

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, context):
            super().__init__(workers)

    monkeypatch.setattr(reliability, "_done", broken)
    monkeypatch.setattr(reliability, "ProcessPoolExecutor", Pool)
    rows, _ = reliability.run(["State"], True, lambda what: None)
    assert [row.passed for row in rows["State"]] == [False]
    assert "**FAILED**: the test raised RuntimeError: no luck" in as_markdown(
        {"State": ReportSection.now(rows["State"], True)}
    )


# --- the report ------------------------------------------------------------------------------------------------------


def test_every_section_has_a_description():
    assert set(MEANING) == set(lines())


def test_report_is_rendered_from_its_figures_at_full_size():
    sections = load(REPORTS)
    assert sections.keys() <= lines().keys()
    assert all(section.rows and not section.quick for section in sections.values())
    assert (REPORTS / "reliability.md").read_text() == as_markdown(sections)


def test_sections_that_run_again_are_replaced_and_others_stay(tmp_path):
    update(tmp_path, {"State": [BROKEN, HELD], "Fuzz": [BROKEN]}, False)
    update(tmp_path, {"Fuzz": [HELD]}, True)
    sections = load(tmp_path)
    assert list(sections) == ["Fuzz", "State"]  # as the report has them
    assert (sections["State"].rows, sections["State"].quick) == ([BROKEN, HELD], False)
    assert (sections["Fuzz"].rows, sections["Fuzz"].quick) == ([HELD], True)
    text = (tmp_path / "reliability.md").read_text()
    assert "| [Fuzz](#fuzz) | 1 | 0 |" in text
    assert "| [State](#state) | 2 | **1** |" in text
    assert "| Scale | not run yet |  |" in text


def test_losses_with_equal_results_share_a_row_and_others_have_columns():
    same = [Row("export", "the same value", True, loss) for loss in ("dice", "focal")]
    other = [Row("time", f"{n} s", n < 2, loss) for n, loss in enumerate(("dice", "focal", "lncc"), start=1)]
    text = as_markdown({"State": ReportSection.now([*same, *other], False)})
    assert "| dice, focal: export | the same value |" in text
    assert "| focal | **FAILED**: 2 s |" in text
    assert "| lncc | **FAILED**: 3 s |" in text


def test_a_failure_is_never_hidden_in_a_shared_row():
    rows = [Row("export", "another value", False, loss) for loss in ("dice", "focal")]
    assert as_markdown({"State": ReportSection.now(rows, False)}).count("**FAILED**: another value") == 2


def test_command_runs_the_named_sections_and_refuses_unknown_ones(tmp_path):
    update(tmp_path, {"Fuzz": [HELD]}, False)
    made = CliRunner().invoke(APP, ["reliability", "state", "--quick", "--out", str(tmp_path)])
    assert made.exit_code == 0
    assert load(tmp_path)["Fuzz"].rows == [HELD]
    assert len(load(tmp_path)["State"].rows) == len(TWINS)
    assert "with the small sizes of `--quick`" in (tmp_path / "reliability.md").read_text()
    assert not (tmp_path / "training.png").exists()
    refused = CliRunner().invoke(APP, ["reliability", "statues"])
    assert refused.exit_code == 2


# --- tests can fail --------------------------------------------------------------------------------------------------


def test_curves_that_rounding_explains_are_alike_and_others_are_not():
    peer = [1.0, 0.5, 0.25]
    others = [[1.0, 0.5 + 1e-4, 0.25 - 1e-5]]
    assert Curve("dice", [1.0, 0.5 - 2e-4, 0.25], 0, 1, peer, others).alike
    assert not Curve("dice", [1.0, 0.5 - 4e-4, 0.25], 0, 1, peer, others).alike


def test_curve_that_deviates_at_once_differs_even_if_rounding_explains_later_distances():
    peer = [1.0] * 20
    others = [[1.0] * 15 + [0.5] * 5]
    assert Curve("dice", [1.0] * 20, 0, 1, peer, others).alike
    assert not Curve("dice", [1.0, 1.0 + 1e-5, *[1.0] * 18], 0, 1, peer, others).alike


def test_a_loss_that_is_wrong_at_the_end_of_a_volume_is_seen_there(monkeypatch):
    ending = int32_overflow.ending
    monkeypatch.setattr(int32_overflow, "ending", lambda space, end: ending(space, end.flip(-1)))
    assert not any(row.passed for row in islice(int32_overflow.beyond_32_bits(True), 4))


def test_fuzz_tells_a_wrong_answer_from_the_reference(monkeypatch):
    dice = next(each for each in everyday() if each.name == "dice")
    forward = dice.twin.fast.forward
    monkeypatch.setattr(dice.twin.fast, "forward", lambda self, *arguments: 2 * forward(self, *arguments))
    found = fuzz.outcomes(dice, 40)
    assert any(what.startswith("value differs from the reference") for what in found)


def test_losses_with_kernels_of_their_own_compile_first():
    first = {twin.name for twin in TWINS if twin.compiles_first}
    assert {"dice", "dice_ce", "diffusion", "mutual_information"} < first < {twin.name for twin in TWINS}


def test_warm_up_compiles_for_the_losses_that_are_named():
    made = CliRunner().invoke(APP, ["warmup", "dice", "bending_energy"])
    assert made.exit_code == 0
    assert re.search(r"compiled \d+ kernels|all kernels were in the cache already", made.output)


def test_a_record_without_a_benchmark_is_told_to_have_one():
    with pytest.raises(ValueError, match="the record of diffusion has no benchmark"):
        warm_up(replace(find("diffusion"), benches=()), "float32")


def test_interruption_loses_no_finished_section(tmp_path, monkeypatch):
    def run(names, quick, tick):
        if names == ["State"]:  # which comes later
            raise KeyboardInterrupt
        return {"Fuzz": [HELD]}, []

    monkeypatch.setattr(reliability, "run", run)
    done = CliRunner().invoke(APP, ["reliability", "State", "Fuzz", "--out", str(tmp_path)])
    assert done.exit_code != 0
    assert load(tmp_path)["Fuzz"].rows == [HELD]


@pytest.mark.parametrize("count", [1, 4, 18])
def test_curves_of_any_number_of_losses_are_plotted(tmp_path, count):
    plot([Curve(f"loss {k}", [2.0, 1.0], 0, 1) for k in range(count)], tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000
