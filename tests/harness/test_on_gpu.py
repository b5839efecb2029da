"""The benchmark for GPUs, run on the CPU with small volumes: its stages, its limit of time, and its report."""

import pytest
import torch
from typer.testing import CliRunner

from twinloss.harness.bench import on_gpu
from twinloss.harness.bench.competitors import EAGER, FAST
from twinloss.harness.cli import bench
from twinloss.harness.losses.catalogue import find

SMALL = {"device": "cpu", "seconds": 0.001, "base": 8, "sizes": (12,), "large": 16}


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(on_gpu.Session, "_compiled", lambda self, cases: None)  # it takes minutes


def run(**changes):
    made = on_gpu.Session([find("bending_energy")], **{**SMALL, **changes})
    made.go()
    return made


def test_every_case_is_measured_beside_monai_and_large_volumes_alone(tmp_path):
    session = run(checked=["bending_energy float32: pass"])
    assert [case.size for case in session.found] == [8, 12, 16]
    *others, large = session.found
    assert all({FAST, EAGER} <= set(session.found[case]) for case in others)
    assert large.batch == 1
    assert list(session.found[large]) == [FAST]
    text = on_gpu.write(session, tmp_path).read_text()
    assert "| bending_energy, 1×8³, 1 thread | twinloss | " in text
    assert "* bending_energy float32: pass" in text


def test_what_the_time_does_not_suffice_for_is_listed():
    late = run(limit=0.0)
    assert not late.found
    assert "bending_energy, 1×8³, 1 thread: not run, as the time was up" in on_gpu.as_markdown(late)


def test_a_failure_of_a_library_is_listed_and_the_others_go_on(monkeypatch):
    step_of = on_gpu.step_of

    def failing(case, name, operands):
        if name == EAGER:
            raise torch.OutOfMemoryError("no room")
        return step_of(case, name, operands)

    monkeypatch.setattr(on_gpu, "step_of", failing)
    made = run(sizes=())
    assert f"bending_energy, 1×8³, 1 thread, {EAGER}: OutOfMemoryError: no room" in made.failed
    assert all(FAST in found for found in made.found.values())


def test_the_command_checks_and_measures_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "usable", lambda device: str(device.value))
    monkeypatch.setattr(bench, "_checked_on_gpu", lambda twins, tick: ["bending_energy float32: pass"])
    go = on_gpu.Session.go

    def on_cpu(self, folder):
        for name, value in SMALL.items():
            setattr(self, name, value)
        go(self, folder)

    monkeypatch.setattr(on_gpu.Session, "go", on_cpu)
    done = CliRunner().invoke(bench.app, ["bench", "bending_energy", "--device", "cuda", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "bending_energy float32: pass" in (tmp_path / "gpu.md").read_text()
