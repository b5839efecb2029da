"""Tests that `twinloss check` gives the right verdict, and the same for all seeds."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from twinloss.harness import check
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.commands.check import story
from twinloss.harness.drawing import coverage
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.hunting import conventions
from twinloss.harness.hunting.hunt import Hunt, hunt
from twinloss.harness.hunting.loading import TargetError
from twinloss.harness.hunting.relation import relation as relation_of
from twinloss.harness.hunting.target import Wiring, adapted
from twinloss.harness.judging.truth import Truth
from twinloss.harness.losses.catalogue import TWINS

TYPES, NO_AXES, ONE_CHANNEL, SOFT, COMPONENTS, IMAGES = (each.name for each in conventions.CONVENTIONS)
SOFTMAX = {"options": {"softmax": True}, "dtypes": ["float64"], "examples": 10}


def dice(p, target, axes):
    g = target.to(p.dtype)
    overlap, total = ((p * g).sum(axes), (p + g).sum(axes)) if axes else (p * g, p + g)
    return (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean()


class SoftmaxDice(torch.nn.Module):
    """Right for several classes and at least one spatial axis, like most implementations."""

    def forward(self, input, target):
        p, g = input.softmax(1), target.to(input.dtype)
        overlap = (p * g).flatten(2).sum(-1)
        return (1 - (2 * overlap + 1e-5) / ((p + g).flatten(2).sum(-1) + 1e-5)).mean()


class PlainDice(torch.nn.Module):
    """Right if there are spatial axes."""

    def forward(self, input, target):
        return dice(input.flatten(2), target.flatten(2), 2)


class Promoted(torch.nn.Module):
    """Right; the value has the dtype to which torch promotes the arguments."""

    def forward(self, input, target):
        return dice(input + 0 * target, target, tuple(range(2, input.ndim)))


class OfHardTargets(SoftmaxDice):
    """Takes targets of 0 and 1, and rounds others."""

    def forward(self, input, target):
        return super().forward(input, target.to(input.dtype).round())


class OfLabels(SoftmaxDice):
    """Takes labels of shape (B, *S)."""

    def forward(self, input, target):
        return super().forward(input, torch.nn.functional.one_hot(target, input.shape[1]).movedim(-1, 1))


class Pooled(torch.nn.Module):
    """Wrong: pools the classes."""

    def forward(self, input, target):
        return dice(input.softmax(1).flatten(1), target.flatten(1), 1)


class WithoutFirst(SoftmaxDice):
    """Wrong: leaves the background out."""

    def forward(self, input, target):
        return super().forward(input[:, 1:], target[:, 1:])


class WrongInPlanes(SoftmaxDice):
    """Wrong for a single item of rank 2 with an axis of size 1."""

    def forward(self, input, target):
        wrong = input.ndim == 4 and len(input) == 1 and 1 in input.shape[2:]
        return super().forward(input, target) * (1.5 if wrong else 1)


class Less(SoftmaxDice):
    def forward(self, input, target):
        return super().forward(input, target) - 1


class Twice(SoftmaxDice):
    def forward(self, input, target):
        return 2 * super().forward(input, target)


class SteeperByHalf(SoftmaxDice):
    def forward(self, input, target):
        value = super().forward(input, target)
        return 1.5 * value - 0.5 * value.detach()


class Coefficient(SoftmaxDice):
    def forward(self, input, target):
        return 1 - super().forward(input, target)


class NaiveCorrelation(torch.nn.Module):
    """Correlation whose variances are differences of large sums."""

    def forward(self, pred, target):
        n, convolve = 3 ** (pred.ndim - 2), getattr(torch.nn.functional, f"conv{pred.ndim - 2}d")
        window = torch.ones(1, 1, *[3] * (pred.ndim - 2), dtype=pred.dtype)

        def total(image):
            return convolve(image.reshape(-1, 1, *image.shape[2:]), window, padding=1).reshape(image.shape)

        t, p = target.to(pred.dtype), pred
        cross = total(t * p) - total(t) * total(p) / n
        variance_t, variance_p = (total(v * v) - total(v) ** 2 / n for v in (t, p))
        return -((cross * cross + 1e-5) / (variance_t.clamp(min=0) * variance_p.clamp(min=0) + 1e-5)).mean()


# --- conventions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_right_dice_of_several_classes_passes_whatever_the_seed(seed):
    made = check(SoftmaxDice, "dice", seed=seed, **SOFTMAX)
    assert made.verdict == "imprecise", made.rows[0].counterexample  # its softmax loses digits
    assert set(made.conventions) == {NO_AXES, ONE_CHANNEL}
    assert made.exit_code == 0


@pytest.mark.parametrize("seed", range(2))
def test_right_dice_without_an_activation_passes_whatever_the_seed(seed):
    made = check(PlainDice, "dice", seed=seed, dtypes=["float32"], examples=20)
    assert made.verdict == "convention", made.rows[0].counterexample
    assert set(made.conventions) == {NO_AXES}
    assert made.exit_code == 0


def test_strict_counts_conventions_as_failures():
    made = check(PlainDice, "dice", dtypes=["float32"], examples=20, strict=True)
    assert made.verdict == "convention"
    assert made.exit_code == 1


def test_convention_that_an_option_asks_for_is_not_reported():
    assert check(PlainDice, "dice", dtypes=["float32"], examples=5, ranks=[0, 1]).verdict == "convention"
    with pytest.raises(TargetError, match="Dimension out of range"):
        check(PlainDice, "dice", dtypes=["float32"], examples=5, ranks=[0])
    assert check(SoftmaxDice, "dice", channels=1, **SOFTMAX).verdict == "fail"


def test_promoted_dtype_is_a_convention_and_the_value_is_still_judged():
    made = check(Promoted, "dice", dtypes=["float32"], examples=20)
    assert made.verdict == "convention"
    assert set(made.conventions) == {TYPES}
    assert "torch.float64" in made.conventions[TYPES].message


def test_soft_targets_of_a_loss_of_hard_ones_are_a_convention():
    made = check(OfHardTargets, "dice", ranks=[1, 2], channels=3, **SOFTMAX)
    assert made.verdict == "imprecise"
    assert set(made.conventions) == {SOFT}
    made = check(OfHardTargets, "dice", ranks=[1, 2], channels=3, hard_targets=True, **SOFTMAX)
    assert not made.conventions


@pytest.mark.parametrize("target", [Pooled, WithoutFirst, WrongInPlanes])
@pytest.mark.parametrize("seed", range(2))
def test_conventions_do_not_hide_what_is_wrong_whatever_the_seed(target, seed):
    twin = adapted(Wiring("here:target", "dice", {"softmax": True}), target)
    seen = hunt(twin, "float64", 10, seed, into=Hunt(twin, "float64", forgiving=True, lenient=True))
    assert seen.verdict == "fail"
    assert seen.counterexample.kind in ("value", "gradient", "law")


def test_labels_without_the_axis_of_channels_can_be_asked_for():
    made = check(OfLabels, "dice", ranks=[1, 2], channels=3, labels_without_channel=True, **SOFTMAX)
    assert made.verdict == "imprecise", made.rows[0].counterexample
    assert made.held["to_onehot_y"] == "True"
    assert set(made.conventions) == {TYPES}  # torch's one_hot takes int64
    with pytest.raises(TargetError, match="without to_onehot_y"):
        check(OfLabels, "dice", labels_without_channel=True, options={"to_onehot_y": False})
    with pytest.raises(TargetError, match="takes no labels"):
        check(OfLabels, "lncc", labels_without_channel=True)


def test_channels_and_targets_that_are_asked_for_are_the_only_ones_drawn():
    made = check(SoftmaxDice, "dice", channels=3, hard_targets=True, **SOFTMAX)
    cases = [trial.case for trial in hunt(made.twin, "float32", 40, 0).kept]
    assert {case.input.values.shape[1] for case in cases} == {3}
    assert all(np.isin(case.operands["target"].values, (0, 1)).all() for case in cases)
    with pytest.raises(TargetError, match="needs at least 2 channels"):
        check(SoftmaxDice, "generalized_wasserstein_dice", channels=1)
    with pytest.raises(TargetError, match="no segmentation target"):
        check(SoftmaxDice, "lncc", hard_targets=True)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_pairs_of_shapes_and_options_are_covered(twin):
    table, missing = coverage.with_shapes(twin), coverage.missing_pairs(twin, set())
    assert {coverage.RANK, coverage.ITEMS, coverage.NUMBERS} <= {name for pair in missing for name, _ in pair}
    for row in coverage.covering_rows(table, missing):
        shape = {name: row.pop(name) for name in coverage.shapes(twin)}
        for case in drawn(coverage.narrowed(twin, shape), "float32", row, None, 1, 0):
            missing -= coverage.pairs_of(
                {name: case.traits[name] for name in twin.options} | coverage.shape_of(twin, case)
            )
    assert not missing


def test_report_says_what_ours_do_for_one_convention_and_for_several():
    told = [each.ours for each in conventions.CONVENTIONS]
    assert [conventions.ours(each.name) for each in conventions.CONVENTIONS] == told
    both = conventions.TOGETHER.join([NO_AXES, SOFT])
    assert conventions.ours(both).count(";") == 1
    assert conventions.told([NO_AXES, SOFT, both, conventions.TOGETHER.join([NO_AXES, TYPES])]) == sorted(
        [NO_AXES, SOFT, conventions.TOGETHER.join([NO_AXES, TYPES])]
    )


class SumsOfEach(torch.nn.Module):
    """Right; the target is summed in its own dtype."""

    def forward(self, input, target):
        p, g = input.flatten(2), target.flatten(2)
        return (1 - (2 * (p * g).sum(2) + 1e-5) / (p.sum(2) + g.sum(2) + 1e-5)).mean().to(input.dtype)


def test_sums_of_a_half_target_are_a_convention_and_sums_of_integers_are_not():
    made = check(SumsOfEach, "dice", dtypes=["float32"], ranks=[2], examples=40)
    assert made.verdict == "convention", made.rows[0].counterexample
    assert set(made.conventions) == {TYPES}
    assert check(BlindToIntegers, "dice", dtypes=["float32"], ranks=[2], examples=40).verdict == "fail"


class BlindToIntegers(PlainDice):
    """Wrong: treats a target of integers as empty."""

    def forward(self, input, target):
        return super().forward(input, target if target.is_floating_point() else 0 * target.int())


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_references_stay_within_the_bounds_of_their_losses(twin):
    for case in drawn(twin, "float64", {}, None, 150, 0):
        if not twin.domain(case):
            continue
        low, high = twin.bounds(twin.defaults() | dict(case.options), case.input.values.shape)
        value = Truth(twin, case).value
        value = value[~np.isnan(value)]
        assert ((value >= low - 1e-9) & (value <= high + 1e-9)).all(), (case, value, low, high)


def test_value_outside_the_bounds_of_the_loss_is_never_imprecise():
    made = check(NaiveCorrelation, "lncc", options={"kernel_size": 3}, ranks=[1], dtypes=["float32"], examples=40)
    assert made.verdict == "fail"
    assert "is outside [-1, 0]" in made.rows[0].counterexample.message


# --- relations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "relation"),
    [
        (Less, "off by a constant 1; the gradient agrees: the value is ours - 1"),
        (Twice, "2 times ours, in value and gradient"),
        (SteeperByHalf, "the value agrees; the gradient is 1.5 times ours"),
        (Coefficient, "the value is -1 times ours + 1; the gradient is -1 times ours"),
        (Pooled, None),
    ],
)
def test_simple_relation_to_our_loss_is_found(target, relation):
    twin = adapted(Wiring("here:target", "dice", {"softmax": True}), target)
    assert relation_of(twin, "float64", 0) == relation


def test_report_names_a_simple_relation_to_our_loss():
    made = check(Less, "dice", **SOFTMAX)
    assert made.verdict == "fail"
    assert any("off by a constant 1; the gradient agrees" in text for text, _ in story(made))


# --- calls -----------------------------------------------------------------------------------------------------------

UNCALLABLE = """
import torch


class NeedsMore(torch.nn.Module):
    def forward(self, input, target, distances):
        return (input * target * distances).mean()


class NeedsAnOption(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()

    def forward(self, input, target):
        return (input * target).mean()


def renamed(*, logits, truth):
    return (logits * truth).mean()


class OnlyPlanes(torch.nn.Module):
    def forward(self, input, target):
        if input.ndim != 4:
            raise ValueError("planes only")
        return (input * target).mean()
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NeedsMore", ("distances", "NeedsMore()(float32 (", "forward(self, input, target, distances)", "--option")),
        ("NeedsAnOption", ("classes", "NeedsAnOption(classes)", "--option NAME=VALUE")),
        ("renamed", ("positional", "renamed(*, logits, truth)", "--map target=THEIRS")),
    ],
)
def test_target_that_cannot_be_called_is_a_usage_error(tmp_path, name, words):
    path = tmp_path / "uncallable.py"
    path.write_text(UNCALLABLE)
    with pytest.raises(TargetError) as caught:
        check(f"{path}:{name}", "dice", dtypes=["float32"])
    assert not [word for word in words if word not in str(caught.value)], caught.value
    line = ["check", f"{path}:{name}", "--as", "dice", "--dtype", "float32", "--report", str(tmp_path)]
    assert CliRunner().invoke(with_all_commands(), line).exit_code == 2


def test_a_target_that_raises_for_some_shapes_gets_a_counterexample(tmp_path):
    path = tmp_path / "uncallable.py"
    path.write_text(UNCALLABLE)
    made = check(f"{path}:OnlyPlanes", "dice", dtypes=["float32"], examples=5)
    assert made.verdict == "fail"


def test_the_command_shows_conventions_and_fails_for_them_only_if_strict(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(
        "def dice(input, target):\n"
        "    p, g = input.flatten(2), target.to(input.dtype).flatten(2)\n"
        "    return 1 - ((2 * (p * g).sum(2) + 1e-5) / ((p + g).sum(2) + 1e-5)).mean()\n\n\n"
        "import torch\n"
    )
    line = ["check", f"{path}:dice", "--as", "dice", "--dtype", "float64", "--seed", "0", "--channels", "2"]
    line += ["--hard-targets", "--examples", "10", "--report", str(tmp_path)]
    done = CliRunner().invoke(with_all_commands(), line)
    assert done.exit_code == 0, done.output
    assert f"convention that papers leave open: {NO_AXES}" in done.output
    assert "channels=2, hard_targets=True" in (tmp_path / "dice_convention_no_spatial_axes.py").read_text()
    assert CliRunner().invoke(with_all_commands(), [*line, "--strict"]).exit_code == 1


PLANES = """
import torch


class OnlyPlanes(torch.nn.Module):
    def forward(self, input, target):
        if input.ndim != 4:
            raise ValueError("planes only")
        p, g = input.flatten(2), target.to(input.dtype).flatten(2)
        return 1 - ((2 * (p * g).sum(2) + 1e-5) / ((p + g).sum(2) + 1e-5)).mean()
"""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--twinloss-rank", "2", "--twinloss-channels", "2", "--twinloss-hard-targets"], "1 passed"),
        (["--twinloss-rank", "3"], "cannot be called"),
    ],
)
def test_the_plugin_takes_the_shapes_too(tmp_path, more, told):
    (tmp_path / "planes_only.py").write_text(PLANES)
    line = ["--twinloss-target", "planes_only:OnlyPlanes", "--twinloss-as", "dice", "--twinloss-dtype", "float64"]
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *line, *more]
    done = subprocess.run(
        [*pytest_here, "--twinloss-examples", "5"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told in done.stdout, done.stdout + done.stderr
