"""Compare the reference with the same formulas in decimal arithmetic of 60 digits.

Finite differences of the decimal value give each element of a gradient with more digits than longdouble has.
"""

from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
from decimals import exact

import twinloss.reference

X = np.array([[[0.5, -1.25, 2.0, 0.125], [1.5, 0.25, -0.75, 3.0], [-2.0, 1.0, 0.5, 0.75]]])
LABELS = np.array([[[1, 0, 2, 1]]])
SOFT = np.array([[[0.25, 0.5, 0.0, 0.125], [0.75, 0.25, 0.0, 0.625], [0.0, 0.25, 1.0, 0.25]]])
HARD = (LABELS == np.arange(3)[:, np.newaxis]).astype(float)
MATRIX = [[0, 3, 2.5], [3, 0, 0.75], [2.5, 0.75, 0]]
SMOOTH, SHARE, ALPHA, LAMBDA = 1e-5, 0.1, 0.3, 0.7
NU = Decimal(SMOOTH)  # the exact value of the float, not of its text
ONE = Decimal(1)


def softmax(x):
    e = [[v.exp() for v in row] for row in x]
    return [[v / total for v, total in zip(row, map(sum, zip(*e, strict=True)), strict=True)] for row in e]


def sigmoid(x):
    return [[1 / (1 + (-v).exp()) for v in row] for row in x]


def dot(a, b):
    return sum(v * w for v, w in zip(a, b, strict=True))


def dice(x, g, act=softmax, squared=False, jaccard=False, soft=False, weights=(1, 1, 1)):
    total = Decimal(0)
    for p, t, w in zip(act(x), g, weights, strict=True):
        overlap = sum(map(min, p, t)) if soft else dot(p, t)
        size = dot(p, p) + dot(t, t) if squared else sum(p) + sum(t)
        below = 2 * (size - overlap) if jaccard else size
        total += Decimal(w) * (1 - (2 * overlap + NU) / (below + NU))
    return total / 3


def matthews_correlation(x, g):
    total, n = Decimal(0), len(g[0])
    for p, t in zip(softmax(x), g, strict=True):
        p_size, g_size = sum(p), sum(t)
        r = dot(p, t) - p_size * g_size / n + NU  # n covariances, as (TP TN - FP FN) / N = TP - (TP + FP)(TP + FN) / N
        below = (p_size * (n - p_size) / n + NU) * (g_size * (n - g_size) / n + NU)
        total += 1 - r / below.sqrt()
    return total / 3


def tversky(x, g, alpha, beta, gamma=1):
    total = Decimal(0)
    for p, t in zip(softmax(x), g, strict=True):
        tp = dot(p, t)
        fp, fn = sum(p) - tp, sum(t) - tp
        total += (1 - (tp + NU) / (tp + Decimal(alpha) * fp + Decimal(beta) * fn + NU)) ** Decimal(gamma)
    return total / 3


def generalized_dice(x, g, power, normalize=False):
    p, w = softmax(x), [1 / sum(t) ** power for t in g]
    if normalize:
        w = [v / sum(w) for v in w]
    overlap = sum(v * dot(a, t) for v, a, t in zip(w, p, g, strict=True))
    size = sum(v * (sum(a) + sum(t)) for v, a, t in zip(w, p, g, strict=True))
    return 1 - (2 * overlap + NU) / (size + NU)


def wasserstein_dice(x, g, mode):
    p, y = softmax(x), [max(range(3), key=column.__getitem__) for column in zip(*g, strict=True)]
    m = [[Decimal(v) / 3 for v in row] for row in MATRIX]
    w = [sum(m[label][c] * p[c][i] for c in range(3)) for i, label in enumerate(y)]
    if mode == "GDL":
        a = [ONE / (y.count(label) + 1) for label in y]
        above = sum(a[i] * (2 - w[i]) for i in range(len(y)))
    else:
        a = [ONE if label else 0 * ONE for label in y]
        above = sum(2 * a[i] * (1 - w[i]) + w[i] for i in range(len(y)))
    tp = sum(a[i] * (1 - w[i]) for i in range(len(y)))
    return 1 - (2 * tp + NU) / (above + NU)


def focal(x, g, gamma, factors=(1, 1, 1), divisor=12):
    gamma = Decimal(gamma)
    total = Decimal(0)
    for p, t, a in zip(softmax(x), g, factors, strict=True):
        total -= Decimal(a) * sum(v * (1 - q) ** gamma * q.ln() for v, q in zip(t, p, strict=True))
    return total / divisor


def binary_focal(x, g, gamma, alpha):
    gamma, alpha = Decimal(gamma), Decimal(alpha)
    total = Decimal(0)
    for p, t in zip(sigmoid(x), g, strict=True):
        for q, v in zip(p, t, strict=True):
            total -= alpha * v * (1 - q) ** gamma * q.ln()
            total -= (1 - alpha) * (1 - v) * q**gamma * (1 - q).ln()
    return total / 12


def cross_entropy(x, g, weights=(1, 1, 1), smoothing=0.0):
    e = Decimal(smoothing)
    divisor = sum(Decimal(w) * sum(t) for w, t in zip(weights, g, strict=True))
    smooth = [[(1 - e) * v + e / 3 for v in row] for row in g]
    return focal(x, smooth, 0, weights, divisor)


W = (0.5, 1.25, 3.0)
LABEL = {"to_onehot_y": True}
CASES = [
    ("dice_loss", LABELS, LABEL | {"softmax": True}, dice),
    ("dice_loss", HARD, {"sigmoid": True}, lambda x, g: dice(x, g, act=sigmoid)),
    ("dice_loss", HARD, {}, lambda x, g: dice(x, g, act=lambda x: x)),
    (
        "dice_loss",
        SOFT,
        {"softmax": True, "squared_pred": True, "jaccard": True, "weight": W},
        lambda x, g: dice(x, g, squared=True, jaccard=True, weights=W),
    ),
    ("dice_loss", SOFT, {"softmax": True, "soft_label": True}, lambda x, g: dice(x, g, soft=True)),
    (
        "tversky_loss",
        SOFT,
        {"softmax": True, "alpha": 0.3, "beta": 0.7},
        lambda x, g: tversky(x, g, 0.3, 0.7),
    ),
    ("matthews_correlation_loss", SOFT, {"softmax": True}, lambda x, g: matthews_correlation(x, g)),
    (
        "focal_tversky_loss",
        SOFT,
        {"softmax": True, "gamma": 0.5},
        lambda x, g: tversky(x, g, 0.3, 0.7, gamma=0.5),
    ),
    ("generalized_dice_loss", SOFT, {"softmax": True}, lambda x, g: generalized_dice(x, g, 2)),
    (
        "generalized_dice_loss",
        LABELS,
        LABEL | {"softmax": True, "w_type": "simple", "normalize_weights": True},
        lambda x, g: generalized_dice(x, g, 1, normalize=True),
    ),
    (
        "generalized_wasserstein_dice_loss",
        LABELS,
        {"dist_matrix": MATRIX},
        lambda x, g: wasserstein_dice(x, g, "default"),
    ),
    (
        "generalized_wasserstein_dice_loss",
        LABELS,
        {"dist_matrix": MATRIX, "weighting_mode": "GDL"},
        lambda x, g: wasserstein_dice(x, g, "GDL"),
    ),
    ("focal_loss", SOFT, {"weight": W}, lambda x, g: focal(x, g, 2, W)),
    (
        "focal_loss",
        LABELS,
        LABEL | {"gamma": 0.5, "alpha": ALPHA},
        lambda x, g: focal(x, g, 0.5, (ONE - Decimal(ALPHA), ALPHA, ALPHA)),
    ),
    (
        "focal_loss",
        SOFT,
        {"use_softmax": False, "gamma": 1.5, "alpha": 0.3},
        lambda x, g: binary_focal(x, g, 1.5, 0.3),
    ),
    (
        "dice_ce_loss",
        LABELS,
        LABEL | {"softmax": True, "ce_weight": W, "label_smoothing": SHARE, "lambda_ce": LAMBDA},
        lambda x, g: dice(x, g) + Decimal(LAMBDA) * cross_entropy(x, g, W, SHARE),
    ),
    (
        "dice_focal_loss",
        SOFT,
        {"sigmoid": True, "lambda_dice": LAMBDA, "focal_weight": W},
        lambda x, g: Decimal(LAMBDA) * dice(x, g, act=sigmoid) + focal(x, g, 2, W),
    ),
]


def decimals(a):
    return [[Decimal(v) for v in row] for row in a[0].tolist()]


def slopes(value, x, g):
    """Return the derivative with respect to each element of x, to about 40 digits."""
    h, result = Decimal("1e-20"), []
    for row in x:
        for i, v in enumerate(row):
            row[i] = v + h
            above = value(x, g)
            row[i] = v - h
            result.append((above - value(x, g)) / (2 * h))
            row[i] = v
    return result


@pytest.mark.parametrize("dtype", [np.longdouble, np.float64, np.float32])
@pytest.mark.parametrize(("name", "target", "options", "value"), CASES)
def test_value_and_gradient_have_the_accuracy_of_the_inputs_dtype(name, target, options, value, dtype):
    loss = getattr(twinloss.reference, name)
    loss_gradient = getattr(twinloss.reference, f"{name}_gradient")
    got, gradient = (f(X.astype(dtype), target, **options) for f in (loss, loss_gradient))
    assert got.dtype == gradient.dtype == dtype
    with localcontext(Context(prec=60)):
        g, unit = decimals(target if target.shape == X.shape else HARD), exact(np.finfo(dtype).eps)
        truth, rates = value(decimals(X), g), slopes(value, decimals(X), g)
        errors = [abs(exact(a) - b) for a, b in zip(gradient.ravel(), rates, strict=True)]
        assert abs(exact(got[()]) - truth) <= 4 * unit * abs(truth)
        assert max(errors) <= 4 * unit * max(map(abs, rates))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.longdouble, np.float32])
@pytest.mark.parametrize(("name", "target", "options"), [case[:3] for case in CASES])
def test_target_of_any_dtype_is_converted_to_that_of_the_input(name, target, options, kind, dtype):
    if kind is bool and target is LABELS:
        target = LABELS > 0
    if target is SOFT and kind in (bool, np.uint8, np.int64):
        target = HARD
    for form in (name, f"{name}_gradient"):
        f = getattr(twinloss.reference, form)
        got = f(X.astype(dtype), target.astype(kind), **options)
        assert got.dtype == dtype
        assert np.array_equal(got, f(X.astype(dtype), target.astype(dtype), **options))
