"""The losses of the catalogue as pairs, as users write them.

`twinloss check --pair twinloss.harness.losses.own_pairs:dice` hunts on one of them, with the bounds of `verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from twinloss.harness.judging.truth import Truth
from twinloss.harness.losses.catalogue import TWINS, catalogue
from twinloss.harness.model.operand import Elementwise, PerCase
from twinloss.harness.model.pair import ArraySpec, Pair, arrays
from twinloss.harness.model.twin import Twin

# The distances of three classes.
DISTANCES = [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]

# The values of options that fit logits with labels in the plane, in place of those that depend on the case.
FIXED: dict[str, tuple[Any, ...]] = {
    "softmax": (True,), "to_onehot_y": (True,), "ndim": (2,), "dist_matrix": (DISTANCES,), "kernel_size": (3,),
}  # fmt: skip
LEFT_OUT = ("sigmoid", "other_act", "ignore_index", "spacing", "normalize", "soft_label", "weighting_mode")


def pair_of(twin: Twin) -> Pair:
    """Return a loss of the catalogue as a pair, in the plane and with the options that do not depend on the case."""
    images = twin.operands[0] == "pred"
    return Pair(
        twin.name,
        fast=twin.fast,
        reference=twin.value,
        gradient=twin.gradient,
        inputs=_inputs(twin),
        wrt=twin.operands[0],
        options={name: FIXED.get(name) or tried for name, tried in _options(twin).items()},
        kinks=twin.kinks,
        unit=twin.unit,
        precise=twin.precise,
        constants=twin.constants,
        terms=_of_pair(twin, twin.terms),
        value_terms=_of_pair(twin, twin.value_terms),
        blocks="B C",
        sizes={"H": (5, 6, 9), "W": (7, 5, 6)} if images else {"C": (3,)},
        takes="torch",
        allowed=lambda options: twin.allowed({**twin.defaults(), **options}),
    )


def _of_pair(twin: Twin, terms: Callable[[Truth], Any] | None) -> Callable[[Truth], Any] | None:
    """Return the function that computes magnitudes of terms from the truth of a pair, whose defaults may be others."""
    if terms is None:
        return None
    return lambda truth: terms(Truth(twin, replace(truth.case, options=truth.options), truth.real))


def _inputs(twin: Twin) -> dict[str, ArraySpec]:
    specs = {
        "target": arrays("B C H W", exact=True)
        if twin.operands[0] == "pred"
        else arrays("B 1 H W", "int64", below="C"),
        "mask": arrays("B 1 H W", "int64", low=0, high=1),
    }
    logits = twin.operands[0] == "input"
    return {name: specs.get(name, arrays("B C H W", logits=logits)) for name in twin.operands}


def _options(twin: Twin) -> Mapping[str, tuple[Any, ...]]:
    made = {}
    for name, tried in twin.options.items():
        plain = tuple(value for value in tried if not isinstance(value, PerCase | Elementwise))
        if name in FIXED or (plain and name not in LEFT_OUT):
            made[name] = plain
    return made


def __getattr__(name: str) -> Pair:
    """Return the pair of a loss by its name."""
    twin = catalogue().get(name)
    if twin is None:
        raise AttributeError(f"module {__name__!r} has no pair {name!r}: it has {', '.join(t.name for t in TWINS)}")
    return pair_of(twin)
