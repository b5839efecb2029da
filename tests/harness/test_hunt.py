"""Known-bad Dice losses must be killed, and for the right reason; a good one must live."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scripts import run_scripts

from twinloss import reference
from twinloss.harness.hunting import hunt as hunting
from twinloss.harness.hunting import self_check
from twinloss.harness.hunting.hunt import Hunt, hunt
from twinloss.harness.judging.judgement import Finding
from twinloss.harness.losses.segmentation import DICE


class Good(torch.nn.Module):
    """The reference itself, in longdouble, as a torch module."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def value(self, x, target):
        return reference.dice_loss(x, target, **self.options)

    def gradient(self, x, target, cotangent):
        return reference.dice_loss_gradient(x, target, cotangent=cotangent, **self.options)

    def forward(self, input, target):
        return Slow.apply(input, target, self)


class Slow(torch.autograd.Function):
    """A module's `value` and `gradient`."""

    @staticmethod
    def forward(ctx, input, target, loss):
        ctx.loss, ctx.like = loss, input
        ctx.arrays = [t.detach().double().numpy().astype(np.longdouble) for t in (input, target)]
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.asarray(loss.value(*ctx.arrays), np.float64)).to(input.dtype)

    @staticmethod
    def backward(ctx, weights):
        with np.errstate(all="ignore"):
            made = ctx.loss.gradient(*ctx.arrays, weights.double().numpy())
        return torch.from_numpy(np.asarray(made, np.float64)).to(ctx.like.dtype), None, None


class NegativeGradient(Good):
    def gradient(self, x, target, cotangent):
        return -super().gradient(x, target, cotangent)


class HalfGradient(Good):
    def gradient(self, x, target, cotangent):
        return super().gradient(x, target, cotangent) / 2


class NoSmoothing(Good):
    def __init__(self, **options):
        super().__init__(**options | {"smooth_dr": 0.0})


class WrongAxis(Good):
    """Sums over the batch, whatever it is told."""

    def __init__(self, **options):
        super().__init__(**options | {"batch": True})


class ContiguousOnly(Good):
    """Writes the gradient of contiguous input only."""

    def forward(self, input, target):
        value = super().forward(input, target)
        return value if input.is_contiguous() else value.detach() + 0 * value


class NotANumber(Good):
    def value(self, x, target):
        return super().value(x, target) * np.nan


class Crashing(Good):
    def forward(self, input, target):
        return super().forward(input, target.reshape(input.shape))


class Remembering(Good):
    """Keeps state: a second call gives more."""

    calls = 0

    def value(self, x, target):
        self.calls += 1
        return super().value(x, target) * self.calls


class ZeroedTarget(Good):
    def forward(self, input, target):
        loss = super().forward(input, target)
        target.zero_()
        return loss


OPTIONS = ("include_background", "softmax", "to_onehot_y", "batch", "reduction", "smooth_nr", "smooth_dr", "soft_label")
TWIN = replace(
    DICE,
    options={name: DICE.options[name] for name in OPTIONS},
    allowed=lambda options: True,
    slopes=lambda twin, case: (),
    laws=tuple(law for law in DICE.laws if {o for o, v in law.needs.items() if v} <= set(OPTIONS)),
)


@cache
def killed(bad):
    return hunted(bad)


def hunted(fast, dtype="float32", **changes) -> Hunt:
    return hunt(replace(TWIN, fast=fast, **changes), dtype, 60, start=0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_good_twin_lives(dtype):
    seen = hunted(Good, dtype)
    assert seen.verdict != "fail", (seen.counterexample, seen.problems)
    assert seen.cases >= 60
    assert set(seen.laws) == {law.name for law in TWIN.laws_for(dtype)}


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (NegativeGradient, "gradient"),
        (HalfGradient, "gradient"),
        (NoSmoothing, "value"),
        (WrongAxis, "value"),
        (ContiguousOnly, "gradient"),
        (NotANumber, "value"),
        (Crashing, "error"),
        (Remembering, "law"),
        (ZeroedTarget, "law"),
    ],
)
def test_a_bad_twin_is_killed_for_the_right_reason(bad, kind):
    seen = killed(bad)
    assert seen.verdict == "fail"
    assert seen.counterexample.kind == kind, seen.counterexample.message


def test_the_scripts_fail_as_long_as_the_bugs_are_there(tmp_path):
    scripts = []
    for bad in (HalfGradient, ContiguousOnly, Remembering):
        text = killed(bad).counterexample.snippet.replace(f"from {bad.__module__} import", "from test_hunt import")
        for loss in (bad.__name__, "Good"):
            scripts.append(tmp_path / f"{bad.__name__}_{loss}.py")
            scripts[-1].write_text(text.replace(bad.__name__, loss))
    made = run_scripts(*scripts)
    assert [code for code, _ in made] == [1, 0] * 3, made


def test_counterexamples_are_small():
    # One voxel, and no option that the bug does not need.
    text = killed(HalfGradient).counterexample.snippet
    assert "fast = HalfGradient()" in text
    assert text.count("np.array([[[") <= 3


def test_a_judge_that_cannot_fail_is_noticed(monkeypatch):
    for judge in ("judge_value", "judge_gradient"):
        monkeypatch.setattr(self_check, judge, lambda truth, answer: Finding("value", "pass", 0.0))
    seen = hunted(Good)
    assert seen.verdict == "fail"
    assert "the judge accepts a gradient of input replaced by zeros" in seen.problems
    assert "the judge accepts a value of the wrong sign" in seen.problems


def test_a_dead_option_is_named():
    seen = hunted(Good, options={**TWIN.options, "smooth_dr": (1e-5, np.float64(1e-5))})
    assert any("smooth_dr" in problem and "dead" in problem for problem in seen.problems)


def test_an_interruption_keeps_what_was_seen(monkeypatch):
    examine, calls = hunting.examine, []

    def interrupted(twin, case):
        calls.append(case)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return examine(twin, case)

    monkeypatch.setattr(hunting, "examine", interrupted)
    seen = hunted(Good)
    assert seen.interrupted
    assert seen.cases == 20
