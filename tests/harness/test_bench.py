"""The benchmark: what is timed, what the figures come to, and what is kept of them."""

import json
import math
import os
import subprocess
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from twinloss import fast
from twinloss.fast.runtime import dispatch
from twinloss.harness.bench import memory, records, report, roofline, session, timing
from twinloss.harness.bench.cases import BenchmarkCase, base_cases, sweep
from twinloss.harness.bench.competitors import COMPILED, EAGER, FAST, PLAIN, PLAIN_COMPILED, names, step_of
from twinloss.harness.bench.records import BenchmarkRun, Outcome, Records, by_loss, geometric_mean, load
from twinloss.harness.bench.report import DOCUMENTED
from twinloss.harness.bench.roofline import Rates, floor
from twinloss.harness.bench.timing import Times, times
from twinloss.harness.cli.bench import app
from twinloss.harness.losses.catalogue import TWINS, find
from twinloss.harness.losses.peers import SMP, YARDSTICK

RUN = BenchmarkRun(
    "twinloss bench", {"cpu": "a processor", "cores": 2}, {"torch": "2"}, {"2": Rates(1e9, 2e9, 4e9, 1e9)}
)
NAMES = ("dice", "focal", "bending_energy")
MEASURED = roofline.measured


def made(loss="dice", kind="base", size=96, memory=None, left_out=None, name="", **median):
    """An outcome with made-up medians, in milliseconds, by competitor."""
    line = next(line for line in find(loss).benches if line.name == name)
    case = BenchmarkCase(loss, name, size, line.batch, line.classes, 2, kind=kind)
    taken = {who: Times(ms, ms, ms, ms, 1) for who, ms in median.items()}
    return Outcome(case, RUN, taken, memory or {}, left_out or {})


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})


def quick(*arguments):
    return bench(*arguments, "--size", "8", "--budget", "0.01", "--no-compiled", "--no-memory")


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """The machine is not measured anew."""
    monkeypatch.setattr(roofline, "measured", lambda count: RUN.rates["2"])


def test_the_fastest_competitor_is_no_yardstick_and_not_twinloss():
    outcome = made("dice_ce", twinloss=2, MONAI=8, cross_entropy=1, **{COMPILED: 6})
    assert outcome.fastest == COMPILED
    assert outcome.speed_up == 3
    assert made(MONAI=8).speed_up is None
    assert made(twinloss=8).speed_up is None


def test_a_loss_of_several_lines_counts_once():
    outcomes = [made("lncc", name=f"k = {k}", twinloss=1, MONAI=ms) for k, ms in ((3, 2), (9, 4), (21, 8))]
    losses = by_loss([*outcomes, made("dice", twinloss=1, MONAI=16)])
    assert losses == {"lncc": pytest.approx(4), "dice": pytest.approx(16)}
    assert geometric_mean(losses.values()) == pytest.approx(8)


def test_summary_lists_every_case_that_is_slower_and_every_one_that_takes_too_much():
    kept = Records(
        [
            made("dice", twinloss=2, MONAI=8, memory={FAST: 1.3}),
            made("focal", twinloss=4, MONAI=6, memory={FAST: 1.1}),
            made("dice", "size", 32, twinloss=5, MONAI=4, memory={FAST: 9.0}),
            made("focal", "size", 64, MONAI=4, left_out={FAST: "RuntimeError: no"}),
        ]
    )
    said = report.summary(kept)
    documented = len(DOCUMENTED)
    assert f"2 of {documented} losses in the documentation of MONAI 0.5: **{math.sqrt(4 * 1.5):.2f}**" in said[0]
    assert "**1.50**, focal, 2×4×96³, 2 threads over MONAI" in said[1]
    assert said[2:4] == [
        "* Cases slower than a competitor, out of 4: 1.",
        "  * dice, 2×4×32³, 2 threads: speed-up 0.80 over MONAI; 4.93 of 5.00 ms are overhead beyond the time per "
        "voxel of the base case",
    ]
    # The gradient at 32³ has 1 MiB, which is too small to measure memory reliably.
    assert said[4:6] == [
        "* Cases that exceed the memory limit: 1.",
        "  * dice, 2×4×96³, 2 threads: 1.30 × gradient, limit 1.2",
    ]
    assert said[6:8] == ["* Cases that could not be timed: 1.", "  * focal, 2×4×64³, 2 threads: RuntimeError: no"]
    cases = len(sweep(TWINS, 2))
    assert said[8] == f"* Cases of the sweep that have not run yet, out of {cases}: {cases - 4}."


def test_a_slower_case_that_takes_as_long_for_a_voxel_as_the_base_case_is_not_put_down_to_calls():
    kept = Records([made("dice", twinloss=2, MONAI=8), made("dice", "size", 192, twinloss=17, MONAI=16)])
    assert "  * dice, 2×4×192³, 2 threads: speed-up 0.94 over MONAI" in report.summary(kept)


def test_limits_are_bandwidth_without_exponentials_and_their_time_with_them():
    bending, dice = made("bending_energy", twinloss=50, MONAI=60), made("dice", twinloss=50, MONAI=60)
    voxels = 96**3
    assert floor(bending.case, RUN.rates["2"]).ms == pytest.approx(voxels * 24 / 2e9 * 1e3)
    least = floor(dice.case, RUN.rates["2"])
    assert least.bytes_ms == pytest.approx(2 * voxels * (3 * 4 * 4 + 8) / 2e9 * 1e3)
    assert least.exponentials_ms == pytest.approx(2 * voxels * 8 / 4e9 * 1e3)
    assert (least.ms, least.limit) == (least.bytes_ms, "memory")
    focal = floor(made("focal", twinloss=50, MONAI=60).case, RUN.rates["2"])  # whose gradient takes no second pass
    assert focal.bytes_ms == pytest.approx(2 * voxels * (2 * 4 * 4 + 8) / 2e9 * 1e3)
    assert focal.exponentials_ms == pytest.approx(2 * voxels * 4 / 4e9 * 1e3)
    *_, of_bending, of_dice, _ = report.summary(Records([bending, dice]))
    assert of_bending == f"  * bending_energy: {voxels * 24 / 2e9 / 0.05:.0%} of the bandwidth"
    assert of_dice == f"  * dice: {0.05 / (2 * voxels * 8 / 4e9):.2f} × the time of its exponentials"


def test_rates_of_the_machine_are_of_a_likely_size():
    seen = MEASURED(1, far=2**20, often=200)
    assert all(1e6 < rate < 1e13 for rate in (seen.copy, seen.read, seen.exp, seen.torch_exp))


def test_a_later_run_replaces_its_cases_and_keeps_the_others(tmp_path):
    path = tmp_path / "benchmarks.json"
    kept = Records([made("dice", twinloss=2, MONAI=8), made("focal", twinloss=2, MONAI=8)])
    kept.save(path)
    again = load(path)
    assert again == kept
    later = replace(RUN, command="twinloss bench dice")
    again.put(replace(made("dice", twinloss=3, MONAI=9), run=later))
    again.save(path)
    assert [each.times[FAST].median_ms for each in load(path).outcomes] == [3, 2]
    assert [run["command"] for run in json.loads(path.read_text())["runs"]] == [later.command, RUN.command]
    assert load(tmp_path / "none.json") == Records()


def test_the_mean_that_is_wanted_is_that_of_the_documented_losses_and_that_of_all_stands_beside_it():
    of_two = "\n".join(
        report.summary(Records([made("dice", twinloss=1, MONAI=8), made("diffusion", twinloss=1, MONAI=2)]))
    )
    assert "documentation of MONAI 0.5: **8.00** (target: 4)" in of_two
    assert "The same mean including diffusion: 4.00" in of_two
    assert "The same mean" not in "\n".join(report.summary(Records([made("dice", twinloss=1, MONAI=8)])))


def test_a_case_of_another_size_is_no_base_case_and_takes_no_place_of_the_sweep():
    kept = Records([made("dice", twinloss=2, MONAI=8), made("dice", "size", 32, twinloss=2, MONAI=8)])
    kept.put(made("dice", "custom", 32, twinloss=1, MONAI=8))
    kept.put(made("focal", "custom", 32, twinloss=1, MONAI=8))
    assert [each.case.loss for each in kept.base] == ["dice"]
    assert kept.outcomes[1].case.kind == "size"
    assert kept.outcomes[1].times[FAST].median_ms == 1
    assert Records(kept.outcomes[2:]).base == kept.outcomes[2:]


def test_the_command_writes_adds_and_resumes(tmp_path):
    for loss in NAMES:
        done = quick(loss, "--out", str(tmp_path))
        assert done.exit_code == 0, done.output
    kept = load(tmp_path / "benchmarks.json")
    assert [each.case.loss for each in kept.outcomes] == list(NAMES)
    assert all(each.times[FAST].median_ms > 0 and each.times[EAGER].median_ms > 0 for each in kept.outcomes)
    text = (tmp_path / "benchmarks.md").read_text()
    assert f"geometric mean over 3 of {len(DOCUMENTED)} losses in the documentation of MONAI 0.5" in text
    before = (tmp_path / "benchmarks.json").read_bytes()
    quick("dice", "--out", str(tmp_path), "--resume")
    assert (tmp_path / "benchmarks.json").read_bytes() == before


def test_interruption_keeps_the_finished_cases(tmp_path, monkeypatch):
    outcome = session.Session.outcome

    def interrupted(self, case):
        if case.loss == "focal":
            raise KeyboardInterrupt
        return outcome(self, case)

    monkeypatch.setattr(session.Session, "outcome", interrupted)
    done = quick(*NAMES, "--out", str(tmp_path))
    assert done.exit_code == 130
    assert "interrupted" in done.output
    assert [each.case.loss for each in load(tmp_path / "benchmarks.json").outcomes] == ["dice"]
    assert "dice" in (tmp_path / "benchmarks.md").read_text()


def test_a_library_that_is_missing_or_fails_is_left_out_with_the_reason(monkeypatch):
    case = base_cases([find("dice")], 1, 8)[0]

    def missing():
        raise ImportError("No module named 'kornia'")

    def failing():
        return lambda *operands: torch.zeros(2) @ torch.zeros(3)

    line = replace(case.line, others={"kornia": missing, SMP: failing})
    monkeypatch.setattr(BenchmarkCase, "line", property(lambda self: line))
    taken, left_out = times(case, [FAST, "kornia", SMP], 0.01)
    assert list(taken) == [FAST]
    assert left_out["kornia"] == "not installed: No module named 'kornia'"
    assert left_out[SMP].startswith("RuntimeError: ")
    text = report.as_markdown(Records([Outcome(case, RUN, taken, {}, left_out)]))
    assert "kornia: not installed: No module named 'kornia'" in text


def test_a_competitor_whose_steps_are_too_slow_is_left_out(monkeypatch):
    monkeypatch.setattr(timing, "TOO_SLOW", 0.0)
    taken, left_out = times(base_cases([find("dice")], 1, 8)[0], [EAGER], 0.01)
    assert not taken
    assert left_out[EAGER].startswith("a step takes ")


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = bench("dice", "--device", "cuda")
    assert done.exit_code == 2
    assert "--device cuda needs a GPU" in done.output


def test_on_a_gpu_of_other_libraries_only_those_that_are_made_for_gpus_are_timed():
    dice_ce, lncc = (base_cases([find(name)], 1, 8, "cuda")[0] for name in ("dice_ce", "lncc"))
    assert names(dice_ce) == [FAST, EAGER, COMPILED, PLAIN_COMPILED, "cross_entropy"]
    assert names(lncc, compiled=False) == [FAST, EAGER, "FireANTs"]
    assert "FireANTs" not in names(base_cases([find("lncc")], 1, 8)[0])


def test_the_plain_form_is_timed_under_its_own_name(monkeypatch):
    forms = {FAST: set(), PLAIN: set()}
    choose = dispatch.choose
    case = base_cases([find("dice")], 1, 8)[0]
    for name, chosen in forms.items():

        def noting(statistic, x, *constants, of=chosen):
            of.add("compiled" if statistic.is_compiled(x) else "torch")
            return choose(statistic, x, *constants)

        monkeypatch.setattr(dispatch, "choose", noting)
        step_of(case, name, case.operands())()
    assert forms == {FAST: {"compiled"}, PLAIN: {"torch"}}


def test_memory_of_twinloss_is_little_more_than_its_gradient():
    case = base_cases([find("dice")], 1, 96)[0]
    assert memory.memory_of(case, FAST) == pytest.approx(1.1, abs=0.25)
    assert memory.memory_of(case, EAGER) > 2


def test_what_would_take_too_long_or_too_much_is_not_tried():
    base = made("mutual_information", twinloss=20, MONAI=1000, memory={EAGER: 162.0})
    known = session.Session(RUN, Records([base]), 1.0)
    large, small = (replace(base.case, size=size, kind="size") for size in (256, 32))
    assert known.reason_to_skip(large, EAGER) == "a step would take about 19 s"
    assert known.reason_to_skip(small, EAGER) is None
    quicker = replace(base, times={EAGER: Times(1, 1, 1, 1, 1)})
    known.records.put(quicker)
    assert known.reason_to_skip(large, EAGER) == "a step would take about 11 GB"
    known.records.put(replace(base, times={**base.times, PLAIN: Times(1, 1, 3000, 1, 1)}))
    assert known.reason_to_skip(small, PLAIN) == "3.0 times as slow as MONAI at the base case"


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_the_sweep_varies_one_thing_and_each_case_is_there_once(twin):
    cases = sweep([twin], 2)
    assert len({records.key(case) for case in cases}) == len(cases)
    timed = sum(line.timed for line in twin.benches)
    assert [case.kind for case in cases[:timed]] == ["base"] * timed
    kinds = {case.kind for case in cases}
    assert {"size", "items", "type", "threads", "small"} <= kinds
    assert ("classes" in kinds) == bool(twin.benches[0].classes)
    assert all(case.classes is None or case.classes >= twin.channels for case in cases)


@pytest.mark.parametrize("twin", [twin for twin in TWINS if twin.benches[0].classes], ids=lambda twin: twin.name)
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_any_number_of_classes_can_be_timed(twin, classes):
    if classes < twin.channels:
        pytest.skip("the loss asks for more classes")
    case = BenchmarkCase(twin.name, "", 8, 3, classes, 1)
    assert case.operands()[0].shape == (3, classes, 8, 8, 8)
    taken, left_out = times(case, [FAST, EAGER, *({YARDSTICK} & set(case.line.others))], 0.001)
    assert FAST in taken
    assert EAGER in taken
    assert not left_out


def test_the_yardstick_is_the_cross_entropy_of_torch():
    case = base_cases([find("dice_ce")], 1, 8)[0]
    logits, labels = case.operands()
    wanted = torch.nn.functional.cross_entropy(logits, labels[:, 0])
    assert case.line.others[YARDSTICK]()(logits, labels) == wanted
    assert isinstance(case.twin.fast(), fast.DiceCELoss)


def varying(share, median=10.0):
    """Times whose quartiles are apart by a share of the median."""
    return Times(1, median * (1 - share / 2), median, median * (1 + share / 2), 3)


def test_a_case_whose_times_vary_is_measured_again_and_the_calmest_times_are_taken(monkeypatch):
    monkeypatch.setattr(timing, "_summary", varying)
    told = []

    def taken(*shares):
        told.clear()
        left = list(shares)
        return timing._calmest(lambda: {FAST: left.pop(0), EAGER: 0.0}, lambda: told.append(len(left)))[FAST].spread

    assert (taken(0.1), len(told)) == (pytest.approx(0.1), 0)
    assert (taken(0.5, 0.1), len(told)) == (pytest.approx(0.1), 1)
    assert (taken(0.5, 0.3, 0.4), len(told)) == (pytest.approx(0.3), timing.REPEATS)
    assert timing._calmest(dict, lambda: told.append(0)) == {}


def test_a_noisy_result_replaces_no_calmer_one_unless_it_is_forced(monkeypatch, tmp_path):
    calm, noisy, noisier = (
        replace(made("dice"), times={FAST: varying(0.1), EAGER: varying(share)}) for share in (0.19, 0.3, 0.5)
    )
    failed = replace(calm, times={EAGER: varying(0.1)})
    kept = Records([noisy])
    assert not kept.put(noisier)
    assert not kept.put(failed)
    assert kept.put(calm)
    assert not kept.put(noisy)
    assert kept.outcomes == [calm]
    assert kept.put(noisy, force=True)
    assert kept.outcomes == [noisy]
    assert any(f"{noisy.case}: 30% of the median" in line for line in report.summary(kept))

    kept.save(tmp_path / "benchmarks.json")
    monkeypatch.setattr(session.Session, "outcome", lambda self, case: replace(noisier, run=self.run))
    monkeypatch.setattr("twinloss.harness.bench.cases.base_cases", lambda *_: [noisy.case])
    done = quick("dice", "--out", str(tmp_path))
    assert f"kept the earlier result of {noisy.case}" in done.output
    assert load(tmp_path / "benchmarks.json") == kept
    quick("dice", "--out", str(tmp_path), "--force")
    assert load(tmp_path / "benchmarks.json").outcomes[0].times == noisier.times


def test_the_host_its_load_and_the_drift_of_its_rates_are_told_and_kept(monkeypatch, tmp_path):
    rates = iter([RUN.rates["2"], replace(RUN.rates["2"], exp=3e9)] * 2)
    monkeypatch.setattr(roofline, "measured", lambda count: next(rates))
    monkeypatch.setattr("twinloss.harness.system.machine.load", lambda: 1.25)
    done = quick("dice", "--out", str(tmp_path), "--threads", "1")
    told = "Load before the run: 1.2. The rates changed by up to 25% during the run"
    assert told in done.output
    assert told in (tmp_path / "benchmarks.md").read_text()
    (outcome,) = load(tmp_path / "benchmarks.json").outcomes
    assert (outcome.run.load, outcome.run.drift) == (1.25, 0.25)
    assert (RUN.load, RUN.drift, report.conditions(RUN)) == (None, None, "")


def test_warnings_of_other_libraries_give_way_to_lines_of_progress(capfd, monkeypatch):
    outcome = session.Session.outcome

    def loud(self, case):
        subprocess.run("echo No CUDA runtime is found >&2", shell=True, check=True)
        return outcome(self, case)

    monkeypatch.setattr(session.Session, "outcome", loud)
    monkeypatch.setattr("twinloss.harness.cli.app.SILENCE", 0.0)
    done = quick("dice")
    assert "0 of 1 cases: dice, 2×4×8³" in done.output
    assert "1 of 1 cases: " in done.output
    assert capfd.readouterr().err == ""


def test_the_last_messages_are_shown_if_an_error_ends_a_run(capfd):
    @timing.stderr_kept()
    def failing():
        os.write(2, b"long ago" + b" " * timing._SHOWN + b"the cause")
        raise MemoryError

    with pytest.raises(MemoryError):
        failing()
    assert capfd.readouterr().err.strip() == "the cause"
