"""Tests of the soak: the results of many seeds, and the figure in the README."""

import json
import re

import pytest
from typer.testing import CliRunner

from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.commands import soak
from twinloss.harness.commands.verify import Verification, verify
from twinloss.harness.hunting import parallel
from twinloss.harness.hunting.hunt import Counterexample, Hunt, hunt
from twinloss.harness.losses.catalogue import find

HOW = ("bending_energy", "--dtype", "float32", "--no-real", "--examples", "5", "--seed", "7")


def run(*arguments):
    return CliRunner().invoke(
        with_all_commands(), ["verify", *arguments], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a soak of three seeds writes."""
    made = tmp_path_factory.mktemp("soak")
    (made / "README.md").write_text(f"| a | {soak.START} not run {soak.END} |\n| b | c |\n")
    done = run(*HOW, "--repeat", "3", "--jobs", "1", "--report", str(made), "--out", str(made),
               "--readme", str(made / "README.md"))  # fmt: skip
    assert done.exit_code == 0, done.output
    return made


def rows(report):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in report["rows"]]


def test_each_seed_is_hunted_as_in_a_run_of_its_own(folder, tmp_path):
    report = json.loads((folder / "report.json").read_text())
    assert [row["seed"] for row in report["rows"]] == [7, 8, 9]
    assert report["asked"]["repeat"] == 3
    run(*HOW[:-1], "9", "--report", str(tmp_path))
    assert rows(report)[2:] == rows(json.loads((tmp_path / "report.json").read_text()))


def test_processes_make_no_difference():
    found = [
        [(row.seed, row.dtype, row.cases, row.worst) for row in verify(
            [find("bending_energy")], ("float32", "float64"), 7, 5, False, processes=processes, repeat=2
        ).rows]
        for processes in (1, 2)
    ]  # fmt: skip
    assert found[0] == found[1]
    assert [each[:2] for each in found[0]] == [(7, "float32"), (7, "float64"), (8, "float32"), (8, "float64")]


def test_page_and_readme_give_the_count_with_its_command(folder):
    cases = sum(row["cases"] for row in json.loads((folder / "report.json").read_text())["rows"])
    page, readme = (folder / "soak.md").read_text(), (folder / "README.md").read_text()
    outcome = f"3 seeds, {cases} cases: 0 hunts failed, 0 cases degraded"
    command = "twinloss verify bending_energy --repeat 3 --seed 7 --no-real --examples 5 --dtype float32"
    assert f"**{outcome}.**" in page
    assert f"`{command}`" in page
    assert f"| bending_energy | float32 | drawn | 3 | {cases} |" in page
    assert f"| a | {soak.START} {outcome} | `{command}` | [soak](reports/soak.md) {soak.END} |\n| b | c |" in readme


def seen(*rows):
    made = Verification(1, {"losses": [], "dtypes": ["float16"], "examples": 150, "real": False, "repeat": 3})
    made.work.rows += rows
    return made


def test_failures_and_degraded_cases_are_told_with_their_seeds():
    found = Counterexample("value", "off by one", "print()")
    told = seen(
        Hunt(find("dice"), "float16", cases=10, seed=1, degraded=2),
        Hunt(find("dice"), "float16", cases=11, seed=2, counterexample=found),
        Hunt(find("dice"), "float16", cases=4, seed=3, interrupted=True),
    )
    (line,) = soak.lines(told.rows)
    assert (line.seeds, line.unfinished, line.cases) == ([1, 2], [3], 25)
    assert (line.degraded, line.failed) == ({1: 2}, [2])
    assert soak.failures(told) == ["twinloss verify dice --seed 2 --dtype float16 --no-real"]
    assert soak.summary(told) == "2 seeds, 25 cases: 1 hunts failed, 2 cases degraded"
    assert "| 2: seeds 1 | seeds 2 |" in soak.as_markdown(told)
    assert soak.failures(told)[0] in soak.as_markdown(told)


@pytest.mark.parametrize(
    ("loss", "said"), [("dice", "- dice: The gradient of an overlap"), ("focal", "not explained yet")]
)
def test_degraded_cases_are_explained_or_called_unexplained(loss, said):
    seen = Verification(7, {"losses": [loss], "dtypes": ["float32"], "examples": 5, "real": False, "repeat": 2})
    seen.work.rows.append(Hunt(find(loss), "float32", cases=5, degraded=1, seed=7))
    assert said in soak.as_markdown(seen)


def test_counterexamples_of_two_seeds_are_two_files(tmp_path):
    from twinloss.harness.commands import report

    found = Counterexample("value", "off by one", "print()")
    told = seen(*(Hunt(find("dice"), "float16", seed=seed, counterexample=found) for seed in (1, 2)))
    names = [path.name for path in report.write(told, tmp_path)]
    assert names == ["report.json", "dice_float16_generated_1.py", "dice_float16_generated_2.py"]
    again = json.loads((tmp_path / "report.json").read_text())["soak"][0]["failed"][1]["again"]
    assert again == "twinloss verify dice --seed 2 --dtype float16 --no-real"


def test_a_failure_is_exit_code_1_and_is_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(Hunt, "verdict", property(lambda row: "fail" if row.seed == 8 else "pass"))
    done = run(*HOW, "--repeat", "2", "--jobs", "1", "--report", str(tmp_path))
    assert done.exit_code == 1
    assert "repeat a failure: twinloss verify bending_energy --seed 8 --dtype float32 --no-real" in done.output


def test_interrupted_soak_reports_what_it_has(tmp_path, monkeypatch):
    do_job, begun = parallel.do_job, []

    def interrupted(*arguments):
        begun.append(None)
        if len(begun) == 3:
            raise KeyboardInterrupt
        do_job(*arguments)

    monkeypatch.setattr(parallel, "do_job", interrupted)
    done = run(*HOW, "--repeat", "5", "--jobs", "1", "--report", str(tmp_path), "--out", str(tmp_path))
    assert done.exit_code == 130
    assert re.search(r"bending_energy +float32 +drawn +2 ", done.output)
    assert "interrupted" in (tmp_path / "soak.md").read_text()


def test_real_images_come_with_the_first_seed_alone(monkeypatch):
    jobs = []
    monkeypatch.setattr("twinloss.harness.commands.verify.run_jobs", lambda work, given, *rest: jobs.extend(given))
    verify([find("dice")], ("float32", "float64"), 3, repeat=2)
    assert [(job.data, job.seed) for job in jobs] == [("generated", 3)] * 2 + [("real", 3)] + [("generated", 4)] * 2


def test_out_without_repeat_is_a_usage_error(tmp_path):
    done = run(*HOW, "--out", str(tmp_path))
    assert done.exit_code == 2
    assert "--repeat" in done.output


def test_a_readme_without_marks_is_an_error():
    with pytest.raises(ValueError, match="twinloss soak"):
        soak.put_into("no marks", seen())


def test_a_comparison_goes_seed_by_seed_and_the_site_shows_the_first(folder):
    from twinloss.harness.commands.compare import compare
    from twinloss.harness.site.run import load

    report = json.loads((folder / "report.json").read_text())
    later = {**report, "seed": 17, "rows": [{**row, "seed": row["seed"] + 10} for row in report["rows"]]}
    assert compare(report, later, 1.0) == []
    later["rows"][2] = {**later["rows"][2], "verdict": "fail"}
    assert [(found.what, found.new) for found in compare(report, later, 1.0)] == [("verdict", "fail")]
    site = load(folder)
    assert [row["seed"] for row in site.rows()] == [7]
    assert "--repeat 3" in site.command


def test_failure_of_one_seed_is_not_remembered_for_others(monkeypatch):
    asked = []
    monkeypatch.setattr("twinloss.harness.commands.verify.run_jobs", lambda work, jobs, *rest: asked.extend(jobs))
    for repeat in (1, 2):
        verify([find("dice")], ("float32",), 7, 5, False, remember=True, repeat=repeat)
    assert [job.hunting["remember"] for job in asked] == [True, False, False]


def test_hunt_that_remembers_failures_draws_the_cases_of_one_that_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where failures are kept
    twin = find("bending_energy")
    found = [hunt(twin, "float32", 5, 9, into=Hunt(twin, "float32", remember=remember)) for remember in (False, True)]
    assert (found[0].cases, found[0].worst) == (found[1].cases, found[1].worst)
