"""The class of a cause: a defect, lost precision, a convention, or input outside the documented domain."""

from __future__ import annotations

import numpy as np

from twinloss.harness.auditing.causes import Cause, digits, how, only_digits, quick_in_double, ruling
from twinloss.harness.auditing.erratum import CONVENTION, DEFECT, HALF, OUTSIDE, PRECISION
from twinloss.harness.auditing.peer import Peer
from twinloss.harness.hunting.conventions import expects_classes
from twinloss.harness.judging.trial import MOST, only_rounding, outside_its_bounds, relative_error, wrong_parts
from twinloss.harness.model.twin import Twin

# Errors that a loss raises on purpose.
TYPED = ("TypeError", "ValueError", "AssertionError", "NotImplementedError")

# A smaller relative error is lost precision, whatever its cause.
ROUNDING = 1e-5

# The class of a cause that is no finding: less than one digit is lost.
NOTHING = "nothing"

# Why arguments of different types are a convention.
TYPES = "no document lists the dtypes that may be combined"

# Traits on which papers and documentation leave the answer open, and what they leave open.
OPEN = {
    "NaN in excluded voxels": "no document says whether excluded voxels may be NaN",
    "NaN": "no document says where a NaN may spread",
    "infinity": "no document says that logits may be infinite",
}


def sort_of(peer: Peer, twin: Twin, cause: Cause) -> tuple[str, str]:
    """Return the class of a cause, and the reason."""
    trial, case = cause.trial, cause.trial.case
    if trial.kind in ("value", "gradient"):
        right, held = digits(twin, trial)
        if right > held - 1:
            return NOTHING, "less than one digit is lost"
    if clause := ruling(twin, case):
        return (OUTSIDE if clause.excluded else CONVENTION), f"{clause.name}; {clause.source}"
    for trait, reason in OPEN.items():
        if trait in cause.traits and (trait == "infinity" or _not_only_numbers_differ(cause)):
            return CONVENTION, reason
    if "one class left" in cause.traits and expects_classes(twin.defaults() | dict(case.options)):
        return CONVENTION, "no paper says what one channel means where several classes are expected"
    if trial.kind == "error":
        return _sort_of_error(peer, cause)
    got, want = wrong_parts(trial)
    if got.shape != want.shape:
        if got.size == want.size:
            return CONVENTION, "no paper fixes the shape of a loss that is not reduced"
        return DEFECT, peer.source
    zero_over_zero = "`smooth_dr`" in cause.traits and case.options.get("smooth_dr") == 0
    if zero_over_zero and not (np.isfinite(got).all() and np.isfinite(want).all()):
        return CONVENTION, "0/0, by the caller's choice of a smoothing constant of 0"
    rounded = "less than float64" in cause.traits
    if trial.kind == "gradient" and "a tie of prediction and target" in cause.traits and not rounded:
        return CONVENTION, "the loss has a kink here, and any slope between those of both sides is a subgradient"
    if "arguments of different types" in cause.traits and only_rounding(twin, trial, quick_in_double):
        return CONVENTION, TYPES
    if "float16" in cause.traits and relative_error(twin, trial) > MOST:
        return OUTSIDE, HALF
    if _is_rounding(twin, cause):
        right, held = digits(twin, trial)
        return PRECISION, f"{max(right, 0):.1f} of the {held:.1f} digits of {case.dtype} are right"
    return DEFECT, _source(peer, cause)


def _not_only_numbers_differ(cause: Cause) -> bool:
    """Return whether there is an error, or NaN and infinity are in other places."""
    if cause.trial.kind == "error" or cause.trial.answer is None:
        return True
    got, want = wrong_parts(cause.trial)
    return got.shape != want.shape or bool((np.isfinite(got) != np.isfinite(want)).any())


def _is_rounding(twin: Twin, cause: Cause) -> bool:
    """Return whether only digits are lost, and the relative error is small."""
    trial = cause.trial
    if relative_error(twin, trial) > MOST:
        return False
    rounding = {"less than float64", "float16", "arguments of different types"} & cause.traits
    return relative_error(twin, trial) < ROUNDING or bool(rounding) or only_digits(twin, trial)


def _sort_of_error(peer: Peer, cause: Cause) -> tuple[str, str]:
    if how(cause.trial) in TYPED:
        return OUTSIDE, "the loss refuses this input with an error that says so"
    if "arguments of different types" in cause.traits:
        return CONVENTION, TYPES
    return DEFECT, _source(peer, cause)


def _source(peer: Peer, cause: Cause) -> str:
    """Return what says that the answer is wrong: what the documentation says about the failure, and the formula."""
    if cause.how in peer.quotes:
        return peer.quotes[cause.how]
    said = [peer.quotes[trait] for trait in sorted(cause.traits) if trait in peer.quotes]
    options = sorted(trait.strip("`") for trait in cause.traits if trait.startswith("`") and trait not in peer.quotes)
    named = [f"`{peer.theirs(name)}`" for name in options]
    told = [f"its documentation of {' and '.join(named)}"] if named and not said else []
    return "; ".join([*said, *told]) if said else "; and ".join([peer.source, *told])


def sentence(peer: Peer, twin: Twin, cause: Cause) -> str:
    """Return what is wrong, and with which traits only."""
    trial = cause.trial
    options = sorted(t for t in cause.traits if t.startswith("`"))
    named = [f"`{peer.theirs(t.strip('`'))}`" for t in options]
    others = sorted(t for t in cause.traits if not t.startswith("`"))
    needs = " and ".join([*named, *others])
    given = f", with {needs}" if needs else ""
    if trial.kind == "error":
        return f"an error is raised{given}"
    if cause.how.startswith("shape"):
        return f"the {cause.how} is another{given}"
    if cause.how.endswith("not finite"):
        return f"the {cause.how.split()[0]} is not finite{given}"
    bounds = outside_its_bounds(twin, trial) if trial.kind == "value" else None
    beyond = f", and outside its range [{peer.lowest}, {peer.highest}]" if bounds and peer.range_source else ""
    return f"the {cause.how} is off{_size(twin, cause)}{beyond}{given}"


def _size(twin: Twin, cause: Cause) -> str:
    """Return how large the error is, relative to the largest expected number."""
    got, want = wrong_parts(cause.trial)
    if relative_error(twin, cause.trial) < MOST:
        return f" by {relative_error(twin, cause.trial):.1g} of its size"
    with np.errstate(all="ignore"):
        error = float(np.max(np.abs(got - want)) / np.max(np.abs(want)))
    return f" by {error:.0%}" if error < 2 else f" by a factor of {error + 1:.3g}" if error < 100 else ""
