"""The errata table is what the audit says today."""

from pathlib import Path

import monai
import pytest

from twinloss.harness.commands.audit import PACKAGES, PEERS, LibraryError, as_markdown, audit
from twinloss.harness.losses.catalogue import catalogue

REPORT = Path(__file__).parents[2] / "reports" / "errata.md"


def test_every_loss_of_ours_has_its_peer_in_monai():
    assert {peer.like for peer in PEERS["monai"]} == set(catalogue())


@pytest.mark.parametrize("loss", ["generalized_wasserstein_dice", "tversky", "bending_energy", "diffusion"])
def test_the_table_is_what_the_audit_says(loss):
    assert f"# monai {monai.__version__} beside the papers" in REPORT.read_text()
    kept = [line for line in REPORT.read_text().splitlines() if line.startswith(f"| {loss} |")]
    made = as_markdown("monai", audit("monai", [loss]), 0)
    assert [line for line in made.splitlines() if line.startswith(f"| {loss} |")] == kept


def test_the_table_tells_what_is_known_to_be_wrong():
    rows = REPORT.read_text().splitlines()
    told = {tuple(cell.strip() for cell in row.split(" | ")[:3]) for row in rows}
    assert ("| lncc", "kernel_type=triangular", "differs") in told  # the triangle 0, 1, 0
    assert ("| dice", "soft_label=True", "differs") in told
    assert ("| bending_energy", "normalize=True", "agrees as the defaults do") in told


def test_a_library_that_is_unknown_or_not_installed_or_lacks_a_loss_is_refused(monkeypatch):
    with pytest.raises(LibraryError, match="known are monai"):
        audit("monay")
    with pytest.raises(LibraryError, match="kornia has no counterpart of lncc, only of dice, focal, tversky"):
        audit("kornia", ["dice", "lncc"])
    monkeypatch.setitem(PACKAGES, "kornia", "no-such-package")
    with pytest.raises(LibraryError, match="pip install no-such-package"):
        audit("kornia")


@pytest.mark.parametrize("library", ["kornia", "segmentation_models_pytorch"])
def test_peers_that_are_no_requirement_are_wired(library):
    assert {peer.like for peer in PEERS[library]} == {"dice", "tversky", "focal"}
    assert all(peer.twin().options["reduction"] for peer in PEERS[library])


def test_a_cluster_makes_no_difference():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        assert audit("monai", ["tversky"], cluster=cluster.scheduler_address) == audit("monai", ["tversky"])
