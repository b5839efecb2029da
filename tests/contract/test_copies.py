"""Copies, pickles and checkpoints of losses."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from every_loss import EVERY_LOSS
from loss_options import (
    MODES,
    REGISTRATION,
    SOFTMAX,
    for_labels,
    grid,
    registration_arguments,
    registration_loss,
    usual,
    with_options,
)
from support import labels, logits

from twinloss import fast
from twinloss.fast import DiceLoss, GlobalMutualInformationLoss, MultiScaleLoss

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a model": lambda loss: copy.deepcopy(torch.nn.ModuleDict({"loss": loss}))["loss"],
}
EVERY_COPY = pytest.mark.parametrize("copied", list(COPIES.values()), ids=list(COPIES))


def _pickled(loss):
    return pickle.loads(pickle.dumps(loss))


def _saved(loss):
    file = io.BytesIO()
    torch.save(torch.nn.ModuleDict({"loss": loss}), file)
    file.seek(0)
    return torch.load(file, weights_only=False)["loss"]


PICKLES = pytest.mark.parametrize("through", [_pickled, _saved], ids=["pickle", "torch.save"])


@pytest.fixture
def world(tmp_path):
    """The default process group, of one rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@EVERY_LOSS
@EVERY_COPY
def test_copy_computes_the_same_and_has_options_of_its_own(each, copied):
    loss = each.make()
    made = copied(loss)
    assert made is not loss
    assert type(made) is type(loss)
    assert torch.equal(made(*each.arguments(torch.float32)), loss(*each.arguments(torch.float32)))
    # The reduction of some wrappers is that of the wrapped loss.
    name, value = ("weight_mode", "two") if isinstance(loss, fast.DeepSupervisionLoss) else ("reduction", "sum")
    before = getattr(loss, name)
    if not isinstance(loss, fast.MaskedLoss):
        setattr(made, name, value if before != value else "mean")
    made.eval()
    assert getattr(loss, name) == before
    assert loss.training


@EVERY_LOSS
@PICKLES
def test_pickle_computes_the_same(each, through):
    loss = each.make()
    assert torch.equal(through(loss)(*each.arguments(torch.float32)), loss(*each.arguments(torch.float32)))


# Options other than the defaults, among them numbers that are no float32, and the shape of a field or of images.
WEIGHTS, FRACTIONS = np.array([0.1, 0.2, 0.7]), [[0, 0.9, 0.9], [0.9, 0, 0.3], [0.9, 0.7, 0]]
FIELD = {"reduction": "sum", "stencil": "wide", "spacing": [0.1, 0.3], "normalize": True}
SMOOTHING = {"smooth_nr": 0.1, "smooth_dr": 0.7}
WINDOW = {"kernel_size": 5, "kernel_type": "gaussian"}
FOCUSED = {"to_onehot_y": True, "gamma": 0.1, "alpha": 0.3}
BLUR = {"scales": [0, 0.3, 1.7], "kernel": "cauchy", "reduction": "sum", "normalize_kernel": True}


@pytest.mark.filterwarnings("ignore:intensities beyond")
@with_options(
    {
        fast.DiceLoss: [SOFTMAX | {"weight": WEIGHTS}],
        fast.TverskyLoss: [SOFTMAX | {"alpha": 0.1, "beta": 1.3}],
        fast.MatthewsCorrelationLoss: [SOFTMAX | SMOOTHING | {"weight": WEIGHTS}],
        fast.FocalTverskyLoss: [SOFTMAX | {"gamma": WEIGHTS, "weight": WEIGHTS}],
        fast.GeneralizedDiceLoss: [SOFTMAX | SMOOTHING | {"w_type": "simple", "normalize_weights": True}],
        fast.GeneralizedWassersteinDiceLoss: grid([SMOOTHING | {"dist_matrix": np.array(FRACTIONS)}], MODES),
        fast.FocalLoss: [{"gamma": 0.1, "weight": WEIGHTS, "alpha": 0.3}],
        fast.DiceCELoss: [SOFTMAX | {"ce_weight": WEIGHTS, "label_smoothing": 0.1}],
        fast.DiceFocalLoss: [SOFTMAX | {"focal_weight": WEIGHTS, "gamma": 0.1, "alpha": 0.3}],
        fast.GeneralizedDiceFocalLoss: [
            FOCUSED | {"weight": WEIGHTS, "lambda_gdl": 0.3, "other_act": torch.sigmoid, "reduction": "sum"}
        ],
        fast.BendingEnergyLoss: [FIELD],
        fast.DiffusionLoss: [FIELD],
        fast.LocalNormalizedCrossCorrelationLoss: [
            WINDOW | {"reduction": "sum", "smooth_nr": 0.1, "smooth_dr": 0.3, "denominator": "clamp"}
        ],
        fast.GlobalMutualInformationLoss: [
            {"num_bins": 9, "sigma_ratio": 0.7, "reduction": "sum", "smooth_nr": 1e-3, "smooth_dr": 1e-5}
        ],
        fast.MultiScaleLoss: [BLUR | {"loss": fast.LocalNormalizedCrossCorrelationLoss(2, **WINDOW)}],
    },
    others=usual,
)
def test_options_survive_half_copying_and_pickling_in_float64(loss_class, options):
    if loss_class in REGISTRATION:
        loss = registration_loss(loss_class, options, ndim=2)
        arguments = registration_arguments(loss_class, 1, 2, 6, 7, dtype=torch.float64)
    else:
        loss = loss_class(**for_labels(loss_class, options))
        arguments = logits(3, 3, 7, dtype=torch.float64), labels(3, 1, 7)
    expected = loss(*arguments)
    if loss_class is fast.GlobalMutualInformationLoss:
        loss(2 * arguments[0], arguments[1])  # which warns once
    for twin in (copy.deepcopy(loss).half(), _pickled(loss)):
        assert torch.equal(twin(*arguments), expected)


@EVERY_COPY
def test_copy_shares_the_process_group(world, copied):
    for loss in (DiceLoss(sigmoid=True, process_group=world), GlobalMutualInformationLoss(process_group=world)):
        made = copied(loss)
        assert made.process_group is world
        torch.testing.assert_close(made(torch.rand(1, 1, 4), torch.ones(1, 1, 4)), torch.tensor(0.0), atol=1, rtol=0)


def test_copy_shares_a_process_group_that_is_not_the_default(world):
    group = torch.distributed.new_group([0])
    loss = DiceLoss(process_group=group)
    assert copy.deepcopy(loss).process_group is group
    assert copy.copy(loss).process_group is group


def test_deepcopy_copies_what_the_options_hold():
    loss = MultiScaleLoss(torch.nn.Linear(2, 2), scales=[0])
    assert copy.deepcopy(loss).loss is not loss.loss
    assert copy.copy(loss).loss is loss.loss


@PICKLES
def test_pickle_restores_the_default_process_group(world, through):
    loss = DiceLoss(sigmoid=True, process_group=world)
    assert through(loss).process_group is world
    assert loss.process_group is world


@PICKLES
def test_another_process_group_does_not_travel(world, through):
    loss = DiceLoss(process_group=torch.distributed.new_group([0]))
    with pytest.raises(TypeError, match=r"other than torch\.distributed\.group\.WORLD cannot be pickled"):
        through(loss)


def test_pickle_of_the_default_process_group_warns_where_there_is_none(world):
    kept = pickle.dumps(DiceLoss(process_group=world))
    torch.distributed.destroy_process_group()
    with pytest.warns(UserWarning, match="this process has none") as caught:
        assert pickle.loads(kept).process_group is None
    assert caught[0].filename == __file__


# --- checkpoints of MONAI's losses ------------------------------------------------------------------------------------

MONAIS = ["DiceLoss", "MaskedDiceLoss", "FocalLoss", "DiceCELoss", "DiceFocalLoss"]


class _Model(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(2, 2), loss


@pytest.mark.parametrize("name", MONAIS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_checkpoint_of_a_model_with_a_weighted_loss_of_monai_loads(name):
    import monai.losses

    theirs = _Model(getattr(monai.losses, name)(weight=torch.tensor([1.0, 2.0])))
    kept = theirs.state_dict()
    assert any(key.startswith("loss.") for key in kept)
    ours = _Model(getattr(fast, name)(weight=[3.0, 4.0]))
    ours.load_state_dict(kept)
    assert torch.equal(ours.layer.weight, theirs.layer.weight)
    assert any(key.startswith("loss.") for key in kept)
    assert ours.state_dict().keys() == {"layer.weight", "layer.bias"}


def test_checkpoint_of_a_loss_alone_loads():
    DiceLoss().load_state_dict({"class_weight": torch.ones(3)})


def test_key_that_is_no_class_weight_is_unexpected():
    for key in ("other", "class_weight.more", "dice.other"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            DiceLoss().load_state_dict({key: torch.ones(3)})


def test_state_of_what_multi_scale_wraps_is_loaded():
    loss = MultiScaleLoss(torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="Missing key"):
        loss.load_state_dict({"class_weight": torch.ones(3)})
    loss.load_state_dict({"loss.weight": torch.ones(2, 2), "loss.bias": torch.ones(2)})
    assert torch.equal(loss.loss.bias, torch.ones(2))
