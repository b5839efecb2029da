"""Tests that jobs give the same results however they are distributed, and that a dying process loses none."""

import json
import threading
import time

import pytest

from twinloss.harness import check
from twinloss.harness.commands.report import as_json
from twinloss.harness.commands.verify import verify
from twinloss.harness.hunting import parallel
from twinloss.harness.hunting.jobs import Job, Work
from twinloss.harness.losses.catalogue import find

LOSSES = ("bending_energy", "tversky")


def rows(**how):
    seen = verify([find(name) for name in LOSSES], ["float32"], 5, 20, with_real=False, **how)
    made = json.loads(as_json(seen))["rows"]
    for row in made:
        del row["seconds"]
    return made


@pytest.fixture(scope="module")
def alone():
    return rows()


def test_processes_make_no_difference(alone):
    assert rows(processes=2) == alone
    assert [row["loss"] for row in alone] == list(LOSSES)


@pytest.mark.filterwarnings("ignore")  # of what Dask imports
def test_a_cluster_makes_no_difference(alone):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert rows(cluster=cluster.scheduler_address) == alone


def test_a_target_is_hunted_in_another_process_too():
    made = check("twinloss.fast:TverskyLoss", "tversky", examples=20, processes=2)
    assert [(row.dtype, row.verdict) for row in made.rows] == [("float32", "pass"), ("float64", "pass")]


def test_job_whose_process_dies_is_tried_again(alone):
    work = Work()
    jobs = [Job(find(name), ("float32",), "generated", 20, 5) for name in LOSSES]

    before = {child.pid for child in parallel.multiprocessing.active_children()}

    def kill_one():
        for _ in range(600):
            fresh = [child for child in parallel.multiprocessing.active_children() if child.pid not in before]
            if fresh:
                time.sleep(0.2)
                fresh[0].kill()
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    parallel.run_jobs(work, jobs, lambda what, cases: None, processes=2)
    killer.join()
    assert sorted((row.twin.name, row.cases) for row in work.rows) == [(row["loss"], row["cases"]) for row in alone]


def test_job_whose_process_always_dies_fails_with_a_message(monkeypatch):
    monkeypatch.setattr(parallel, "_run_with", lambda work, jobs, *rest: list(jobs))
    work = Work()
    jobs = [Job(find(name), ("float32",), "generated", 20, 5) for name in LOSSES]
    parallel.run_jobs(work, jobs, lambda what, cases: None, processes=2)
    assert [row.problems for row in work.rows] == [["its process died"]] * 2
    assert all(row.verdict == "fail" for row in work.rows)


def test_failing_cases_are_tried_first_in_the_next_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong_losses.py").write_text(
        "from twinloss.fast import TverskyLoss\n\n\n"
        "class Wrong(TverskyLoss):\n"
        "    def forward(self, input, target):\n"
        "        return super().forward(input, target) * (1.5 if self.smooth_nr == 1 and self.batch else 1)\n"
    )
    given = {"dtypes": ("float64",), "examples": 60, "remember": True}
    first = check("wrong_losses.py:Wrong", "tversky", seed=1, **given).rows[0]
    again = check("wrong_losses.py:Wrong", "tversky", seed=2, **given).rows[0]
    assert first.counterexample.kind == again.counterexample.kind == "value"
    assert first.cases > 0
    assert again.cases == 0


def test_passing_hunt_leaves_no_trace_in_the_next_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, again = (
        check("twinloss.fast:TverskyLoss", "tversky", seed=1, dtypes=("float32",), examples=20, remember=True).rows[0]
        for _ in range(2)
    )
    assert (first.cases, first.worst) == (again.cases, again.worst)
