"""Each closed-form gradient of the reference is the derivative of its value, for all options.

Voxels that an option leaves out are NaN, so that the same cases show that they do not affect the result.
"""

import inspect
import itertools
from functools import reduce
from operator import or_

import numpy as np
import pytest
from scipy.differentiate import derivative

import twinloss.reference

CLASSES = {
    "shape": [(2, 3), (2, 3, 5), (1, 4, 3, 4), (3, 1, 3, 2), (2, 2, 2, 3, 2)],
    "target": ["labels", "one-hot", "soft"],
    "include_background": [True, False],
    "reduction": ["mean", "sum", "none"],
    "ignore_index": [None, 0, 1],
}
OVERLAP = CLASSES | {
    "activation": [None, "sigmoid", "softmax", "other_act"],
    "smooth_nr": [1e-5, 0.5],
    "smooth_dr": [1e-5, 1.5],
    "batch": [False, True],
    "soft_label": [False, True],
}
DICE = OVERLAP | {
    "squared_pred": [False, True],
    "jaccard": [False, True],
    "weight": [None, 0.5, "per class"],
}
FOCAL = CLASSES | {
    "gamma": [0.0, 0.5, 1.0, 2.0, 3.5],
    "weight": [None, 0.5, "per class"],
    "alpha": [None, 0.3, "per class"],
    "use_softmax": [True, False],
}
TVERSKY = OVERLAP | {"alpha": [0.5, 0.2], "beta": [0.5, 0.9], "weight": [None, 0.5, "per class"]}
GENERALIZED = OVERLAP | {"w_type": ["square", "simple", "uniform"], "normalize_weights": [False, True]}
OPTIONS = {
    "dice_loss": DICE,
    "masked_dice_loss": DICE | {"mask": ["binary", "soft", "of all items"]},
    "generalized_dice_loss": GENERALIZED,
    "generalized_wasserstein_dice_loss": {
        "shape": [(2, 3), (2, 3, 5), (1, 4, 3, 4), (2, 2, 2, 3, 2)],
        "target": ["labels", "labels without channel"],
        "weighting_mode": ["default", "GDL"],
        "reduction": CLASSES["reduction"],
        "ignore_index": CLASSES["ignore_index"],
        "smooth_nr": OVERLAP["smooth_nr"],
        "smooth_dr": OVERLAP["smooth_dr"],
    },
    "focal_loss": FOCAL,
    "dice_ce_loss": DICE
    | {
        "reduction": ["mean", "sum"],
        "ce_weight": [None, "per class"],
        "lambda_dice": [1.0, 0.3],
        "lambda_ce": [1.0, 2.5],
        "label_smoothing": [0.0, 0.2],
        "multilabel": [False, True],
    },
    "dice_focal_loss": DICE
    | FOCAL
    | {"focal_weight": [None, "per class"], "lambda_dice": [1.0, 0.3], "lambda_focal": [1.0, 2.5]},
    "generalized_dice_focal_loss": GENERALIZED | FOCAL | {"lambda_gdl": [1.0, 0.3], "lambda_focal": [1.0, 2.5]},
    "tversky_loss": TVERSKY,
    "matthews_correlation_loss": OVERLAP
    | {"activation": [None, "sigmoid", "softmax"], "weight": [None, 0.5, "per class"]},  # defined for p in [0, 1]
    "focal_tversky_loss": TVERSKY | {"gamma": [0.75, 1.0, 2.0, "per class"], "smooth_nr": [1e-5, 0.0]},
}
IMAGES = {"shape": [(2, 1, 9), (1, 2, 5, 6), (2, 3, 5, 6, 5)], "reduction": CLASSES["reduction"]}
REGISTRATION = {
    "bending_energy_loss": {
        "shape": [(2, 1, 6), (2, 2, 5, 7), (1, 3, 5, 6, 7)],
        "reduction": CLASSES["reduction"],
        "stencil": ["compact", "wide"],
        "normalize": [False, True],
        "spacing": [None, "per axis"],
    },
    "diffusion_loss": {
        "shape": [(2, 1, 3), (2, 2, 3, 7), (1, 3, 3, 4, 5)],
        "reduction": CLASSES["reduction"],
        "stencil": ["compact", "wide"],
        "normalize": [False, True],
        "spacing": [None, "per axis"],
    },
    "local_normalized_cross_correlation_loss": IMAGES
    | {
        "ndim": [1, 2, 3],
        "kernel_size": [3, 5],
        "kernel_type": ["rectangular", "triangular", "gaussian"],
        "denominator": ["product", "clamp"],
        "smooth_nr": [1e-5, 0.5],
        "smooth_dr": [1e-5, 0.5],
    },
    "global_mutual_information_loss": IMAGES
    | {
        "num_bins": [6, 8, 23],
        "sigma_ratio": [0.5, 0.25, 2.0],
        "kernel_type": ["gaussian", "b-spline"],
        "smooth_nr": [1e-7, 1e-2],
        "smooth_dr": [1e-7, 1e-2],
    },
}


def of_signature(name):
    """Return the values to try for each option of a loss without a row, from those of the other losses."""
    known = reduce(or_, [*OPTIONS.values(), *REGISTRATION.values()])
    taken = inspect.signature(getattr(twinloss.reference, name)).parameters
    made = dict(CLASSES if "input" in taken else IMAGES if "target" in taken else REGISTRATION["diffusion_loss"])
    made |= {"activation": OVERLAP["activation"]} if "softmax" in taken else {}
    elsewhere = {"to_onehot_y", "sigmoid", "softmax", "mask"}  # these follow from the target and the activation
    own = {option for option, p in taken.items() if p.kind is p.KEYWORD_ONLY} - elsewhere
    left = own - {"other_act", "dist_matrix"} - set(known)
    assert not left, f"{name} has new options: add the values to try for {left} as a row of OPTIONS or REGISTRATION"
    return {option: values for option, values in made.items() if option in {"shape", "target", "activation"} | own} | {
        option: known[option] for option in own if option in known
    }


# These have tests of their own.
WRAPPERS = {"multi_scale_loss", "deep_supervision_loss", "masked_loss"}
for _name in twinloss.reference.__all__:
    if _name.endswith("_loss") and _name not in {*OPTIONS, *REGISTRATION, *WRAPPERS}:
        _taken = inspect.signature(getattr(twinloss.reference, _name)).parameters
        (OPTIONS if "input" in _taken else REGISTRATION)[_name] = of_signature(_name)


def pairwise(options):
    """Yield cases in which every pair of values of two options occurs."""
    rng = np.random.default_rng(0)
    left = {
        ((a, v), (b, w))
        for a, b in itertools.combinations(options, 2)
        for v, w in itertools.product(range(len(options[a])), range(len(options[b])))
    }
    while left:
        must = dict(min(left))
        tries = [{a: int(rng.integers(len(options[a]))) for a in options} | must for _ in range(30)]
        pairs = [set(itertools.combinations(case.items(), 2)) & left for case in tries]
        best = max(range(30), key=lambda k: len(pairs[k]))
        left -= pairs[best]
        yield {a: options[a][k] for a, k in tries[best].items()}


def arrays(case, rng):
    """Return the arrays of a case, which is left with the options of the loss."""
    b, c, *s = case.pop("shape")
    kind, activation = case.pop("target"), case.pop("activation", "softmax")
    x = rng.normal(size=(b, c, *s)) if activation else rng.uniform(0.1, 0.9, (b, c, *s))
    labels = rng.integers(0, max(c, 2), (b, 1, *s))
    ignored = np.broadcast_to(labels == case["ignore_index"], x.shape)
    target = labels
    if kind in ("one-hot", "soft") and c > 1:
        target = (labels == np.arange(c).reshape(1, c, *[1] * len(s))).astype(float)
    if kind == "soft":  # ties of p and g are kinks, so keep g away from p
        target = np.where(ignored, target, np.clip(target, 0.02, 0.95))
    if kind == "labels without channel":
        target = labels[:, 0]
    x[ignored] = np.nan
    return x, target


def problem(name, case):
    """Return the arrays and the options of one case of a loss."""
    case, rng = dict(case), np.random.default_rng(1)
    labels, activation = case["target"] == "labels", case.get("activation")
    x, target = arrays(case, rng)
    takes_part = x.shape[1] - (x.shape[1] > 1 and not case.get("include_background", True))
    classes = x.shape[1] if name.startswith("dice_") and name != "dice_loss" else takes_part
    for option, value in case.items():
        if value == "per class":
            case[option] = rng.uniform(0.2, 0.9, classes).tolist()
    if "include_background" in case:
        case["to_onehot_y"] = labels
    if "weighting_mode" in case:
        case["dist_matrix"] = rng.uniform(1, 3, (x.shape[1],) * 2) * (1 - np.eye(x.shape[1]))
    if activation == "other_act":
        case["other_act"] = np.tanh
    elif activation:
        case[activation] = True
    if case.get("multilabel"):  # softmax makes the classes exclude each other, and no activation is an error
        case["multilabel"] = activation in ("sigmoid", "other_act")
    mask = case.pop("mask", None)
    if mask is None:
        return x, (target,), case
    m = rng.uniform(0.2, 1, (1 if mask == "of all items" else len(x), 1, *x.shape[2:]))
    m *= rng.random(m.shape) < 0.8
    x[np.broadcast_to(m == 0, x.shape)] = np.nan
    return x, (target, m > 0 if mask == "binary" else m), case


def field_or_images(name, case):
    """Return the arrays and the options of one case of a registration loss."""
    case, rng = dict(case), np.random.default_rng(1)
    shape = case.pop("shape")
    x, target = rng.uniform(0.1, 0.9, shape), rng.uniform(0.1, 0.9, shape)
    if case.get("spacing"):
        case["spacing"] = rng.uniform(0.5, 2, len(shape) - 2).tolist()
    if name.startswith(("bending", "diffusion")):
        return x, (), case
    if name.startswith("global"):  # some voxels outside [0, 1], where the gradient is 0 and the range ends
        x[..., 0], x[..., -1] = x[..., 0] - 1.5, x[..., -1] + 1.5
    return x, (target,), case


def assert_derivative(name, x, others, options, rng, **more):
    value = getattr(twinloss.reference, name)
    more["cotangent"] = rng.normal(size=value(x, *others, **options).shape)
    g = getattr(twinloss.reference, f"{name}_gradient")(x, *others, **options, **more)
    assert g.shape == x.shape
    assert np.all(g[np.isnan(x)] == 0)
    direction = rng.normal(size=x.shape) / 20

    def along(t):
        return np.sum(more["cotangent"] * value(x + t * direction, *others, **options))

    expected = derivative(np.vectorize(along), 0.0, initial_step=0.5)
    rounding = 1e-12 * (1 + abs(along(0.0)))  # which expected.error does not include
    tolerance = 10 * expected.error + rounding
    assert np.nansum(g * direction) == pytest.approx(expected.df, rel=0, abs=tolerance), options


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_the_derivative_of_the_value_for_all_pairs_of_options(name):
    rng = np.random.default_rng(2)
    for case in pairwise(OPTIONS[name]):
        x, others, options = problem(name, case)
        more = {}
        if "other_act" in options:
            more["other_act_derivative"] = lambda x: 1 / np.cosh(x) ** 2
        assert_derivative(name, x, others, options, rng, **more)


@pytest.mark.parametrize("name", REGISTRATION)
def test_gradient_of_registration_is_the_derivative_of_the_value_for_all_pairs_of_options(name):
    rng = np.random.default_rng(2)
    for case in pairwise(REGISTRATION[name]):
        assert_derivative(name, *field_or_images(name, case), rng)
