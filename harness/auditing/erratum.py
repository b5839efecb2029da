"""A finding of the audit, and its class."""

from __future__ import annotations

from dataclasses import dataclass

DEFECT, PRECISION, CONVENTION, OUTSIDE = "defect", "precision", "convention", "outside the documented domain"
SORTS = (DEFECT, PRECISION, CONVENTION, OUTSIDE)
# Why a loss of more than digits in half precision is no defect.
HALF = "half precision outside of torch.autocast; no document says that the loss takes it"


@dataclass(frozen=True)
class Erratum:
    """One cause, with the smallest input that shows it.

    Attributes:
        loss: our name of the loss.
        peer: the loss of the library.
        sort: the class, one of SORTS.
        what: a sentence.
        source: why it is of this class: where the documentation or the paper says so.
        code: lines of the library's own code that show it.
        prints: what the lines print.
        traits: the traits that the input needs, and how it fails; the same in several losses is one cause.
        also: further losses that fail in the same way, because they share the code.
    """

    loss: str
    peer: str
    sort: str
    what: str
    source: str
    code: str
    prints: str
    traits: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audited:
    """The result for one loss of a library.

    Attributes:
        loss: our name of the loss.
        peer: the loss of the library, with its defaults in full.
        errata: one for each cause.
        agrees: the option values with which it agrees with the reference in all cases.
        missing: the options that it does not have.
        cases: the number of cases.
    """

    loss: str
    peer: str
    errata: tuple[Erratum, ...]
    agrees: tuple[str, ...]
    missing: tuple[str, ...]
    cases: int


def rounded_in(each: Erratum) -> str:
    """Return the dtype whose roundoff causes an erratum, or an empty text."""
    if each.sort == PRECISION:
        return each.source.rpartition("digits of ")[2].removesuffix(" are right")
    if each.source == HALF and each.traits[0].startswith(("value", "gradient")):
        return "float16"
    return "float32" if each.sort == DEFECT and "less than float64" in each.traits else ""
