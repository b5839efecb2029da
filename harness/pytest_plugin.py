"""The pytest plugin: `--twinloss-target mypkg.losses:FastDice --twinloss-as dice`, and the fixture `twin_check`.

Torch and Hypothesis are imported only when a check is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from twinloss.harness.commands.check import Check


class Differs(AssertionError):
    """A loss differs from its reference; the message says how, and contains a script that shows it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `twinloss check` that fit a command line."""
    group = parser.getgroup("twinloss", "hunt for errors in your own loss (see `twinloss check --help`)")
    group.addoption("--twinloss-target", metavar="TARGET", action="append", default=[], help="package.module:attr")
    group.addoption("--twinloss-as", metavar="LOSS", action="append", default=[], help="one for each target")
    group.addoption("--twinloss-option", metavar="NAME=VALUE", action="append", default=[], help="fixed option value")
    group.addoption("--twinloss-map", metavar="OURS=THEIRS", action="append", default=[], help="your name of an option")
    group.addoption("--twinloss-rank", metavar="N", type=int, action="append", default=[], help="spatial rank")
    group.addoption("--twinloss-channels", metavar="N", type=int, default=None, help="number of channels of the loss")
    group.addoption("--twinloss-hard-targets", action="store_true", help="the loss takes only targets of 0 and 1")
    group.addoption("--twinloss-labels-without-channel", action="store_true", help="the loss takes labels (B, *S)")
    group.addoption("--twinloss-dtype", metavar="DTYPE", action="append", default=[], help="dtype under test")
    group.addoption("--twinloss-examples", metavar="N", type=int, default=150, help="cases per dtype")
    group.addoption("--twinloss-seed", metavar="N", type=int, default=0, help="seed of the draws")
    group.addoption("--twinloss-xfails", metavar="FILE", default=None, help="known deviations, in TOML")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each target and dtype."""
    targets, losses = config.getoption("--twinloss-target"), config.getoption("--twinloss-as")
    if len(targets) != len(losses):
        raise pytest.UsageError(
            f"{len(targets)} --twinloss-target and {len(losses)} --twinloss-as: give each target the name of its loss, "
            "as shown by `twinloss list`"
        )
    if losses:
        from twinloss.harness.losses.catalogue import UnknownLossError, find

        try:
            losses = [find(name).name for name in losses]
        except UnknownLossError as error:
            raise pytest.UsageError(f"--twinloss-as: {error}") from error
    dtypes = config.getoption("--twinloss-dtype") or ["float32", "float64"]
    for target, like in zip(targets, losses, strict=True):
        items += [
            TwinItem.from_parent(session, name=f"{target} as {like} [{dtype}]", target=target, like=like, dtype=dtype)
            for dtype in dtypes
        ]


class TwinItem(pytest.Item):
    """A test of a target in one dtype."""

    def __init__(self, *, target: str, like: str, dtype: str, **more: Any) -> None:
        super().__init__(**more)
        self.target, self.like, self.dtype = target, like, dtype

    def runtest(self) -> None:
        """Run the check."""
        from twinloss.harness.commands.arguments import pairs, value

        option = self.config.getoption
        given = pairs(option("--twinloss-option"), "--twinloss-option")
        run_check(
            self.target, self.like,
            options={name: value(text) for name, text in given.items()},
            names=pairs(option("--twinloss-map"), "--twinloss-map"), dtypes=(self.dtype,),
            ranks=option("--twinloss-rank") or None, channels=option("--twinloss-channels"),
            hard_targets=option("--twinloss-hard-targets"),
            labels_without_channel=option("--twinloss-labels-without-channel"),
            examples=option("--twinloss-examples"), seed=option("--twinloss-seed"), xfails=option("--twinloss-xfails"),
        )  # fmt: skip

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the message of a failed check without a traceback."""
        from twinloss.harness.commands.arguments import ArgumentError
        from twinloss.harness.hunting.loading import TargetError

        plain = isinstance(excinfo.value, ArgumentError | Differs | TargetError)
        return str(excinfo.value) if plain else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Return the place that pytest shows for the test."""
        return self.target.rpartition(":")[0], None, self.name


def run_check(target: Any, like: str, **more: Any) -> Check:
    """Run `twinloss.harness.check`, and raise if the loss differs.

    Raises:
        Differs: if the loss differs; the message says how, and contains a script that shows it.
    """
    __tracebackhide__ = True
    from twinloss.harness import check
    from twinloss.harness.commands.check import story

    made = check(target, like, **more)
    if made.failed:
        lines = [text for text, _ in story(made)]
        found = next((row.counterexample for row in made.rows if row.counterexample and row.verdict == "fail"), None)
        if found:
            lines += ["", "This script shows it:", "", found.snippet]
        raise Differs("\n".join(lines))
    return made


@pytest.fixture
def twin_check() -> Callable[..., Check]:
    """`twin_check(MyDice, "dice", options={"softmax": True})` fails the test if the loss differs; see `check`."""
    return run_check
