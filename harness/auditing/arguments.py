"""Bad arguments: an error that says so is right, and so is the reference's answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import torch

from twinloss.harness.auditing.erratum import CONVENTION, DEFECT, OUTSIDE
from twinloss.harness.auditing.peer import VARIABLES, Peer, plain, takes_lists
from twinloss.harness.auditing.probe import Probe, code_of, example, printed
from twinloss.harness.auditing.snippets import call, lines, literal, run
from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.judging.truth import Truth
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case, Twin

# Bad arguments: the change of the call, what it is, and the key of the promise that covers it.
ARGUMENTS = (
    ("y", "y[..., :1]", "a target with one voxel is repeated", "shape"),
    ("y", "y[:1]", "a target with one item is repeated for the whole batch", "shape"),
    ("y", "y[:, :1]", "a target with one channel is repeated for all channels", "shape"),
    ("y", "y[0]", "a target without a batch axis is accepted", "shape"),
    ("y", "y[:, 0]", "a target without an axis of channels is accepted", "shape"),
    ("mask", "mask[..., :1]", "a mask with one voxel is repeated", "mask shape"),
    ("mask", "mask[:, 0]", "a mask without an axis of channels is accepted", "mask shape"),
)
# Arguments of other types, which must give the same answer or an error: the form of the call, and what it is.
FORMS = (
    ("{0}.tolist()", "a nested list"), ("{0}.numpy()", "a NumPy array"), ("{0}.to(torch.uint8)", "uint8"),
    ("{0}.to(torch.int64)", "int64"), ("{0}.to(torch.bool)", "bool"), ("{0}.to_sparse()", "a sparse tensor"),
)  # fmt: skip
# An empty batch, of which a mean is 0/0.
EMPTY = "{0}[:0]"
# Edge values of options, and the key of the promise that covers them.
EDGES: tuple[tuple[str, str, str], ...] = (
    ("reduction", '"junk"', "reduction"), ("gamma", "-1.0", "gamma"), ("weight", "-1.0", "negative weight"),
    ("weight", 'float("nan")', "weight"), ("weight", "[1.0]", "weights"), ("weight", "[1.0, -1.0]", "negative weight"),
    ("alpha", "2.0", "alpha"),
    ("lambda_dice", "-1.0", "lambda"), ("lambda_ce", "-1.0", "lambda"), ("lambda_focal", "-1.0", "lambda"),
    ("label_smoothing", "2.0", "label_smoothing"), ("num_bins", "1", "num_bins"), ("num_bins", "0", "num_bins"),
    ("sigma_ratio", "0.01", "sigma_ratio"), ("sigma_ratio", "0.0", "sigma_ratio"), ("kernel_size", "2", "kernel_size"),
    ("kernel_size", "0", "kernel_size"), ("kernel_size", "-1", "kernel_size"), ("scales", "[-1]", "scales"),
    ("scales", '["a"]', "scales"), ("normalize", '"sum"', "normalize"),
    ("dist_matrix", "torch.zeros(2, 2)", "zero matrix"), ("dist_matrix", "torch.ones(1, 2)", "matrix"),
    ("dist_matrix", "torch.tensor([[0.0, -1.0], [-1.0, 0.0]])", "negative matrix"),
)  # fmt: skip
LABELS = (("5", "a label that is no class"), ("-1", "a negative label"), ("0.6", "a label that is no whole number"))


# Lists of each of these lengths are given to an option that takes a list of numbers.
LENGTHS = (1, 2, 3, 4)
NUMBERS = (2.0, 3.0, 5.0, 7.0)


def bad_arguments(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes with arguments that must raise an error, unless the reference has an answer to them."""
    case = example(peer, twin, items=2)
    if case is not None:
        asked = call(peer, case)
        variables = VARIABLES[: len(case.operands)]
        for variable, changed, what, key in ARGUMENTS:
            labels = variable == "y" and case.operands.get("target") and case.operands["target"].dtype == "int64"
            if variable not in variables or (labels and "[:, :1]" in changed):
                continue
            yield _refused(
                peer, code_of(peer, case, _got(re.sub(rf"\b{variable}\b", changed, asked))), f"silently, {what}", key
            )
    for name, text, key in EDGES:
        theirs = peer.theirs(name)
        if name not in twin.options or theirs not in peer.parameters or name in peer.options:
            continue
        if text.startswith("[") and not peer.documented(name, [1.0]):
            continue
        yield from _edge(peer, twin, name, text, key)
    yield from _of_signature(peer, twin)
    yield from _strange_labels(peer, twin)
    yield from _forms(peer, twin)
    yield from _empty(peer, twin)


def _of_signature(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of bad values of each option that the signature names, also of those that our loss does not have."""
    case = example(peer, twin)
    if case is None:
        return
    tried = {peer.theirs(name) for name, text, _ in EDGES if text in ('"junk"', 'float("nan")')}
    for name, parameter in peer.parameters.items():
        default = plain(parameter.default)
        if name in tried or f"{name}=" in peer.build:
            continue
        if isinstance(default, str):
            code = code_with(peer, case, name, '"junk"', _got(call(peer, case)))
            yield _refused(peer, code, f'`{name}="junk"` is accepted', "choice")
        elif isinstance(default, float):
            # NaN in the result tells the caller.
            code = code_with(peer, case, name, 'float("nan")', _got(call(peer, case), "nan"))
            yield _refused(peer, code, f'`{name}=float("nan")` is accepted, and ignored', "NaN")
        elif default is None and takes_lists(str(parameter.annotation)):
            yield from _ignored_lists(peer, case, name)


def _ignored_lists(peer: Peer, case: Case, name: str) -> Iterator[Probe]:
    """Yield a probe of a list that is ignored because of its length, although lists of other lengths are not."""
    x = case.input.values
    # If all channels had the same loss, weights whose sum does not matter would change nothing.
    unlike = x * (1 - np.arange(x.shape[1]) / 8).reshape(-1, *[1] * (x.ndim - 2))
    case = case.with_values(**{next(iter(case.operands)): unlike})
    asked = f"{call(peer, case)}.sum().item()"
    lines_of = {}
    for length in LENGTHS:
        text = str(list(NUMBERS[:length]))
        lines_of[text] = code_with(
            peer, case, name, text, f"plain = {peer.expression(case.options)}",
            f"ignored = {asked} == {asked.replace('loss(', 'plain(')}",
            'print("got", "the loss without it," if ignored else "another loss,", "expected another loss")',
        )  # fmt: skip
    told = {text: run(code) for text, code in lines_of.items()}
    ignored = [text for text, prints in told.items() if prints.startswith("got the loss")]
    if ignored and any(prints.startswith("got another") for prints in told.values()):
        yield _refused(peer, lines_of[ignored[0]], f"`{name}={ignored[0]}` is accepted, and ignored", "length")


def _forms(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of arguments of other types that hold the same numbers."""
    case = example(peer, twin)
    if case is None:
        return
    whole = case.with_values(**{n: np.round(o.values) for n, o in case.operands.items() if o.dtype == "float32"})
    asked = call(peer, whole)
    for name, variable in zip(whole.operands, VARIABLES, strict=False):
        for form, what in FORMS:
            if form.endswith("bool)") and not np.isin(whole.operands[name].values, (0, 1)).all():
                continue
            if form.endswith("uint8)") and (whole.operands[name].values < 0).any():
                continue
            changed = re.sub(rf"\b{variable}\b", form.format(variable), asked)
            yield Probe(
                CONVENTION, f"another answer for the same numbers as {what} in `{variable}`",
                "no document lists the types that may be combined",
                code_of(peer, whole, printed(f"{changed}.sum().item()", f"{asked}.sum().item()")),
                error_is_right=True, traits=("types of arguments",),
            )  # fmt: skip


def _empty(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of arguments without numbers; NaN, as of torch's own losses, tells the caller."""
    case = example(peer, twin)
    if case is None:
        return
    changed = call(peer, case)
    for variable in VARIABLES[: len(case.operands)]:
        changed = re.sub(rf"\b{variable}\b", EMPTY.format(variable), changed)
    yield _refused(peer, code_of(peer, case, _got(changed, "nan")), "an empty batch is accepted", "empty")


def _edge(peer: Peer, twin: Twin, name: str, text: str, key: str) -> Iterator[Probe]:
    """Yield a probe of an edge value of an option: a typed error is right, and so is the reference's value."""
    case = example(peer, twin)
    if case is None:
        return
    if name == "weight" and "torch" in peer.literal(name, [1.0]):
        text = f"torch.tensor({text if text.startswith('[') else f'[{text}, {text}]'})"
    plain_case = case.having(**{name: None})
    want = "nan" if "nan" in text else _wanted(twin, case, name, text)  # NaN in the result tells the caller
    answer = _got(call(peer, case), "an error" if want is None else want)
    code, given = code_with(peer, plain_case, peer.theirs(name), text, answer), f"{peer.theirs(name)}={text}"
    if want in (None, "nan"):
        yield _refused(peer, code, f"`{given}` is accepted", key)
    else:
        yield Probe(DEFECT, f"`{given}` gives a wrong value", peer.source, code, error_is_right=True)


def code_with(peer: Peer, case: Case, name: str, text: str, *more: str) -> str:
    """Return the lines that make the arguments, and the loss with one more option, and more lines."""
    made, given = peer.expression(case.options), f"{name}={text}"
    made = f"{made[:-1]}{given})" if made.endswith("()") and made.count("(") == 1 else f"{made[:-1]}, {given})"
    return "\n".join([*lines(peer, case)[:-1], f"loss = {made}", *more])


def _wanted(twin: Twin, case: Case, name: str, text: str) -> str | None:
    """Return the reference's value for an edge value of an option, or None if our own loss refuses it."""
    value = eval(text, {"torch": torch, "float": float})
    value = value.tolist() if isinstance(value, torch.Tensor) else value
    asked = case.having(**{name: value})
    known = find(twin.name)
    try:
        ask_fast(known, asked)
    except Exception:
        return None
    with np.errstate(all="ignore"):
        made = float(np.sum(Truth(known, asked).value))
    return literal(made) if math.isfinite(made) else None


def _strange_labels(peer: Peer, twin: Twin) -> Iterator[Probe]:
    row = {"to_onehot_y": True} if len(twin.options.get("to_onehot_y", ())) > 1 else {}
    case = example(peer, twin, row) if twin.operands[0] == "input" else None
    if case is None or case.operands["target"].dtype != "int64" or case.operands["target"].values.shape[1] != 1:
        return
    for text, what in LABELS:
        whole = case.operands["target"]
        values = whole.values.astype(np.float64)
        values[..., 0] = float(text)
        odd = case.with_operand("target", Operand(values, "float32" if "." in text else "int64"))
        yield _refused(peer, code_of(peer, odd, _got(call(peer, odd))), f"{what} is accepted", "labels")


def _got(asked: str, want: str = "an error") -> str:
    return f'print(f"got {{{asked}.sum().item():.6g}}, expected {want}")'


def _refused(peer: Peer, code: str, what: str, key: str) -> Probe:
    promise = peer.promises.get(key)
    sort, source = (DEFECT, promise) if promise else (OUTSIDE, "no document says what happens")
    return Probe(sort, what, source, code, error_is_right=True, traits=(f"argument: {key}",))
