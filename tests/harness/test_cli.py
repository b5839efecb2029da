"""The command line: reports, errors, exit codes, interruption."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from twinloss import __version__
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.commands.report import table
from twinloss.harness.commands.verify import Verification
from twinloss.harness.data import brain
from twinloss.harness.hunting import hunt, parallel
from twinloss.harness.judging import trial
from twinloss.harness.losses.catalogue import TWINS, UnknownLossError, find


def run(*arguments):
    return CliRunner().invoke(with_all_commands(), list(arguments), env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})


def test_version():
    assert run("--version").output == f"twinloss {__version__}\n"


def test_list_shows_losses_options_and_defaults():
    output = run("list").output
    for twin in TWINS:
        assert twin.name in output
        for option in twin.options:
            assert option in output
    assert "1e-05" in output


def test_unknown_loss_suggests_the_nearest():
    done = run("verify", "dise")
    assert done.exit_code == 2
    assert "did you mean 'dice'?" in done.output
    with pytest.raises(UnknownLossError, match="masked_dice"):
        find("masked_dise")
    with pytest.raises(UnknownLossError, match="known losses: dice"):
        find("zzz")


@pytest.mark.skipif(os.getuid() == 0 and not os.path.exists("/proc"), reason="needs a folder that nobody can write to")
def test_a_report_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    start = time.monotonic()
    done = run("verify", "dice", "--report", str(tmp_path / "file" / "report"))
    assert done.exit_code == 2
    assert "cannot write into" in done.output
    assert time.monotonic() - start < 5


def test_report_holds_what_is_needed_to_see_it_again(tmp_path):
    done = run("verify", "dice", "--dtype", "float32", "--examples", "20", "--seed", "3", "--no-real",
               "--report", str(tmp_path))  # fmt: skip
    assert done.exit_code in (0, 1)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seed"] == 3
    assert {"python", "numpy", "scipy", "torch", "numba", "hypothesis", "twinloss"} <= set(report["versions"])
    assert {"cpu", "cores", "platform"} <= set(report["machine"])
    (row,) = report["rows"]
    assert (row["loss"], row["dtype"], row["data"]) == ("dice", "float32", "generated")
    # Every finding of the hunt is in its histogram, but those of NaN; every pair that was tried is counted once.
    counted = {part: sum(bars.values()) for part, bars in row["bits_histogram"].items()}
    assert counted == {"value": row["cases"], "gradient": row["cases"]}
    assert sum(pair[2] for pair in row["pairs"]["by_option"]) == row["pairs"]["tried"]
    assert sum(pair[3] for pair in row["pairs"]["by_option"]) == row["pairs"]["possible"]
    assert report["asked"] == {"losses": ["dice"], "dtypes": ["float32"], "examples": 20, "real": False}
    assert "dice" in done.output
    scripts = list(tmp_path.glob("*.py"))
    assert bool(scripts) == (row["counterexample"] is not None)


def test_a_loss_with_one_option_has_no_pairs_to_count():
    seen = Verification(0)
    seen.work.rows.append(hunt.Hunt(replace(find("diffusion"), options={"reduction": ("mean", "sum")}), "float32"))
    (pairs,) = [column for column in table(seen, "").columns if column.header == "pairs"]
    assert list(pairs.cells) == [""]


def test_missing_brain_is_a_note_and_no_failure(monkeypatch, tmp_path):
    def missing():
        raise ImportError("nilearn is missing")

    monkeypatch.setattr(brain, "load_brain", missing)
    done = run("verify", "dice", "--dtype", "bfloat16", "--examples", "5", "--seed", "0", "--report",
               str(tmp_path), "--jobs", "1")  # fmt: skip
    assert "real images were skipped: nilearn is missing" in re.sub(r"\s+", " ", done.output)


def test_interruption_keeps_the_results(tmp_path, monkeypatch):
    examined = []

    def interrupted(*arguments):
        examined.append(None)
        if len(examined) == 30:
            raise KeyboardInterrupt
        return trial.examine(*arguments)

    monkeypatch.setattr(hunt, "examine", interrupted)
    done = run("verify", "dice", "--dtype", "bfloat16", "--no-real", "--seed", "0", "--report", str(tmp_path))
    assert done.exit_code == 130
    assert "interrupted" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"]
    assert report["rows"][0]["cases"] == 29


def test_a_plain_run_leaves_its_report_beside_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("verify", "dice", "--dtype", "bfloat16", "--no-real", "--seed", "0", "--examples", "5")
    assert json.loads((tmp_path / "twinloss-report" / "report.json").read_text())["seed"] == 0


INTERRUPTED = """
import itertools, os, pathlib, signal, sys, threading, time
from twinloss.harness.hunting import hunt
from twinloss.harness.hunting.jobs import Job, Work
from twinloss.harness.hunting.parallel import _in_processes
from twinloss.harness.judging import trial
from twinloss.harness.losses.registration import BENDING_ENERGY

tried, at_work = itertools.count(), pathlib.Path(__file__).with_suffix(".begun")

def examine(*arguments):
    if next(tried) == 5:
        at_work.touch()
    return trial.examine(*arguments)

hunt.examine = examine  # in the spawned process, which runs this file too

def interrupt():
    while not at_work.exists():
        time.sleep(0.1)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    work = Work()
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        job = Job(BENDING_ENERGY, ("float32",), "generated", 10**6, 0)
        _in_processes(work, [job], lambda what, cases: None, 2)
    except KeyboardInterrupt:
        print([(row.interrupted, row.cases > 0) for row in work.rows])
"""


def interrupted(how, folder):
    """Ends when the processes have, too, which hold the other ends of its pipes."""
    script = folder / "interrupted.py"
    script.write_text(INTERRUPTED)
    return subprocess.run([sys.executable, script, how], capture_output=True, text=True, timeout=120, check=False)


def test_interrupted_processes_hand_over_what_they_have_found(tmp_path):
    done = interrupted("SIGINT", tmp_path)
    assert done.stdout.strip() == "[(True, True)]", done.stdout + done.stderr


def test_processes_end_with_one_that_is_killed(tmp_path):
    assert interrupted("SIGKILL", tmp_path).returncode == -signal.SIGKILL


def test_an_interruption_that_python_drops_ends_a_part_at_the_next_case(monkeypatch):
    monkeypatch.setattr(parallel, "_interrupted", False)

    def interrupted(*arguments):
        parallel._interrupted = True
        return trial.examine(*arguments)

    monkeypatch.setattr(hunt, "examine", interrupted)
    (row,), _ = parallel._run_job(
        "bending_energy", parallel.Job(find("bending_energy"), ("float32",), "generated", 50, 0)
    )
    assert row["interrupted"]
    assert row["cases"] <= 1
