"""Files that hold a user's batch: each kind and type is read, nothing in them is run, errors say what is wrong."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from twinloss.harness.diagnosis.batch_files import BatchError, LoadedBatch, load

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((5, 7, 4)).astype(np.float32)


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "nii.gz"])
def test_files_hold_the_batch(tmp_path, kind):
    path = tmp_path / f"pred.{kind}"
    if kind == "npz":
        np.savez(path, pred=IMAGE)
    elif kind == "npy":
        np.save(path, IMAGE)
    elif kind == "pt":
        torch.save({"pred": torch.from_numpy(IMAGE)}, path)
    else:
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti1Image(IMAGE, np.eye(4)), path)
    found = load(path)
    assert list(found.arrays) == ["pred"]
    np.testing.assert_array_equal(np.squeeze(found.arrays["pred"]), IMAGE)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "<u2", ">u4", "u8", "i1", "u1", "f2", "longdouble", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_each_type_and_order_in_memory_becomes_one_that_torch_computes_with(tmp_path, dtype, order):
    values = (10 * RNG.random((2, 3, 4))).astype(dtype, order=order)
    np.savez(tmp_path / "batch.npz", input=values)
    torch.save({"input": values}, tmp_path / "batch.pt")
    for kind in ("npz", "pt"):
        found = load(tmp_path / f"batch.{kind}")
        np.testing.assert_array_equal(found.arrays["input"], values.astype(float))
        np.testing.assert_array_equal(torch.from_numpy(found.arrays["input"].copy()).double(), values.astype(float))


def test_an_image_of_the_other_byte_order_is_read(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.Nifti1Image(IMAGE.astype(">f4"), np.eye(4), header).to_filename(tmp_path / "pred.nii")
    found = load(tmp_path / "pred.nii").arrays["pred"]
    assert found.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(found[0, 0], IMAGE)


@pytest.mark.parametrize(("shape", "expected"), [((5, 4), (1, 1, 5, 4)), ((5, 4, 3, 2), (1, 2, 5, 4, 3)),
                                                 ((5, 4, 3, 1, 3), (1, 3, 5, 4, 3))])  # fmt: skip
def test_axes_of_an_image_come_in_the_order_of_a_loss(tmp_path, shape, expected):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(RNG.random(shape), np.eye(4)), tmp_path / "pred.nii.gz")
    assert load(tmp_path / "pred.nii.gz").arrays["pred"].shape == expected


@pytest.mark.parametrize(("value", "reason"), [
    (np.ones(2, complex), "complex numbers"), (np.array([None, 1]), "array of object"), (np.array("a"), "array of <U1"),
    (np.array(3.0), "single number"), ("liver", "str"), (3, "int"), ([1.0], "list of 1"), ({}, "dict of 0"),
    (torch.ones(2, dtype=torch.complex64), "complex numbers"), (torch.ones(2, device="meta"), "meta device"),
])  # fmt: skip
def test_what_is_no_array_of_numbers_is_left_out_with_a_reason(value, reason):
    found = LoadedBatch.of({"input": IMAGE, "other": value})
    assert list(found.arrays) == ["input"]
    assert reason in found.left_out["other"]


def test_a_dictionary_with_other_keys_gives_its_tensors(tmp_path):
    batch = {"label": torch.ones(2, 1, 3, dtype=torch.bfloat16), "epoch": 3, "names": ["a", "b"], "where": Path("here"),
             "image_meta_dict": {"affine": torch.eye(4)}, "lr": np.float32(0.1),
             "pred": torch.zeros(2, 1, 3, requires_grad=True)}  # fmt: skip
    torch.save(batch, tmp_path / "batch.pt")
    found = load(tmp_path / "batch.pt")
    assert set(found.arrays) == {"label", "pred"}
    assert set(found.left_out) == {"epoch", "names", "where", "image_meta_dict", "lr"}
    assert found.types["label"] == "bfloat16"
    assert found.asking == {"pred"}


@pytest.mark.parametrize(("saved", "names"), [
    ((torch.ones(2, 3), torch.ones(2, 3)), ["0", "1"]), (torch.ones(2, 3), ["batch"]),
    ({"pred": [torch.ones(2, 3), torch.ones(2, 2)]}, ["pred.0", "pred.1"]),
    ({"batch": {"logits": torch.ones(2, 3)}}, ["logits"]), ({"input": torch.eye(3).to_sparse()}, ["input"]),
])  # fmt: skip
def test_tensors_are_found_however_they_were_saved(tmp_path, saved, names):
    torch.save(saved, tmp_path / "batch.pt")
    assert list(load(tmp_path / "batch.pt").arrays) == names


READ = """
import sys
from pathlib import Path
from twinloss.harness.diagnosis.batch_files import load
found = load(Path(sys.argv[1]))
assert "monai" not in sys.modules
print({name: values.tolist() for name, values in found.arrays.items()})
"""


@pytest.mark.parametrize("imported", [True, False])
def test_tensors_of_monai_are_read_with_and_without_monai(tmp_path, imported):
    data = pytest.importorskip("monai.data")
    meta = {"filename_or_obj": "a.nii.gz", "spacing": np.arange(3.0), "dim": np.int16(3), "where": Path("here")}
    pair = {
        name: data.MetaTensor(torch.full((1, 1, 2), k), meta=dict(meta)) for name, k in (("pred", 1.0), ("label", 2.0))
    }
    torch.save(pair, tmp_path / "batch.pt")
    if imported:
        found = {name: values.tolist() for name, values in load(tmp_path / "batch.pt").arrays.items()}
    else:
        done = subprocess.run([sys.executable, "-c", READ, tmp_path / "batch.pt"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = eval(done.stdout)
    assert found == {"pred": [[[1.0, 1.0]]], "label": [[[2.0, 2.0]]]}


class Trap:
    def __reduce__(self):
        return print, ("a file of a stranger has run code",)


class SystemTrap:
    def __reduce__(self):
        import os

        return os.system, ("echo a file of a stranger has run code",)


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "system.pt", "inside.pt"])
def test_a_file_of_a_stranger_runs_no_code(tmp_path, capfd, kind):
    path = tmp_path / f"trap.{kind}"
    if kind.endswith("pt"):
        trap = SystemTrap() if kind == "system.pt" else Trap()
        torch.save({"input": np.array([trap]) if kind == "inside.pt" else trap}, path)
    elif kind == "npz":
        np.savez(path, input=np.array([Trap()], object))
    else:
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BatchError, match="cannot read"):
        load(path)
    assert "run code" not in "".join(capfd.readouterr())


def test_a_file_of_objects_is_told_how_to_be_made(tmp_path):
    torch.save({"input": Trap()}, tmp_path / "trap.pt")
    torch.save({"input": SystemTrap()}, tmp_path / "system.pt")
    for name in ("trap.pt", "system.pt"):
        with pytest.raises(BatchError, match=r"save torch\.save") as told:
            load(tmp_path / name)
        assert "weights_only" not in str(told.value)


def test_two_files_of_one_name_are_called_by_their_folders(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "case1.npy", IMAGE)
    found = load(tmp_path / "images" / "case1.npy", tmp_path / "labels" / "case1.npy")
    assert set(found.arrays) == {str(tmp_path / folder / "case1") for folder in ("images", "labels")}
    np.savez(tmp_path / "images" / "all.npz", case1=IMAGE)
    with pytest.raises(BatchError, match=r"two arrays are called .*case1: rename one of them"):
        load(tmp_path / "images" / "case1.npy", tmp_path / "images" / "all.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("batch.npz", None, "there is no file"),
        ("batch.txt", b"1 2 3", "has an unknown file type"),
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
