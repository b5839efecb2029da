"""Every loss has a record, and all that belongs to a loss; a test that fails says what is left to write, and where."""

import inspect
from pathlib import Path

import pytest

from twinloss import fast, reference
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.site.record import CONTENT
from twinloss.harness.zoo import zoo

ROOT = Path(__file__).parents[2]
LOSSES = [each for name, each in vars(fast).items() if name.endswith("Loss")]
LEAST_MUTANTS = 2


def missing(twin):
    """Yield what is left to write for a loss."""
    file = Path(inspect.getfile(twin.public)).name
    for path in (f"reference/{file}", f"tests/reference/test_{file}", f"tests/fast/test_{file}"):
        if not (ROOT / path).exists():
            yield f"the file {path}"
    where = f"in the record of {twin.name} in harness/losses/"
    for side in (twin.value, twin.gradient):
        if not twin.wraps and side.__name__ not in reference.__all__:
            yield f"{side.__name__} in reference/__init__.py"
    signature = inspect.signature(twin.public).parameters
    if not twin.wraps and (left := set(signature) - {"process_group", "return_parts", "spatial_dims", *twin.options}):
        yield f"values of {', '.join(sorted(left))} in `options` {where}"
    yield from (f"`{name}` {where}" for name in ("laws", "real", "benches") if not getattr(twin, name))
    if twin.bounds.__name__ == "unbounded":
        yield f"`bounds` {where}"
    mutants = sum(mutant.of == twin.name for mutant in zoo())
    if mutants < LEAST_MUTANTS:
        yield f'{LEAST_MUTANTS - mutants} more classes with @bug("{twin.name}") in harness/zoo/'
    if not (CONTENT / f"{twin.name}.toml").exists():
        yield f"its page, harness/site/content/{twin.name}.toml"
    if f"| `{twin.name}` |" not in (ROOT / "README.md").read_text(encoding="utf-8"):
        yield "a row in the table of losses in README.md"


@pytest.mark.parametrize("loss_class", LOSSES, ids=lambda loss_class: loss_class.__name__)
def test_every_loss_has_a_record(loss_class):
    assert loss_class in [twin.public for twin in TWINS], (
        f"{loss_class.__name__} has no record: add a Twin with fast=fast.{loss_class.__name__} to "
        "harness/losses/segmentation.py or registration.py"
    )


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_nothing_that_belongs_to_a_loss_is_missing(twin):
    left = list(missing(twin))
    assert not left, f"{twin.name} lacks " + "; ".join(left)
