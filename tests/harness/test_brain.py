"""The MNI152 brain: whole, consistent, the same each time, and read without a network."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from twinloss.harness.data.brain import VARIANCE_FLOOR, load_brain

S = (197, 233, 189)

# A fresh interpreter in which any use of the network and any warning is an error.
OFFLINE = """
import hashlib, sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise RuntimeError(f"network used: {event} {args}")
sys.addaudithook(refuse)
from twinloss.harness.data.brain import load_brain
load_brain().logits
for array in vars(load_brain()).values():
    print(hashlib.sha256(array).hexdigest())
"""


@pytest.fixture(scope="module")
def brain():
    pytest.importorskip("nilearn")
    yield load_brain()
    load_brain.cache_clear()  # 330 MB that the other tests have no use for


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_shapes_and_types(brain):
    expected = {
        "t1": (S, np.float32),
        "labels": ((1, 1, *S), np.uint8),
        "soft_labels": ((1, 4, *S), np.float32),
        "logits": ((1, 4, *S), np.float32),
        "mask": ((1, 1, *S), np.bool_),
    }
    assert {name: (getattr(brain, name).shape, getattr(brain, name).dtype) for name in expected} == expected
    assert all(a.flags.c_contiguous for a in vars(brain).values())


def test_t1_fills_the_unit_interval(brain):
    assert brain.t1.min() == 0
    assert brain.t1.max() == 1


def test_soft_labels_are_probabilities(brain):
    assert brain.soft_labels.min() >= 0
    np.testing.assert_allclose(brain.soft_labels.sum(axis=1), 1, rtol=2e-7)


def test_background_is_what_the_mask_leaves_out(brain):
    np.testing.assert_array_equal(brain.soft_labels[:, :1] == 1, ~brain.mask)
    np.testing.assert_array_equal(brain.soft_labels[:, :1] == 0, brain.mask)
    np.testing.assert_array_equal(brain.labels == 0, ~brain.mask)


def test_labels_are_the_most_probable_class(brain):
    at_label = np.take_along_axis(brain.soft_labels, brain.labels.astype(np.intp), axis=1)
    np.testing.assert_array_equal(at_label, brain.soft_labels.max(axis=1, keepdims=True))


def test_every_class_is_a_tissue_and_brightens_in_order(brain):
    means = [brain.t1[brain.labels[0, 0] == k].mean() for k in range(4)]
    np.testing.assert_allclose(means, [0, 0.39, 0.65, 0.84], atol=0.01)


def test_logits_are_finite_and_never_above_the_narrowest_component(brain):
    assert np.isfinite(brain.logits).all()
    assert brain.logits.max() <= -0.5 * np.log(2 * np.pi * VARIANCE_FLOOR)


# Measured: background 0.9998, CSF 0.836, grey 0.952, white 0.964, and 0.946 of the brain's voxels.
def test_mixture_agrees_with_the_tissue_maps(brain):
    guess = brain.logits.argmax(axis=1, keepdims=True)
    overlap = [dice(guess == k, brain.labels == k) for k in range(4)]
    assert np.all(np.array(overlap) > [0.99, 0.75, 0.92, 0.93]), overlap
    assert np.mean((guess == brain.labels)[brain.mask]) > 0.92


def test_one_process_loads_once(brain):
    assert load_brain() is brain


def test_fresh_process_offline_reads_the_same_bytes(brain):
    command = [sys.executable, "-W", "error", "-c", OFFLINE]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert run.stdout.split() == [hashlib.sha256(a).hexdigest() for a in vars(brain).values()]


def test_missing_nilearn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ImportError, match=r'pip install "twinloss\[real\]"'):
        load_brain.__wrapped__()
