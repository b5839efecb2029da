"""Counted bytes, launches, waits and memory: of known operators, and of all losses beside MONAI's."""

import pytest
import torch
from typer.testing import CliRunner

from twinloss.harness.bench import traffic
from twinloss.harness.bench.cases import base_cases
from twinloss.harness.cli.bench import app
from twinloss.harness.losses.catalogue import TWINS

# Shares of MONAI's bytes and launches beyond the limits: what accuracy costs, with a margin of a few percent.
KNOWN = {
    "masked_dice": (1.95, 1.5),  # a mask may be neither 0 nor 1
    "masked": (1.95, 1.5),  # as for masked_dice
    "generalized_wasserstein_dice": (1.9, 1.5),  # distance and nearness are summed apart, so that neither cancels
    "focal": (1.5, 3.0),  # 1 - p and its logarithm are computed without a difference
    "dice_ce": (1.55, 1.5),
    "lncc": (2.4, 1.5),  # sums of halves of the digits, which are exact
    "multi_scale": (2.45, 1.5),
}


def counted(loss, *shape):
    return traffic.traffic(loss, [torch.zeros(shape)])


def test_bytes_launches_and_peak_of_known_operators_are_counted():
    found = counted(lambda x: (x * x).sum(), 1000)
    # Forward: x is read, the product is written and read. Backward: the upstream gradient times x, twice, and the
    # sum of both.
    assert found.launches >= 5
    assert found.peak >= 1
    assert (found.waits, found.uploads) == (0, 0)
    assert counted(lambda x: x.neg().neg_().sum(), 1000).moved == pytest.approx(
        counted(lambda x: x.neg().sum(), 1000).moved + 4, abs=0.1
    )


def test_a_reduction_in_a_wider_type_counts_the_copy_that_torch_makes():
    narrow = counted(lambda x: x.sum(), 1000)
    wide = counted(lambda x: x.sum(dtype=torch.float64).float(), 1000)
    assert wide.moved - narrow.moved >= 4
    assert wide.peak >= 2


def test_waits_and_uploads_are_counted():
    assert counted(lambda x: x.sum() * (1 + x.detach().sum().item()), 10).waits == 1
    assert counted(lambda x: (x * torch.tensor([2.0], device=x.device)).sum(), 10).uploads == 1


def test_what_lives_between_the_passes_is_counted():
    assert counted(lambda x: x.exp().sum(), 1000).kept == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("case", base_cases(TWINS, 1, 32), ids=str)
def test_without_compiled_kernels_a_loss_waits_for_nothing_and_moves_little(case):
    found = traffic.compare(case)
    assert (found.ours.waits, found.ours.uploads) == (0, 0)
    most_bytes, most_launches = KNOWN.get(case.loss, (traffic.BYTES, traffic.LAUNCHES))
    moved, launches, peak = found.shares
    assert moved <= most_bytes
    assert launches <= most_launches
    assert peak <= 1.03


def test_the_command_prints_a_table_and_writes_the_report(tmp_path):
    arguments = ["bench", "tversky", "focal", "--traffic", "--size", "8", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "250", "TERMINAL_WIDTH": "250"})
    assert result.exit_code == 0, result.output
    report = (tmp_path / "traffic.md").read_text()
    assert "| tversky, 2×4×8³ |" in report
    assert "* focal, 2×4×8³: " in report
