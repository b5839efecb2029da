"""Formulas: LaTeX to MathML for pages, and to a line of text for the terminal."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from xml.etree import ElementTree

# Names of several letters, which LaTeX would otherwise set as a product of letters.
NAMES = ("softmax", "sigmoid", "dice", "focal", "ce", "TP", "FP", "FN", "GDL", "min", "max")
_NAME = re.compile(rf"(?<![\\A-Za-z{{])({'|'.join(NAMES)})(?![A-Za-z])")
_SUBSCRIPT = re.compile(rf"(?<=_{{)({'|'.join(NAMES)})(?=}})")
_WORDS = re.compile(r"(\\text\{[^}]*\})")
_LETTERS = re.compile(r'<mrow>((?:<mi mathvariant="normal">[^<]*</mi>)+)</mrow>')
_FUNCTION = re.compile(r"<mi>(log|exp|max|min)</mi>(?!<mo)")
# `\qquad` and `\quad` separate formulas; `\\` and `&` separate and align rows.
_APART = re.compile(r",?\s*(?:\\qquad|\\quad|\\\\)\s*")

PRIME = "\N{PRIME}"
SUBSCRIPTS = dict(zip("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
SUPERSCRIPTS = {PRIME: PRIME} | dict(
    zip("0123456789+-=()abcdefghijklmnoprstuvwxyzT", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᵀ", strict=True)
)


@cache
def mathml(latex: str, block: bool = False) -> str:
    """Convert a formula to MathML that includes the LaTeX source for copying."""
    made = _converted(latex, block)
    made = _LETTERS.sub(lambda found: f"<mi>{re.sub('<[^>]*>', '', found[1])}</mi>", made)
    made = _FUNCTION.sub(r'<mi>\1</mi><mspace width="0.17em"/>', made)
    body = made[made.index(">") + 1 : made.rindex("</math>")]
    kind = ' display="block"' if block else ""
    annotation = f'<annotation encoding="application/x-tex">{escape(latex)}</annotation>'
    return f"<math{kind}><semantics>{body}{annotation}</semantics></math>"


def display(latex: str) -> str:
    """Render a displayed formula, whose parts wrap on narrow pages."""
    parts = "".join(f"<div>{mathml(part, block=True)}</div>" for part in parts_of(latex))
    return f'<div class="eq" tabindex="0" role="group" aria-label="formula">{parts}</div>'


def parts_of(latex: str) -> list[str]:
    """Split LaTeX into formulas that are set side by side or in rows."""
    flat = " ".join(latex.split()).replace("&", "")
    return [part.strip().rstrip(",") for part in _APART.split(flat) if part.strip()]


def plain(latex: str) -> str:
    """Convert a formula to a line of text; a fraction becomes (a)/(b)."""
    return ",  ".join(_text(ElementTree.fromstring(_converted(part, False))) for part in parts_of(latex))


def _converted(latex: str, block: bool) -> str:
    from latex2mathml.converter import convert

    parts = _WORDS.split(" ".join(latex.split()).replace(r"\,", " "))
    parts[::2] = [_NAME.sub(r"\\mathrm{\1}", _SUBSCRIPT.sub(r"\\mathrm{\1}", part)) for part in parts[::2]]
    made: str = convert("".join(parts), display="block" if block else "inline")
    return made


def _text(node: ElementTree.Element) -> str:
    tag = node.tag.rpartition("}")[2]
    inside = [_text(child) for child in node]
    match tag:
        case "mfrac":
            return f"{_bracketed(node[0], inside[0])}/{_bracketed(node[1], inside[1])}"
        case "msqrt":
            return f"√({''.join(inside)})"
        case "msub" | "munder":
            return inside[0] + _raised(inside[1], "_", SUBSCRIPTS) + _gap(node)
        case "msup":
            return inside[0] + _raised(inside[1], "^", SUPERSCRIPTS) + ("" if inside[1] in SUPERSCRIPTS else " ")
        case "msubsup" | "munderover":
            return inside[0] + _raised(inside[1], "_", SUBSCRIPTS) + _raised(inside[2], "^", SUPERSCRIPTS) + _gap(node)
        case "mover":
            return inside[0] + ("\u0307" if inside[1] == "˙" else "\u0304")
        case "mo" if (node.text or "") in "=+−≤≥<>∈≠∝≈→":
            return f" {node.text} "
        case "mo" if node.text == ",":
            return ", "
        case "mi" if len(node.text or "") > 2:
            return f"{node.text} "
        case "mspace":
            return " "
        case "mtext":
            return (node.text or "").replace("\N{NO-BREAK SPACE}", " ")
        case "mrow":
            return "".join(inside)
        case "math":
            text = re.sub(r" (?=[)\]])", "", re.sub(r" +", " ", "".join(inside))).strip()
            return re.sub(r"(^|[=≤<,(] ?)− ", r"\1−", text)  # a sign, not a subtraction
    return node.text or "".join(inside)


def _gap(node: ElementTree.Element) -> str:
    """Return a space after a sum, and an empty string otherwise."""
    return " " if node[0].text == "∑" else ""


def _bracketed(node: ElementTree.Element, text: str) -> str:
    return f"({text})" if len(node) > 1 and node.tag.endswith("mrow") else text


def _raised(text: str, mark: str, letters: dict[str, str]) -> str:
    text = text.replace("−", "-").replace(" ", "")
    if all(letter in letters for letter in text):
        return "".join(letters[letter] for letter in text)
    return f"{mark}{text}" if len(text) == 1 else f"{mark}{{{text}}}"
