"""Tests of `twinloss compare`, which lists what got worse from one report to another."""

import copy
import json

import pytest
from typer.testing import CliRunner

from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.commands.compare import compare
from twinloss.harness.commands.report import as_json
from twinloss.harness.commands.verify import verify
from twinloss.harness.hunting.report_file import ReportError, read
from twinloss.harness.losses.catalogue import find

APP = with_all_commands()


@pytest.fixture(scope="module")
def report():
    return json.loads(as_json(verify([find("bending_energy")], ["float32"], 0, 40, with_real=False)))


def test_a_report_is_no_worse_than_itself(report):
    assert compare(report, report, 0.0) == []
    assert report["rows"][0]["bits_by_option"]["stencil=wide"] >= 0


def changed(report, change):
    other = copy.deepcopy(report)
    change(other["rows"][0])
    return compare(report, other, 1.0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda row: row.update(verdict="degraded"), "verdict"),
        (lambda row: row["worst"]["gradient"].update(bits=9.0), "bits of the gradient"),
        (lambda row: row["worst"]["value"].update(bits=None), "bits of the value"),
        (lambda row: row["bits_by_option"].update({"stencil=wide": 12.0}), "bits with stencil=wide"),
        (lambda row: row["laws"].pop("flipping the axes changes nothing"), "law 'flipping the axes changes nothing'"),
        (lambda row: row["pairs"].update(tried=1), "pairs of options"),
        (lambda row: row.update(interrupted=True), "row"),
        (lambda row: row.update(dtype="float64"), "row"),
    ],
)
def test_each_regression_is_named(report, change, what):
    assert [found.what for found in changed(report, change)] == [what]


def test_a_law_that_was_renamed_is_no_regression_but_one_that_was_removed_is(report):
    old = copy.deepcopy(report)
    laws = old["rows"][0]["laws"]
    laws["a former name"] = laws.pop("flipping the axes changes nothing")
    assert compare(old, report, 0.0) == []
    laws["another former name"] = 1
    assert [(found.what, found.new) for found in compare(old, report, 0.0)] == [
        ("law 'a former name'", "removed or renamed"),
        ("law 'another former name'", "removed or renamed"),
    ]


def test_bits_within_the_threshold_pass(report):
    def slightly(row):
        row["worst"]["gradient"]["bits"] += 0.9

    assert changed(report, slightly) == []


def test_the_commands_save_compare_and_exit(tmp_path):
    run = CliRunner().invoke
    line = ["verify", "bending_energy", "--no-real", "--dtype", "float32", "--examples", "20", "--seed", "0",
            "--report", str(tmp_path)]  # fmt: skip
    saved = tmp_path / "saved" / "base.json"
    assert run(APP, [*line, "--save", str(saved)]).exit_code == 0
    assert run(APP, ["compare", str(saved), str(saved)]).exit_code == 0
    worse = json.loads(saved.read_text())
    worse["rows"][0]["verdict"] = "fail"
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    done = run(APP, ["compare", str(saved), str(tmp_path / "worse.json")])
    assert done.exit_code == 1
    assert "verdict" in done.output


@pytest.mark.parametrize("text", [None, "no json", "[]", "{}"])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ReportError, match=r"report\.json"):
        read(path)
