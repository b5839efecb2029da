"""`twinloss check`: losses of others, right, wrong, imprecise, of arrays, and not to be found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scripts import run_scripts
from typer.testing import CliRunner

from twinloss import fast
from twinloss.harness import check
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.hunting.deviations import DeviationsError
from twinloss.harness.hunting.hunt import hunt
from twinloss.harness.hunting.snippet import shortened
from twinloss.harness.hunting.target import TargetError, Wiring, as_twin

APP = with_all_commands()
LOSSES = '''
import torch


class PlainDice(torch.nn.Module):
    """As one writes it: right, with a softmax that loses digits where it saturates."""

    factor = 1

    def __init__(self, with_softmax=False, smooth_nr=1e-5, smooth_dr=1e-5, batch=False, reduce="mean"):
        super().__init__()
        self.with_softmax, self.nr, self.dr, self.batch, self.reduce = with_softmax, smooth_nr, smooth_dr, batch, reduce

    def forward(self, logits, truth):
        p = logits.softmax(1) if self.with_softmax and logits.shape[1] > 1 else logits
        axes = ([0] if self.batch else []) + list(range(2, p.ndim))
        g = truth.to(p.dtype)
        overlap, total = (p * g, p + g) if not axes else ((p * g).sum(axes), (p + g).sum(axes))
        return self.factor * (1 - (2 * overlap + self.nr) / (total + self.dr)).mean()


class WrongInBatch(PlainDice):
    """Right by itself; wrong with batch=True."""

    def forward(self, logits, truth):
        return super().forward(logits, truth) * (1.01 if self.batch else 1)


class Remembers(PlainDice):
    """Counts its calls."""

    def forward(self, logits, truth):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(logits, truth)


class RemembersAndDiffers(Remembers):
    """Counts its calls, and is wrong everywhere."""

    factor = 1.01


class LosesDigits(PlainDice):
    """Right, but it adds and takes away a number that takes most digits."""

    added = 2.0**13

    def forward(self, logits, truth):
        return super().forward(logits, truth) + self.added - self.added


class LosesAllDigits(LosesDigits):
    added = 2.0**22


class Detached(PlainDice):
    def forward(self, logits, truth):
        return super().forward(logits.detach(), truth)


dice = PlainDice()


def dice_of_softmax(logits, truth, eps=1e-5):
    return PlainDice(True, eps, eps)(logits, truth)
'''

ARRAYS = """
import numpy as np


def dice(p, g):
    axes = tuple(range(2, p.ndim))
    return np.mean(1 - (2 * np.sum(p * g, axes) + 1e-5) / (np.sum(p, axes) + np.sum(g * 1.0, axes) + 1e-5))


def dice_gradient(p, g):
    axes = tuple(range(2, p.ndim))
    total = np.sum(p, axes, keepdims=True) + np.sum(g * 1.0, axes, keepdims=True) + 1e-5
    overlap = 2 * np.sum(p * g, axes, keepdims=True) + 1e-5
    return (overlap / total - 2 * g) / total / (p.shape[0] * p.shape[1])


def doubled_gradient(p, g):
    return 2 * dice_gradient(p, g)
"""

NAMES = {"softmax": "with_softmax", "reduction": "reduce"}
MEAN = {"reduction": "mean"}
FEW = {"examples": 40}


@pytest.fixture
def losses(tmp_path):
    path = tmp_path / "somebodys_losses.py"
    path.write_text(LOSSES)
    return path


@pytest.fixture
def arrays(tmp_path):
    path = tmp_path / "somebodys_arrays.py"
    path.write_text(ARRAYS)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_right_formula_that_loses_digits_is_imprecise_and_not_wrong(losses, dtype):
    made = check(f"{losses}:PlainDice", "dice", names=NAMES, options=MEAN, dtypes=(dtype,), **FEW)
    assert made.verdict in ("pass", "degraded", "imprecise"), made.rows[0].counterexample
    assert made.exit_code == 0
    assert not made.options  # nothing to look into


def test_strict_counts_lost_digits_as_a_failure(losses):
    made = check(f"{losses}:PlainDice", "dice", names=NAMES, options=MEAN, dtypes=("float32",), strict=True)
    assert made.exit_code == 1


def test_our_own_loss_agrees():
    assert check(fast.DiceLoss, "dice", dtypes=("float32",), **FEW).verdict == "pass"


def test_the_option_to_blame_is_named_and_the_rest_agrees(losses):
    made = check(f"{losses}:WrongInBatch", "dice", names=NAMES, options=MEAN, dtypes=("float32",), **FEW)
    assert made.verdict == "fail"
    assert [probe.name for probe in made.options if probe.failed] == ["batch=True"]
    assert made.rows[0].counterexample.kind == "value"
    assert "batch=True" in made.rows[0].counterexample.snippet


def test_the_law_that_is_broken_is_named(losses):
    made = check(f"{losses}:Remembers", "dice", names=NAMES, options=MEAN, dtypes=("float32",), **FEW)
    assert made.verdict == "fail"
    assert [probe.name for probe in made.laws if probe.failed] == ["a call leaves no state"]


def test_the_laws_of_a_loss_that_is_wrong_everywhere_are_named(losses):
    made = check(f"{losses}:RemembersAndDiffers", "dice", names=NAMES, options=MEAN, dtypes=("float32",), **FEW)
    assert made.rows[0].counterexample.kind == "value"
    broken = [probe.name for probe in made.laws if probe.failed]
    assert "a call leaves no state" in broken
    assert "a second call gives the same bits" not in broken


@pytest.mark.parametrize(("loss", "verdict"), [("LosesDigits", "imprecise"), ("LosesAllDigits", "fail")])
def test_more_than_a_hundredth_of_error_is_not_only_imprecise(losses, loss, verdict):
    made = check(f"{losses}:{loss}", "dice", names=NAMES, options=MEAN, dtypes=("float32",), **FEW)
    assert made.verdict == verdict


def test_a_value_without_a_gradient_is_an_error_unless_only_the_value_is_asked_for(losses):
    given = {"names": NAMES, "options": MEAN, "dtypes": ("float32",), **FEW}
    made = check(f"{losses}:Detached", "dice", **given)
    assert made.rows[0].counterexample.kind == "error"
    assert "no gradient" in made.rows[0].counterexample.message
    made = check(f"{losses}:Detached", "dice", value_only=True, **given)
    assert made.verdict in ("pass", "degraded")
    assert not made.twin.differentiable


@pytest.mark.parametrize("target", ["dice", "PlainDice"])
def test_an_instance_and_a_class_of_no_options_are_held_at_the_defaults(losses, target):
    options = {"with_softmax": False} if target == "PlainDice" else {}
    made = check(f"{losses}:{target}", "dice", options=options, dtypes=("float64",), **FEW)
    assert made.verdict in ("pass", "degraded")
    assert made.held["softmax"] == "False"


def test_a_function_is_held_to_what_it_is_said_to_compute(losses):
    target = f"{losses}:dice_of_softmax"
    given = {"dtypes": ("float32",), **FEW}
    assert check(target, "dice", options={"softmax": True}, **given).verdict != "fail"
    assert check(target, "dice", options={"softmax": True, "eps": 1e-5}, **given).verdict != "fail"
    assert check(target, "dice", options={"softmax": True, "eps": 1e-2}, **given).verdict == "fail"
    assert check(target, "dice", **given).verdict == "fail"


def test_arguments_may_have_other_names(losses):
    made = check(f"{losses}:dice", "dice", names={"input": "logits", "target": "truth"}, dtypes=("float32",), **FEW)
    assert made.verdict != "fail"


def test_arrays_are_judged_by_value_and_by_the_gradient_that_comes_with_them(arrays):
    given = {"dtypes": ("float64",), **FEW}
    made = check(f"{arrays}:dice", "dice", **given)
    assert made.verdict in ("pass", "degraded")
    assert not made.twin.differentiable
    made = check(f"{arrays}:dice", "dice", gradient=f"{arrays}:dice_gradient", **given)
    assert made.verdict in ("pass", "degraded", "imprecise")
    assert made.twin.differentiable
    made = check(f"{arrays}:dice", "dice", gradient=f"{arrays}:doubled_gradient", **given)
    assert made.rows[0].counterexample.kind == "gradient"


@pytest.mark.parametrize("dimension", [2, 3])
def test_only_the_ranks_that_are_asked_for_are_drawn(losses, dimension):
    twin = as_twin(Wiring(f"{losses}:dice", "dice", ranks=(dimension,)))
    made = check(f"{losses}:dice", "dice", ranks=[dimension], dtypes=("float32",), **FEW)
    assert made.rows[0].cases >= 40
    assert twin.ranks == (dimension,)
    shapes = {trial.case.input.values.ndim - 2 for trial in hunt(twin, "float32", 40, 0).kept}
    assert shapes == {dimension}


def test_the_scripts_run_by_themselves_and_fail_as_long_as_the_bugs_are_there(losses, tmp_path):
    scripts = []
    for name in ("WrongInBatch", "Remembers"):
        made = check(f"{losses}:{name}", "dice", names=NAMES, options=MEAN, dtypes=("float32",), **FEW)
        for loss in (name, "PlainDice"):
            scripts.append(tmp_path / "elsewhere" / f"{name}_{loss}.py")
            scripts[-1].parent.mkdir(exist_ok=True)
            scripts[-1].write_text(made.rows[0].counterexample.snippet.replace(name, loss))
    made = run_scripts(*scripts)
    assert [code for code, _ in made] == [1, 0, 1, 0], made


def test_a_known_deviation_passes_and_one_that_is_gone_is_reported(losses, tmp_path):
    known = tmp_path / "known.toml"
    given = {"names": NAMES, "options": MEAN, "dtypes": ("float32",), "xfails": known, **FEW}
    known.write_text('[[xfail]]\nreason = "we know"\nwhen = {batch = "True"}\n')
    made = check(f"{losses}:WrongInBatch", "dice", **given)
    assert made.verdict in ("pass", "degraded", "imprecise"), made.rows[0].counterexample
    assert made.rows[0].expected["we know"] > 0
    assert made.exit_code == 0
    made = check(f"{losses}:PlainDice", "dice", **given)
    assert [each.reason for each in made.stale] == ["we know"]
    assert made.exit_code == 1


def test_the_entries_that_are_shown_let_their_failures_pass(losses, tmp_path):
    given = {"names": NAMES, "options": MEAN, "dtypes": ("float32",), **FEW}
    known = tmp_path / "known.toml"
    known.write_text("")
    for _ in range(3):  # one for the value, one for the gradient
        made = check(f"{losses}:WrongInBatch", "dice", xfails=known, **given)
        if made.verdict != "fail":
            break
        known.write_text(known.read_text() + made.rows[0].counterexample.xfail)
    assert made.exit_code == 0
    assert made.rows[0].expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[xfail]\n", "cannot read"),
        ('[[xfail]]\nkind = "value"\n', "a reason is required"),
        ('[[xfail]]\nreason = "x"\ncolour = "red"\n', "fields are dtype"),
        ('[[xfail]]\nreason = "x"\nwhen = {batch = true}\n', "every value a string"),
    ],
)
def test_a_file_of_deviations_that_makes_no_sense_is_refused(losses, tmp_path, text, message):
    known = tmp_path / "known.toml"
    known.write_text(text)
    with pytest.raises(DeviationsError, match=message):
        check(f"{losses}:dice", "dice", xfails=known)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "package.module:attr"),
        ("missing.py:Dice", "there is no file"),
        ("no_such_package.losses:Dice", "cannot be imported"),
        ("{losses}:PlainDise", "PlainDice"),
        ("{losses}:NAME", "it has"),
        ("{broken}:Dice", "ZeroDivisionError"),
        ("math:pi", "is a float"),
    ],
)
def test_a_target_that_is_not_there_is_named_with_what_is(losses, tmp_path, target, message):
    broken = tmp_path / "broken_losses.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(TargetError, match=message):
        check(target.format(losses=losses, broken=broken), "dice")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"options": {"softmaxx": True}}, "did you mean softmax"),
        ({"names": {"inputs": "x"}}, "did you mean input"),
        ({"options": {"softmax": True, "sigmoid": True}}, "this combination of options"),
    ],
)
def test_what_does_not_fit_the_target_is_refused(losses, more, message):
    with pytest.raises(TargetError, match=message):
        check(f"{losses}:dice", "dice", **more)


def test_the_command_tells_writes_and_exits(losses, tmp_path):
    out = tmp_path / "out"
    target = ["check", f"{losses}:WrongInBatch", "--as", "dice", "--map", "softmax=with_softmax"]
    more = ["--option", "reduction=mean", "--dtype", "float32", "--examples", "40", "--seed", "0", "--report", str(out)]
    done = CliRunner().invoke(APP, target + more)
    assert done.exit_code == 1, done.output
    assert "Differs with batch=True" in done.output
    assert "[[xfail]]" in done.output
    row = json.loads((out / "report.json").read_text())["rows"][0]
    assert row["verdict"] == "fail"
    assert (out / "dice_float32_generated.py").exists()


def test_a_bad_target_is_a_matter_of_usage(tmp_path):
    done = CliRunner().invoke(APP, ["check", "missing.py:Dice", "--as", "dice", "--report", str(tmp_path)])
    assert done.exit_code == 2
    done = CliRunner().invoke(APP, ["check", "math:sin", "--as", "dise", "--report", str(tmp_path)])
    assert done.exit_code == 2
    assert "dice" in done.output


PLUGGED = """
from somebodys_losses import PlainDice, WrongInBatch

HELD = {"names": {"softmax": "with_softmax"}, "options": {"reduction": "mean"}, "examples": 30, "dtypes": ["float32"]}


def test_right(twin_check):
    assert twin_check(PlainDice, "dice", **HELD).exit_code == 0


def test_wrong(twin_check):
    twin_check(WrongInBatch, "dice", **HELD)
"""


def test_the_plugin_hunts_a_target_and_its_fixture_fails_a_test(losses):
    folder = Path(losses).parent
    (folder / "test_plugged.py").write_text(PLUGGED)
    line = ["--twinloss-target", "somebodys_losses:dice", "--twinloss-as", "dice", "--twinloss-examples", "30"]
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *line, "test_plugged.py"]
    done = subprocess.run(pytest_here, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 passed, 1 failed" in done.stdout or "1 failed, 3 passed" in done.stdout, done.stdout
    assert "Differs with batch=True" in done.stdout
    assert "This script shows it" in done.stdout


def test_the_plugin_knows_the_losses_before_it_runs_anything(losses):
    line = ["--twinloss-target", "somebodys_losses:dice", "--twinloss-as", "dise"]
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *line]
    done = subprocess.run(pytest_here, cwd=Path(losses).parent, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert "did you mean 'dice'?" in done.stderr


OVERFLOWING = """

def overflowing(logits, truth):
    e = torch.exp(logits)
    return PlainDice()(e / e.sum(1, keepdim=True) if logits.shape[1] > 1 else logits, truth)
"""


def test_nan_is_no_matter_of_digits(losses):
    """Of a softmax that overflows, which float64 hides for a while."""
    losses.write_text(LOSSES + OVERFLOWING)
    made = check(f"{losses}:overflowing", "dice", options={"softmax": True}, dtypes=("float32",), **FEW)
    assert made.verdict == "fail"
    assert "NaN" in made.rows[0].counterexample.message
    assert torch.isfinite(fast.DiceLoss(softmax=True)(torch.full((1, 2, 1), 1e4), torch.full((1, 2, 1), 0.5)))


class WithoutInit(torch.nn.Module):
    def forward(self, input, target):
        target = target.to(input.dtype)
        both = (2 * (input * target).flatten(2).sum(-1) + 1e-5) / ((input + target).flatten(2).sum(-1) + 1e-5)
        return (1 - both).mean()


def test_a_module_without_an_init_of_its_own_takes_no_options():
    report = check(WithoutInit, "dice", ranks=(1, 2, 3), dtypes=("float64",), **FEW)
    assert report.verdict == "pass"
    assert report.held["softmax"] == "False"


def test_a_gradient_in_a_file_is_found_again_from_elsewhere(tmp_path, monkeypatch):
    """A script that names it relative to where the check ran would not run from another folder."""
    (tmp_path / "kernel.py").write_text(
        "def dice(input, target):\n    return input.mean()\n\n\ndef slope(input, target):\n    return 0 * input\n"
    )
    monkeypatch.chdir(tmp_path)
    made = check("kernel.py:dice", "dice", gradient="kernel.py:slope", examples=2, dtypes=["float32"], seed=0)
    assert f"gradient='{tmp_path.resolve()}/kernel.py:slope'" in made.rows[0].counterexample.snippet


def test_a_script_to_look_at_does_not_fill_the_terminal_with_numbers():
    script = "import numpy\nx = '" + "7" * 100_000 + "'\n"
    shown = shortened(script)
    assert len(shown) < 1_000
    assert shown.startswith("import numpy\nx = '777")
    assert "characters more" in shown
