"""The zoo: losses with deliberate bugs, which the harness must detect. Each check is needed for some of them."""

from pathlib import Path

import pytest
import torch

from twinloss import fast
from twinloss.harness.losses.catalogue import catalogue
from twinloss.harness.losses.registration import LNCC
from twinloss.harness.losses.segmentation import DICE
from twinloss.harness.zoo import kills, segmentation, zoo
from twinloss.harness.zoo.mutants import Mutant
from twinloss.harness.zoo.registration import PlainCorrelation

REPORT = Path(__file__).parents[2] / "reports" / "zoo.md"

# For each judgement, a mutant that nothing else kills.
NEEDED = {
    "value": "logged with debias",
    "gradient": "scale of mixed precision",
    "differences": "no slope in a target of zero",
    "laws": "pooled by both authors",
    "protocol": "counts its calls",
}


def named(name):
    return next(mutant for mutant in zoo() if mutant.name == name)


def test_the_zoo_has_mutants_of_all_losses_and_each_says_what_is_wrong():
    assert len(zoo()) >= 40
    assert len({mutant.name for mutant in zoo()}) == len(zoo())
    assert {mutant.of for mutant in zoo()} == set(catalogue())
    assert all(len(mutant.origin) > 30 and mutant.origin.endswith(".") for mutant in zoo())


@pytest.mark.parametrize("judgement", kills.JUDGEMENTS)
def test_each_judgement_is_the_only_killer_of_some_mutant(judgement):
    made = kills.kills(named(NEEDED[judgement]))
    assert list(made.at) == [judgement]


@pytest.mark.parametrize("name", ["nested differences", "index of sixteen bits", "stale buffer", "alpha beyond one"])
def test_a_bug_that_few_cases_show_is_killed(name):
    assert kills.kills(named(name)).at


def test_no_mutant_is_alive_in_the_report_and_none_is_missing():
    rows = [line.split("|")[1:-1] for line in REPORT.read_text().splitlines() if line.startswith("| ")][1:]
    assert sorted(row[0].strip() for row in rows) == sorted(mutant.name for mutant in zoo())
    assert all(any(cell.strip() for cell in row[2:7]) for row in rows)


@pytest.mark.parametrize(
    "good",
    [
        Mutant("our own", "", "dice", fast.DiceLoss, dtype="float32"),
        Mutant("plain Dice", "", "dice", segmentation.Plain, segmentation.PLAIN),
        Mutant("plain LNCC", "", "lncc", PlainCorrelation),
    ],
    ids=lambda mutant: mutant.name,
)
def test_what_the_mutants_are_made_of_lives(good):
    assert kills.kills(good, examples=15).at == {}


def test_plain_forms_are_the_losses_they_say():
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    target = torch.rand(2, 3, 5, 7, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(segmentation.Plain(softmax=True)(x, target), DICE.fast(softmax=True)(x, target))
    torch.testing.assert_close(PlainCorrelation(ndim=2)(x, target), LNCC.fast(ndim=2)(x, target))
