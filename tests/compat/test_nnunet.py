"""The losses of `twinloss.compat.nnunet` are those of nnU-Net v2: signatures, values and gradients."""

import copy
import importlib.util
import inspect
import pickle

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from twinloss.compat import nnunet as ours

CLASSES = {
    "DC_and_CE_loss": "compound_losses",
    "DC_and_BCE_loss": "compound_losses",
    "DC_and_topk_loss": "compound_losses",
    "MemoryEfficientSoftDiceLoss": "dice",
}
DICE = [
    {"batch_dice": batch, "do_bg": background, "smooth": smooth, "ddp": False}
    for batch, background, smooth in [(True, False, 1e-5), (False, True, 1.0), (False, False, 0.0), (True, True, 1e-5)]
]
WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
X = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (2, 1, 5, 6), generator=torch.Generator().manual_seed(1)).double()
REGIONS = (torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(2)) < 0.4).double()
IGNORED = (torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(3)) < 0.3).double()


def minus_dice(p, g, kept, batch_dice, do_bg, smooth, ddp):
    """Restate the Dice term from its formula."""
    p, g = (each * kept if do_bg else (each * kept)[:, 1:] for each in (p, g))
    axes = (0, 2, 3) if batch_dice else (2, 3)
    return -((2 * (p * g).sum(axes) + smooth) / ((p + g).sum(axes) + smooth).clamp(min=1e-8)).mean()


def classes(y):
    return one_hot(y[:, 0].long().clamp(max=2), 3).movedim(-1, 1).double()


def restated(name, dice, ce, ignore, weight_ce, weight_dice):
    """Return nnU-Net's loss as a function, from its formula."""

    def loss(x, y):
        if name == "DC_and_BCE_loss":
            kept, g = (1 - y[:, -1:], y[:, :-1]) if ignore else (torch.ones_like(y[:, :1]), y)
            each = binary_cross_entropy_with_logits(x, g, reduction="none", **ce)
            entropy = (each * kept).sum() / kept.sum() if ignore else each.mean()
            p = x.sigmoid()
        else:
            kept, g, p = (y != ignore).double() if ignore else torch.ones_like(y), classes(y), x.softmax(1)
            options = {"ignore_index": ignore} if ignore else {}
            options |= {option: value for option, value in ce.items() if option != "k"}
            if name == "DC_and_CE_loss":
                entropy = cross_entropy(x, y[:, 0].long(), **options)
            else:
                each = cross_entropy(x, y[:, 0].long(), reduction="none", **options).flatten()
                entropy = each.sort(descending=True).values[: int(len(each) * ce.get("k", 10) / 100)].mean()
        return weight_ce * entropy + weight_dice * minus_dice(p, g, kept, **dice)

    return loss


def answers(loss, x, y, **more):
    x = x.clone().requires_grad_()
    value = loss(x, y, **more)
    value.backward()
    return value.detach(), x.grad


def cases():
    weighted = {"weight": WEIGHT, "label_smoothing": 0.1}
    for dice, weights in zip(DICE, [(1, 1), (0.5, 2), (1, 0), (0, 1)], strict=True):
        for ignore in (None, 3):
            yield "DC_and_CE_loss", dice, {}, ignore, *weights
            yield "DC_and_CE_loss", dice, weighted, ignore, *weights
            yield "DC_and_topk_loss", dice, {"k": 20, **weighted}, ignore, *weights
        for ignore in (False, True):
            yield "DC_and_BCE_loss", dice, {}, ignore, *weights
            yield "DC_and_BCE_loss", dice, {"pos_weight": WEIGHT[:, None, None]}, ignore, *weights


def built(module, name, dice, ce, ignore, weight_ce, weight_dice):
    first = (ce, dice) if name == "DC_and_BCE_loss" else (dice, dict(ce))
    return getattr(module, name)(*first, weight_ce, weight_dice, ignore)


def target(name, ignore):
    if name == "DC_and_BCE_loss":
        return torch.cat([REGIONS, IGNORED], 1) if ignore else REGIONS
    return torch.where(IGNORED == 1, 3, Y) if ignore else Y


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_values_and_gradients_are_those_of_the_formula(case):
    y = target(case[0], case[3])
    torch.testing.assert_close(answers(built(ours, *case), X, y), answers(restated(*case), X, y), rtol=1e-9, atol=1e-9)


def assert_close_to_nnunet(found, expected):
    """Compare with nnU-Net, whose Dice term is in float32 for input in float64, too."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, check_dtype=False)


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_values_and_gradients_are_those_of_nnunet(case):
    losses = nnunet(case[0])
    y = target(case[0], case[3])
    found, expected = (answers(built(module, *case), X, y) for module in (ours, losses))
    assert_close_to_nnunet(found, expected)


@pytest.mark.parametrize("dice", DICE)
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("activation", [ours.softmax_helper_dim1, torch.sigmoid, torch.nn.Softmax(1)])
def test_dice_of_labels_and_channels_within_a_mask(dice, labels, masked, activation):
    loss, y = ours.MemoryEfficientSoftDiceLoss(activation, **dice), Y if labels else classes(Y)
    kept = 1 - IGNORED if masked else torch.ones_like(Y)
    found = answers(loss, X, y, loss_mask=kept if masked else None)
    expected = answers(lambda x, y: minus_dice(activation(x), classes(Y), kept, **dice), X, y)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if importlib.util.find_spec("nnunetv2"):
        theirs = nnunet("MemoryEfficientSoftDiceLoss").MemoryEfficientSoftDiceLoss(activation, **dice)
        assert_close_to_nnunet(found, answers(theirs, X, y, loss_mask=kept if masked else None))


def nnunet(name):
    """Return the module of nnU-Net that has a loss."""
    return pytest.importorskip(f"nnunetv2.training.loss.{CLASSES[name]}", reason="needs nnunetv2")


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_are_those_of_nnunet(name):
    mine, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ours, nnunet(name)))
    assert list(mine) == list(theirs)
    defaults = [{n: each.default for n, each in side.items() if n != "dice_class"} for side in (mine, theirs)]
    assert defaults[0] == defaults[1]


def test_absent_class_without_smoothing_has_no_overlap():
    x, nothing = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    assert float(ours.MemoryEfficientSoftDiceLoss(smooth=0.0, ddp=False)(x, nothing)) == 0


def test_batch_without_any_counted_voxel_has_no_gradient():
    x = X.clone().requires_grad_()
    loss = ours.DC_and_CE_loss(DICE[0], {}, ignore_label=3)(x, torch.full_like(Y, 3))
    loss.backward()
    assert loss.item() == -1
    assert not x.grad.any()


def test_several_ranks_need_a_process_group(tmp_path):
    pooled = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}
    with pytest.raises(RuntimeError, match="pass ddp=False to train in one process"):
        ours.DC_and_CE_loss(pooled, {})
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        for name, ignore in (("DC_and_CE_loss", 3), ("DC_and_BCE_loss", True), ("DC_and_topk_loss", 3)):
            y = target(name, ignore)
            found, expected = (
                answers(built(ours, name, dice, {}, ignore, 0.5, 2), X, y) for dice in (pooled, pooled | {"ddp": False})
            )
            torch.testing.assert_close(found, expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ours.DC_and_CE_loss({}, {"reduction": "sum"}), ValueError, "reduction must be 'mean', got 'sum'"),
        (lambda: ours.DC_and_CE_loss({}, {"ignore_index": 7}), ValueError, "ignore_index must be -100, got 7"),
        (lambda: ours.DC_and_CE_loss({}, {"gamma": 2}), ValueError, "may have weight and label_smoothing, got gamma"),
        (lambda: ours.DC_and_CE_loss({"squared": 1}, {}), TypeError, "squared"),
        (lambda: ours.DC_and_CE_loss({}, {}, dice_class=torch.nn.MSELoss), TypeError, "dice_class must be"),
        (lambda: ours.DC_and_CE_loss({}, {}, weight_ce=-1), ValueError, "weight_ce must be finite and not negative"),
        (lambda: ours.DC_and_BCE_loss({}, {}, weight_dice=True), TypeError, "weight_dice must be a number, got bool"),
        (lambda: ours.DC_and_topk_loss({}, {}, weight_ce="1"), TypeError, "weight_ce must be a number, got str"),
        (lambda: ours.DC_and_CE_loss({"smooth": "a"}, {}), TypeError, "smooth must be a number, got str"),
        (lambda: ours.DC_and_topk_loss({}, {"k": 0}), ValueError, "k must be a percentage of the voxels"),
        (lambda: ours.DC_and_topk_loss({}, {"k": 101}), ValueError, "at most 100, got 101"),
        (lambda: ours.DC_and_topk_loss({}, {"k": True}), TypeError, "k must be a number, got bool"),
        (lambda: ours.MemoryEfficientSoftDiceLoss()(X, None), TypeError, "y must be a tensor, got NoneType"),
        (lambda: ours.DC_and_BCE_loss({"weight": WEIGHT}, {}), ValueError, "have pos_weight, got weight"),
        (lambda: ours.DC_and_BCE_loss({"pos_weight": WEIGHT}, {}), ValueError, r"must have the shape \(C, 1, …\)"),
    ],
)  # fmt: skip
def test_options_that_are_not_supported_raise_an_error(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(("name", "activation"), [("DC_and_CE_loss", "softmax"), ("DC_and_BCE_loss", "sigmoid")])
def test_trainer_may_replace_the_dice_term_that_forward_does_not_use(name, activation):
    loss, y = built(ours, name, DICE[0], {}, None, 1, 1), target(name, None)
    kept = torch.ones_like(Y)
    p = X.softmax(1) if activation == "softmax" else X.sigmoid()
    g = classes(y) if activation == "softmax" else y
    torch.testing.assert_close(loss.dc(X, y), minus_dice(p, g, kept, **DICE[0]))
    expected = loss(X, y)
    loss.dc = torch.compile(loss.dc)
    assert loss(X, y) == expected


def test_top_k_takes_one_voxel_at_least():
    loss = ours.DC_and_topk_loss(DICE[0], {"k": 1e-3}, weight_dice=0)
    each = cross_entropy(X, Y[:, 0].long(), reduction="none")
    torch.testing.assert_close(loss(X, Y), each.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weight", [[1, 2, 1], [1.0, 2.0, 1.0], torch.tensor([1.0, 2.0, 1.0])], ids=str)
def test_weights_of_top_k_may_have_another_type_than_the_logits(dtype, weight):
    x, y = X.to(dtype), Y
    found = ours.DC_and_topk_loss(DICE[0], {"weight": weight, "k": 100}, weight_dice=0)(x, y)
    expected = cross_entropy(x, y[:, 0].long(), torch.tensor([1, 2, 1]).to(dtype), reduction="none").mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_need_a_channel_each(ignore):
    loss = ours.DC_and_BCE_loss({}, DICE[0], use_ignore_label=ignore)
    with pytest.raises(ValueError, match="expected a channel for each of the 3 regions" + ", and a further" * ignore):
        loss(X, REGIONS if ignore else Y)


def test_losses_are_copied_and_pickled():
    for name, ignore in (("DC_and_CE_loss", 3), ("DC_and_BCE_loss", True), ("DC_and_topk_loss", 3)):
        loss, y = built(ours, name, DICE[0], {}, ignore, 1, 1), target(name, ignore)
        assert copy.deepcopy(loss)(X, y) == pickle.loads(pickle.dumps(loss))(X, y) == loss(X, y)
