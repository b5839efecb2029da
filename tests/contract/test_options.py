"""Options of all losses: an assigned option counts as one that was given to the constructor, with the same errors."""

import copy
import inspect
import pickle
import runpy
from collections import defaultdict
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_options import OF_TABLES, TWIN
from support import BACKENDS, labels, logits, soft, value_and_gradient

from twinloss import fast, reference
from twinloss.fast.engine.segmentation.loss import SegmentationLoss

NO_GROUP = ("a group", TypeError)
DISTANCES = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.25], [1.0, 0.25, 0.0]]


FLAG = ("yes", TypeError)
NUMBER = (("a", TypeError), (-1.0, ValueError), (float("nan"), ValueError))
SMOOTHING = (0.5, ("a", TypeError), (-1.0, ValueError), (float("nan"), ValueError), (float("inf"), ValueError))
WEIGHTS = (("a", TypeError), (-1.0, ValueError), ([1.0, float("nan"), 1.0], ValueError), ([[1.0]], ValueError))
LAMBDA = (0.5, *NUMBER)
# Of each option a value other than the default, and values that raise, each with its error.
OF_ALL = {
    "include_background": (False, FLAG),
    "to_onehot_y": (True, FLAG),
    "sigmoid": (True, FLAG),
    "softmax": (True, FLAG),
    "other_act": (torch.sigmoid, ("sigmoid", TypeError)),
    "reduction": ("sum", ("average", ValueError), (None, ValueError)),
    "smooth_nr": SMOOTHING,
    "smooth_dr": SMOOTHING,
    "batch": (True, FLAG),
    "soft_label": (True, FLAG),
    "squared_pred": (True, FLAG),
    "jaccard": (True, FLAG),
    "weight": ([1.0, 2.0, 3.0], *WEIGHTS),
    "ce_weight": ([1.0, 2.0, 3.0], *WEIGHTS),
    "focal_weight": ([1.0, 2.0, 3.0], *WEIGHTS),
    "ignore_index": (1, (0.5, ValueError), (True, ValueError), (2**63, ValueError)),
    "process_group": (None, NO_GROUP),
    "return_parts": (False, FLAG),  # `test_parts.py` tests True
    "alpha": (0.25, *WEIGHTS, (2.0, ValueError)),
    "beta": (2.0, *NUMBER),
    "gamma": (0.5, *NUMBER, (float("inf"), ValueError)),
    "use_softmax": (False, FLAG),
    "lambda_dice": LAMBDA,
    "lambda_gdl": LAMBDA,
    "lambda_ce": LAMBDA,
    "lambda_focal": LAMBDA,
    "label_smoothing": (0.25, *NUMBER, (1.5, ValueError)),
    "multilabel": (True, FLAG),
    "w_type": ("simple", ("cube", ValueError)),
    "normalize_weights": (True, FLAG),
    "dist_matrix": (1 - np.eye(3), ([[0, 1]], ValueError), ([[1.0]], ValueError), ([[0, -1], [1, 0]], ValueError)),
    "weighting_mode": ("GDL", ("gdl", ValueError)),
    "stencil": ("wide", ("wider", ValueError)),
    "normalize": (True, FLAG),
    "spacing": ([2.0, 0.5], (2.0, TypeError), ("12", TypeError), ([0.0, 1.0], ValueError), ([-1.0, 1.0], ValueError)),
    "ndim": (2, (4, ValueError), (2.0, ValueError)),
    "spatial_dims": (2, (0, ValueError), ("2", ValueError)),
    "kernel_size": (5, (4, ValueError), (-1, ValueError), (3.0, ValueError)),
    "kernel_type": ("gaussian", ("cauchy", ValueError)),
    "denominator": ("clamp", ("sum", ValueError)),
    "num_bins": (8, (1, ValueError), (8.0, ValueError), (2**14, ValueError)),
    "sigma_ratio": (1.0, *NUMBER, (0, ValueError)),
    "loss": (torch.nn.L1Loss(), ("mse", TypeError), (torch.nn.MSELoss, TypeError)),
    "weight_mode": ("two", ("linear", ValueError)),
    "weights": ([0.5, 2.0], ([], ValueError), ([0.0, 0.0], ValueError), ([-1.0], ValueError), ("a", TypeError)),
    "interp_mode": ("nearest", ("bilinear", ValueError)),
    "stacked": (True, FLAG),
    "scales": ([0, 1.0], (1.0, TypeError), ([], ValueError), ([-1.0], ValueError), (["a"], TypeError)),
    "kernel": ("cauchy", ("box", ValueError)),
    "normalize_kernel": (True, FLAG),
}
# Options that mean something else in one loss.
OF_ONE = {
    fast.TverskyLoss: {"alpha": (0.25, *NUMBER)},
    fast.FocalTverskyLoss: {
        "alpha": (0.25, *NUMBER), "gamma": ([0.5, 1.0, 2.0], *WEIGHTS, (0, ValueError), (None, TypeError)),
    },
    fast.DiceCELoss: {"reduction": ("sum", ("none", ValueError), ("average", ValueError))},
    fast.GlobalMutualInformationLoss: {"kernel_type": ("b-spline", ("spline", ValueError))},
    fast.MultiScaleLoss: {"loss": (torch.nn.L1Loss(), ("mse", TypeError))},
}  # fmt: skip
LOSSES = [each for name, each in vars(fast).items() if name.endswith("Loss")]
OPTIONS = {
    loss_class: {
        name: (OF_ALL | OF_ONE.get(loss_class, {})).get(name) for name in inspect.signature(loss_class).parameters
    }
    for loss_class in LOSSES
}
# Options without which a loss cannot be made, or another option makes no difference.
BASE = {
    fast.GeneralizedWassersteinDiceLoss: {"dist_matrix": DISTANCES},
    fast.MultiScaleLoss: {"loss": torch.nn.MSELoss(), "scales": [0.3, 1.0]},
    fast.DeepSupervisionLoss: {"loss": torch.nn.MSELoss(), "weight_mode": "same"},
    fast.MaskedLoss: {"loss": torch.nn.MSELoss()},
}
EVERY_LOSS = pytest.mark.parametrize("loss_class", list(OPTIONS), ids=lambda c: c.__name__)
EVERY_OPTION = pytest.mark.parametrize(
    ("loss_class", "name"), [(loss, name) for loss, options in OPTIONS.items() for name in options if options[name]],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip


def base(loss_class, name):
    """Options beside the one called `name`."""
    options = dict(BASE.get(loss_class, {}))
    if "softmax" in OPTIONS[loss_class] and name not in ("sigmoid", "softmax", "other_act", "multilabel"):
        options["softmax"] = True
    if name == "multilabel":
        options["sigmoid"] = True
    if name == "ignore_index" and "to_onehot_y" in OPTIONS[loss_class]:
        options["to_onehot_y"] = True
    return options


def arguments(loss, name):
    """Arguments for which the option called `name` makes a difference."""
    rank = 2 if name in ("ndim", "spatial_dims") else 3
    if isinstance(loss, (fast.BendingEnergyLoss, fast.DiffusionLoss)):
        return [torch.rand(1, 2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    if isinstance(loss, fast.DeepSupervisionLoss):
        x = [logits(2, 1, *spatial, seed=k) for k, spatial in enumerate([(6, 7), (3, 4)])]
        return [torch.stack([x[0], x[0] / 2], 1) if loss.stacked else x, logits(2, 1, 6, 7, seed=2)]
    if isinstance(loss, fast.MaskedLoss):
        return [logits(2, 1, 6, 7), logits(2, 1, 6, 7, seed=1), torch.ones(1, 1, 6, 7)]
    if not isinstance(loss, SegmentationLoss):
        return [torch.rand(2, 1, *(6, 7, 5)[:rank], generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    x = logits(2, 3, 6, dtype=torch.float64)
    if not any(option in vars(loss) and vars(loss)[option] for option in ("sigmoid", "softmax", "other_act")):
        x = x.softmax(1) * 0.9
    target = labels(2, 1, 6) if loss.to_onehot_y else soft(2, 3, 6, dtype=torch.float64)
    return [x, target, torch.ones(2, 1, 6)] if isinstance(loss, fast.MaskedDiceLoss) else [x, target]


def value(loss, name):
    """The loss of these arguments."""
    return loss(*arguments(loss, name))


def test_every_option_has_its_values_here():
    left = {f"{loss.__name__}.{name}" for loss, options in OPTIONS.items() for name in options if options[name] is None}
    assert not left, f"add {left} to OF_ALL, with a value other than the default and values that raise"


# Ranks need processes of their own, and the number of axes is that of the images.
NOT_IN_TABLES = {"process_group", "return_parts", "ndim", "spatial_dims"}


@cache
def options_in_tables():
    """Return, for each loss, the options that some table of `with_options` lists."""
    modules = [runpy.run_path(str(path)) for path in Path(__file__).parent.glob("test_*.py")]
    marks = [mark for module in modules for each in module.values() for mark in getattr(each, "pytestmark", ())]
    names = defaultdict(set)
    for loss_class, options in [case.values for mark in marks if mark.args[:1] == OF_TABLES for case in mark.args[1]]:
        names[loss_class].update(options)
    return names


# The options of MaskedDiceLoss are those of DiceLoss, which computes it, and the wrappers have tests of their own.
WITH_OWN_TESTS = (fast.MaskedDiceLoss, fast.DeepSupervisionLoss, fast.MaskedLoss)


@pytest.mark.parametrize("loss_class", [each for each in OPTIONS if each not in WITH_OWN_TESTS])
def test_contract_tests_vary_every_option(loss_class):
    left = set(OPTIONS[loss_class]) - options_in_tables()[loss_class] - NOT_IN_TABLES
    assert not left, f"no test in tests/contract varies {left} of {loss_class.__name__}: add rows to a `with_options`"


@EVERY_LOSS
def test_all_options_can_be_read_under_their_names(loss_class):
    loss = loss_class(**BASE.get(loss_class, {}))
    assert all(hasattr(loss, name) for name in OPTIONS[loss_class])


@EVERY_OPTION
def test_assigned_option_counts_as_one_given_at_once(loss_class, name):
    given, others = OPTIONS[loss_class][name][0], base(loss_class, name)
    at_once, later = loss_class(**others | {name: given}), loss_class(**others)
    before = later.reduction
    if name not in ("ndim", "spatial_dims"):  # whatever a loss remembers of a call must not outlive the assignment
        value(later, name)
    setattr(later, name, given)
    expected = value(at_once, name)
    assert getattr(later, name) == getattr(at_once, name)
    assert later.reduction == before or name == "reduction"
    for made in (later, copy.deepcopy(later), pickle.loads(pickle.dumps(later))):
        assert torch.equal(value(made, name), expected)
    if name not in (
        "to_onehot_y",
        "ndim",
        "spatial_dims",
        "process_group",
        "stacked",
        "return_parts",
    ):  # these decide on the input, or are None
        assert not torch.equal(value(loss_class(**others), name), expected)


@EVERY_OPTION
def test_option_of_a_copy_leaves_the_original_as_it_was(loss_class, name):
    loss, given = loss_class(**base(loss_class, name)), OPTIONS[loss_class][name][0]
    used = "reduction" if name in ("ndim", "spatial_dims") else name  # these decide on the input
    expected = value(loss, used)
    # As in torch, a shallow copy has the same dictionary of modules as the original.
    for copied in (copy.deepcopy,) if isinstance(given, torch.nn.Module) else (copy.copy, copy.deepcopy):
        made = copied(loss)
        setattr(made, name, given)
        value(made, name)
        assert torch.equal(value(loss, used), expected)


def test_result_of_an_assigned_option_is_remembered_until_the_next_one():
    loss, calls = fast.DiceLoss(), []
    for _ in range(2):
        assert loss.remembered("key", lambda: calls.append(1) or "found") == "found"
    assert loss.remembered("another key", lambda: calls.append(1) or "else") == "else"
    assert len(calls) == 2
    assert "_memory" not in vars(loss)
    loss.anything = 1
    assert loss.remembered("key", lambda: "again") == "again"
    del loss.anything
    assert loss.remembered("key", lambda: "once more") == "once more"


def test_option_that_another_thread_assigns_meanwhile_is_not_overlooked():
    loss = fast.TverskyLoss(alpha=0.5)

    def make():
        found = loss.alpha
        loss.alpha = 0.25  # as another thread does it after the option was read
        return found

    assert loss.remembered("alpha", make) == 0.5
    assert loss.remembered("alpha", lambda: loss.alpha) == 0.25


def test_memory_of_a_loss_does_not_grow_with_the_number_of_shapes():
    loss = fast.DiffusionLoss()
    for size in range(2, 200):
        loss(torch.zeros(1, 1, size))
    assert len(loss._memory) <= 64


@EVERY_OPTION
def test_bad_value_is_the_same_error_when_it_is_assigned_and_the_old_one_stays(loss_class, name):
    others = base(loss_class, name)
    loss = loss_class(**others)
    before = getattr(loss, name)
    for bad, error in OPTIONS[loss_class][name][1:]:
        with pytest.raises(error, match=name) as at_once:
            loss_class(**others | {name: bad})
        with pytest.raises(error) as later:
            setattr(loss, name, bad)
        assert str(later.value) == str(at_once.value)
        assert getattr(loss, name) == before


FLAGS = [0.5, 2, -1, None, [], "True", np.array([True, False])]
BOOLEANS = [True, np.True_, [True, 1.0], [False, False], np.array([True, False]), torch.tensor(True)]


def wrong_type(given):
    """Return numbers for a flag, and booleans for any other option."""
    return FLAGS if isinstance(given, bool) else BOOLEANS


@EVERY_OPTION
def test_boolean_for_a_number_and_number_for_a_flag_are_errors_that_name_the_option(loss_class, name):
    others = base(loss_class, name)
    for bad in wrong_type(OPTIONS[loss_class][name][0]):
        with pytest.raises((TypeError, ValueError), match=name):
            loss_class(**others | {name: bad})


@EVERY_OPTION
def test_boolean_for_a_number_and_number_for_a_flag_are_errors_of_the_reference(loss_class, name):
    function = getattr(reference, loss_class.__module__.rpartition(".")[2] + "_loss")
    parameters = inspect.signature(function).parameters
    given = OPTIONS[loss_class][name][0]
    if name in parameters and isinstance(given, (bool, int, float, list, np.ndarray)):
        arguments = [None for each in parameters.values() if each.kind is not each.KEYWORD_ONLY]
        for bad in wrong_type(given):
            with pytest.raises(TypeError, match=name):
                function(*arguments, **{name: bad})


@pytest.mark.parametrize("flag", [0, 1, np.False_, np.int64(1)])
def test_0_and_1_are_flags(flag):
    assert fast.DiceLoss(batch=flag).batch is bool(flag)
    x, g = np.full((1, 2, 3), 0.25), np.ones((1, 2, 3))
    assert reference.dice_loss(x, g, batch=flag) == reference.dice_loss(x, g, batch=bool(flag))


EXTREMES = (1e-300, 1e-200, 1e-30, 1e30, 1e99, 1e200, 1.7e308, 100_000, 100_001, 2**70 + 1, 10**400)
REAL_OPTIONS = [
    (loss_class, name)
    for loss_class, options in OPTIONS.items()
    for name, (given, *_) in ((name, values) for name, values in options.items() if values)
    if isinstance(given, (int, float, list, np.ndarray))
    and not isinstance(given, bool)
    and loss_class is not fast.DeepSupervisionLoss
]


def filled(given, extreme):
    """Return a number, or lists of the same shape."""
    return np.full(np.shape(given), extreme, object).tolist()


@BACKENDS
@pytest.mark.parametrize(("loss_class", "name"), REAL_OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_extreme_number_is_an_error_that_names_the_option_or_has_the_value_of_the_reference(form, loss_class, name):
    given, others, twin = OPTIONS[loss_class][name][0], base(loss_class, name), TWIN[loss_class]
    arrays = [argument.double() for argument in arguments(loss_class(**others), name)]
    told, axes = [], "ndim" if name == "spatial_dims" else name
    for extreme in EXTREMES:
        option = filled(given, extreme)
        try:
            loss = loss_class(**others | {name: option})
        except (TypeError, ValueError) as error:
            told.append(str(error))
            continue
        found, gradient = value_and_gradient(loss, *arrays, form=form)
        options = others | {axes: option}
        if loss_class is fast.MultiScaleLoss:
            options["loss"] = "squares"
        expected = twin.value(arrays[0].numpy().astype(np.longdouble), *(a.numpy() for a in arrays[1:]), **options)
        np.testing.assert_allclose(found.numpy(), np.float64(expected), rtol=1e-6)
        assert not gradient.isnan().any()
    assert all(name in error for error in told)


@pytest.mark.parametrize(("loss_class", "name"), REAL_OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_extreme_number_is_an_error_of_the_reference_too_or_has_a_result(loss_class, name):
    given, others, twin = OPTIONS[loss_class][name][0], base(loss_class, name), TWIN[loss_class]
    arrays = [argument.numpy() for argument in arguments(loss_class(**others), name)]
    if loss_class is fast.MultiScaleLoss:
        others["loss"] = "squares"
    axes = "ndim" if name == "spatial_dims" else name
    for extreme in EXTREMES:
        options = others | {axes: filled(given, extreme)}
        # An OverflowError of Python says that a whole number is too large.
        with np.errstate(all="ignore"), suppress(TypeError, ValueError, OverflowError):
            twin.value(*arrays, **options)
            twin.gradient(*arrays, **options)


@pytest.mark.parametrize(
    ("loss_class", "options", "name", "value"),
    [
        (fast.DiceLoss, {"softmax": True}, "sigmoid", True),
        (fast.TverskyLoss, {"sigmoid": True}, "other_act", torch.sigmoid),
        (fast.GeneralizedDiceLoss, {"other_act": torch.sigmoid}, "softmax", True),
        (fast.DiceCELoss, {"weight": 2.0}, "ce_weight", [1.0, 2.0]),
        (fast.DiceCELoss, {"ce_weight": 2.0}, "weight", 0.5),
        (fast.DiceFocalLoss, {"weight": 2.0}, "focal_weight", 1.0),
        (fast.DiceFocalLoss, {"alpha": [0.5, 1.5]}, "use_softmax", False),
        (fast.FocalLoss, {"use_softmax": False}, "alpha", [0.5, 1.5]),
        (fast.GlobalMutualInformationLoss, {"num_bins": 4}, "kernel_type", "b-spline"),
        (fast.GlobalMutualInformationLoss, {"kernel_type": "b-spline"}, "num_bins", 4),
    ],
)
def test_options_that_do_not_go_together_are_the_same_error_in_whatever_order(loss_class, options, name, value):
    loss = loss_class(**options)
    before = getattr(loss, name)
    with pytest.raises(ValueError, match=name) as at_once:
        loss_class(**options, **{name: value})
    with pytest.raises(ValueError, match=name) as later:
        setattr(loss, name, value)
    assert str(later.value) == str(at_once.value)
    assert getattr(loss, name) == before


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (fast.FocalLoss(), "softmax", True),
        (fast.FocalLoss(), "smooth_nr", 1.0),
        (fast.GeneralizedWassersteinDiceLoss(DISTANCES), "include_background", False),
        (fast.GeneralizedWassersteinDiceLoss(DISTANCES), "batch", True),
    ],
)
def test_option_that_the_constructor_does_not_take_cannot_be_assigned(loss, name, value):
    with pytest.raises(TypeError, match=f"no option {name}"):
        setattr(loss, name, value)


@pytest.fixture
def world():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("loss_class", [loss for loss, options in OPTIONS.items() if "process_group" in options])
def test_assigned_process_group_counts_as_one_given_at_once(loss_class, world):
    at_once, later = loss_class(process_group=world), loss_class()
    later.process_group = world
    assert later.process_group is world
    assert torch.equal(value(later, "process_group"), value(at_once, "process_group"))


@pytest.mark.parametrize(
    ("loss_class", "name", "bad"),
    [(fast.DiceFocalLoss, "reduction", "sum"), (fast.GlobalMutualInformationLoss, "kernel_type", "b-spline")],
)
def test_option_that_several_ranks_cannot_share_is_an_error_whichever_comes_last(loss_class, name, bad, world):
    first, last = loss_class(process_group=world), loss_class(**{name: bad})
    with pytest.raises(ValueError, match="with a process_group"):
        setattr(first, name, bad)
    with pytest.raises(ValueError, match="with a process_group"):
        last.process_group = world
    assert last.process_group is None


def test_warning_about_distances_comes_with_the_option_that_causes_it_and_names_the_line():
    loss = fast.GeneralizedWassersteinDiceLoss(DISTANCES)
    near = [[0.0, 0.5, 1.0], [0.5, 0.0, 1.0], [1.0, 1.0, 0.0]]
    for make in (lambda: fast.GeneralizedWassersteinDiceLoss(near), lambda: setattr(loss, "dist_matrix", near)):
        with pytest.warns(UserWarning, match="nearer to the background") as caught:
            make()
        assert [warning.filename for warning in caught] == [__file__]
    loss.smooth_nr = 0.0  # says nothing, as it has nothing to do with distances


def test_module_and_function_may_take_each_others_place():
    x, y = logits(2, 3, 6), labels(2, 1, 6)
    expected = fast.DiceLoss(sigmoid=True, to_onehot_y=True)(x, y)
    loss = fast.DiceLoss(to_onehot_y=True)
    for act in (torch.nn.Sigmoid(), torch.sigmoid, torch.nn.Sigmoid(), None):
        loss.other_act = act
        assert [*loss.children()] == ([act] if isinstance(act, torch.nn.Module) else [])
        loss.sigmoid = act is None
        assert torch.equal(loss(x, y), expected)


def test_subclass_with_a_signature_of_its_own_has_options_that_can_be_assigned():
    class Annealed(fast.FocalLoss):
        def __init__(self, start):
            super().__init__(to_onehot_y=True, gamma=start)
            self.start, self.options = start, {"anything": "of its own"}

        def step(self):
            self.gamma /= 2

    loss, x, y = Annealed(2.0), logits(2, 3, 6), labels(2, 1, 6)
    loss.step()
    assert (loss.start, loss.gamma) == (2.0, 1.0)
    assert torch.equal(copy.deepcopy(loss)(x, y), fast.FocalLoss(to_onehot_y=True, gamma=1.0)(x, y))


def test_assigned_option_counts_for_a_compiled_loss():
    loss, x, y = fast.FocalLoss(to_onehot_y=True), logits(2, 3, 6), labels(2, 1, 6)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    compiled(x, y)
    loss.gamma = 0.0
    torch.testing.assert_close(compiled(x, y), fast.FocalLoss(to_onehot_y=True, gamma=0.0)(x, y))
