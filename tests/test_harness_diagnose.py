"""`twinloss diagnose`: batches of users, healthy, ill, and not to be read."""

import pickle

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from twinloss.harness import cli, cli_diagnose
from twinloss.harness.diagnose import BatchError, diagnose, load

assert cli_diagnose.app is cli.app
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((2, 3, 5, 7)).astype(np.float32)
LABELS = np.stack([RNG.permutation(35).reshape(1, 5, 7) % 3 for _ in range(2)])


def said(made):
    return " ".join(made.verdict)


def table(made, title):
    return next(rows for name, _, rows in made.tables if name == title)


def test_a_healthy_batch_is_said_to_be_one():
    halves = (np.round(8 * LOGITS) / 8).clip(-2, 2)  # numbers that all types hold
    made = diagnose("tversky", {"input": halves, "target": LABELS}, {"softmax": True, "to_onehot_y": True})
    assert made.verdict == ["Nothing is wrong with this batch: reference and fast loss agree in every type."]


def test_sizes_and_overlap_are_told_by_item_and_class():
    made = diagnose("dice", {"input": LOGITS, "target": LABELS})
    rows = table(made, "classes")
    assert [float(row[2]) for row in rows] == [float((LABELS[b] == c).sum()) for b in range(2) for c in range(3)]
    p = torch.from_numpy(LOGITS).softmax(1).sum((2, 3)).flatten()
    np.testing.assert_allclose([float(row[3]) for row in rows], p, rtol=1e-4)


def test_what_the_options_must_be_is_guessed_and_told():
    made = diagnose("dice", {"logits": LOGITS, "labels": LABELS})
    assert made.options == {"to_onehot_y": True, "softmax": True}
    assert "Taken for granted" in said(made)
    assert diagnose("dice", {"x": LOGITS[:, :1], "y": LABELS}).options == {"sigmoid": True}
    assert diagnose("lncc", {"pred": LOGITS, "target": LOGITS}).options == {"ndim": 2}


def test_an_absent_class_is_named():
    made = diagnose("dice", {"input": LOGITS, "target": np.where(LABELS == 2, 0, LABELS)})
    assert "Item 0 has no voxel of class 2" in said(made)


def test_the_first_nan_is_found():
    ill = LOGITS.copy()
    ill[1, 2, 3, 4] = np.nan
    made = diagnose("dice", {"input": ill, "target": LABELS})
    assert "first at (1, 2, 3, 4)" in said(made)
    assert "The value is NaN" in said(made)


def test_labels_out_of_range_are_counted():
    labels = LABELS.copy()
    labels[0, 0, 0, 0] = 7
    logits = LOGITS.copy()
    logits[0, 0, 1, 1] = np.nan
    made = diagnose("dice", {"input": logits, "target": labels})
    assert "[0, 3)" in said(made)
    assert "7 (1 voxels)" in said(made)
    assert "NaN or infinite, the first at (0, 0, 1, 1)" in said(made)  # told beside it


def test_a_file_with_more_than_tensors_is_told_how_to_be_made(tmp_path):
    torch.save({"input": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(BatchError, match="holds more than tensors") as told:
        load(tmp_path / "trap.pt")
    assert "weights_only" not in str(told.value)


def test_a_smoothing_term_that_decides_is_named():
    made = diagnose("generalized_dice", {"input": LOGITS, "target": LABELS}, {"smooth_nr": 5.0})
    assert "smooth_nr decides" in said(made)
    nothing = {"input": np.zeros((1, 2, 3)), "target": np.zeros((1, 2, 3))}
    assert "Without smooth_dr the value would be NaN" in said(diagnose("dice", nothing))


def test_what_precision_costs_is_measured():
    made = diagnose("lncc", {"pred": 1000 + LOGITS, "target": LOGITS})
    assert "In float16" in said(made)
    rows = {row[0]: row for row in table(made, "value and gradient")}
    assert float(rows["float64"][2]) < 1e-10
    assert float(rows["bfloat16"][2]) > 1e-3


def test_a_batch_that_teaches_nothing_is_told_so():
    made = diagnose("dice", {"input": np.zeros((1, 1, 4)), "target": np.ones((1, 1, 4))}, {"smooth_nr": 0.0})
    assert "teaches nothing" not in said(made)
    flat = {"pred": np.zeros((1, 2, 5, 5))}
    assert "teaches nothing" in said(diagnose("bending_energy", flat))


@pytest.mark.parametrize("kind", ["npz", "pt", "nii.gz"])
def test_files_hold_the_batch(tmp_path, kind):
    image = LOGITS[0, 0, :, :, np.newaxis] + np.zeros(4, np.float32)
    path = tmp_path / f"pred.{kind}"
    if kind == "npz":
        np.savez(path, pred=image)
    elif kind == "pt":
        torch.save({"pred": torch.from_numpy(image)}, path)
    else:
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    found = load(path)
    assert list(found) == ["pred"]
    np.testing.assert_array_equal(np.squeeze(found["pred"]), image)


class Trap:
    def __reduce__(self):
        return print, ("a file of a stranger has run code",)


@pytest.mark.parametrize("kind", ["npz", "npy", "pt"])
def test_a_file_of_a_stranger_runs_no_code(tmp_path, capsys, kind):
    path = tmp_path / f"trap.{kind}"
    if kind == "pt":
        torch.save({"input": Trap()}, path)
    elif kind == "npz":
        np.savez(path, input=np.array([Trap()], object))
    else:
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BatchError, match="cannot read"):
        load(path)
    assert "run code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("batch.npz", None, "there is no file"),
        ("batch.txt", b"1 2 3", "of no kind that is known"),
        ("batch.npz", b"broken", "cannot read"),
        ("batch.nii", b"broken", "cannot read"),
        ("batch.pt", b"broken", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BatchError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"input": LOGITS, "something": LABELS}, "--map target="),
        ({"input": LOGITS, "target": LABELS[:, :, :4]}, "DiceLoss refuses this"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(found, message):
    with pytest.raises(BatchError, match=message):
        diagnose("dice", found)


def test_the_command_tells_and_exits(tmp_path):
    path = tmp_path / "batch.npz"
    np.savez(path, logits=LOGITS, target=LABELS)
    done = CliRunner().invoke(cli.app, ["diagnose", str(path), "--as", "dice_ce"])
    assert done.exit_code == 0, done.output
    assert "value and gradient" in done.output
    assert "Taken for granted" in done.output
    done = CliRunner().invoke(cli.app, ["diagnose", str(tmp_path / "none.npz"), "--as", "dice"])
    assert done.exit_code == 2
