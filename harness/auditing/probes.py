"""Checks that need no reference: lines of the library's own code that print what they got and what they expected.

A probe is a piece of code. It is run, and it is a finding if the two printed answers differ, or if it raises an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from twinloss.harness.auditing.erratum import CONVENTION, DEFECT, OUTSIDE, Erratum
from twinloss.harness.auditing.peer import Peer
from twinloss.harness.auditing.snippets import call, lines, literal, run
from twinloss.harness.drawing.segmentation_options import has_labels, is_activated
from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.judging.truth import Truth
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.operand import Operand, PerCase, Sizes, label
from twinloss.harness.model.twin import Case, Twin

# The relative difference of two float32 answers that should be equal.
CLOSE = 1e-4
ANSWER = re.compile(r"got (?P<got>.*), expected (?P<want>.*)", re.S)
# What runs of a probe may raise: an error that says that the argument is wrong.
TYPED = ("TypeError", "ValueError", "AssertionError", "NotImplementedError")


@dataclass(frozen=True)
class Probe:
    """A probe: the class of a finding, its name, the reason for this class, and the code."""

    sort: str
    what: str
    source: str
    code: str
    error_is_right: bool = False
    traits: tuple[str, ...] = ()


def differ(prints: str) -> bool:
    """Return whether the printed answers differ, or the code raised an error."""
    found = ANSWER.search(prints)
    if found is None:
        return True
    got, want = found["got"].strip(), found["want"].strip()
    try:
        a, b = float(got), float(want)
    except ValueError:
        return got != want
    if math.isnan(a) or math.isnan(b) or math.isinf(a) or math.isinf(b):
        return not (a == b or (math.isnan(a) and math.isnan(b)))
    return abs(a - b) > CLOSE * max(abs(a), abs(b), 1e-3)


def findings(peer: Peer, probes: Iterator[Probe]) -> Iterator[Erratum]:
    """Run probes, and yield those that find something."""
    seen: set[tuple[str, ...]] = set()
    for probe in probes:
        if (key := probe.traits or (probe.what.partition(", with")[0],)) in seen:
            continue  # the same cause with another option
        prints = run(probe.code)
        raised = ANSWER.search(prints) is None
        if (raised and probe.error_is_right) or not differ(prints):
            continue
        seen.add(key)
        if key[0] in peer.stated:
            probe = replace(probe, sort=CONVENTION, source=peer.stated[key[0]])
        yield Erratum(peer.like, peer.name, probe.sort, probe.what, probe.source, probe.code, prints, key)


def example(peer: Peer, twin: Twin, options: Mapping[str, Any] | None = None, items: int = 1) -> Case | None:
    """Return a small ordinary case of a loss, with these options, or None if they exclude each other."""
    rank = 2 if 1 not in peer.ranks else 1
    given = {**{n: v for n, v in twin.defaults().items() if n in twin.required}, **(options or {})}
    if not twin.allowed(twin.defaults() | given):
        return None
    case = _of_fields(rank) if len(twin.operands) == 1 else _of_images(rank, items)
    if twin.operands[0] == "input":
        case = _of_segmentation(twin, given, rank, items, max(peer.channels, 2), "mask" in twin.operands)
    sizes = Sizes(
        len(case.input.values), case.input.values.shape[1],
        case.input.values.shape[1] - (not twin.defaults().get("include_background", True)
                                      or given.get("include_background") is False),
        has_labels(twin, given), rank,
    )  # fmt: skip
    made = {name: value.make(sizes) if isinstance(value, PerCase) else value for name, value in given.items()}
    return replace(case, options=made)


def _of_fields(rank: int) -> Case:
    numbers = np.array([0.0, 1.0, 0.5, 2.0, 1.5])
    shape = (1, rank, *[5] * rank)
    return Case({"pred": Operand(np.broadcast_to(numbers, shape).copy(), "float32")})


def _of_images(rank: int, items: int) -> Case:
    first, second = np.array([0.0, 1.0, 0.25, 0.75, 0.5]), np.array([0.0, 0.5, 0.25, 1.0, 0.5])
    shape = (items, 1, *[1] * (rank - 1), 5)
    scale = 1 + np.arange(items).reshape(-1, *[1] * (rank + 1))
    return Case({
        "pred": Operand(np.broadcast_to(first, shape) * scale, "float32"),
        "target": Operand(np.broadcast_to(second, shape).copy(), "float32"),
    })  # fmt: skip


def _of_segmentation(twin: Twin, options: Mapping[str, Any], rank: int, items: int, classes: int, masked: bool) -> Case:
    given = twin.defaults() | dict(options)
    logits = "softmax" not in twin.options or is_activated(given, classes)
    shape = (items, classes, *[1] * (rank - 1), 4)
    numbers = np.array([0.75, 0.25, 0.5, 0.125]) if not logits else np.array([1.0, -1.0, 0.5, 0.0])
    x = np.stack([np.broadcast_to(np.roll(numbers, n), shape[2:]) for n in range(items * classes)]).reshape(shape)
    labels = np.broadcast_to(np.arange(4) % classes, (items, 1, *shape[2:])).copy()
    made = {"input": Operand(x, "float32")}
    if has_labels(twin, given):
        made["target"] = Operand(labels, "int64")
    else:
        hot = labels == np.arange(classes).reshape(-1, *[1] * rank)
        made["target"] = Operand(hot.astype(np.int64), "float32")
    if masked:
        mask = np.broadcast_to(np.array([1, 1, 0, 1]), (items, 1, *shape[2:])).copy()
        made["mask"] = Operand(mask, "float32")
    return Case(made)


def _code(peer: Peer, case: Case, *more: str, gradient: bool = False) -> str:
    return "\n".join([*lines(peer, case, gradient), *more])


def _printed(got: str, want: str) -> str:
    return f'print(f"got {{{got}:.6g}}, expected {{{want}:.6g}}")'


def module(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of what users expect of every loss: copies, no state, compilation, second derivatives."""
    rows = [{}, *({name: value} for name, values in twin.options.items() for value in values[1:]
                  if isinstance(value, PerCase))]  # fmt: skip
    for row in rows:
        case = example(peer, twin, row)
        if case is None:
            continue
        asked, what = call(peer, case), "".join(f", with `{peer.theirs(name)}`" for name in row)
        value = f"{asked}.sum().item()"
        is_module = "forward" in vars(peer.found)
        if is_module:
            for name, source, *copying in (
                ("a pickled copy", "pickle", "import pickle", "copy = pickle.loads(pickle.dumps(loss))"),
                ("a deep copy", "copy.deepcopy", "from copy import deepcopy", "copy = deepcopy(loss)"),
            ):
                yield Probe(
                    DEFECT, f"{name} does not give the same answer{what}", f"{source}, as of every torch module",
                    _code(peer, case, *copying, _printed(value.replace("loss(", "copy("), value)),
                    traits=("a copy does not give the same answer",),
                )  # fmt: skip
            yield Probe(
                DEFECT, f"`load_state_dict` does not accept its own `state_dict`{what}", "torch.nn.Module",
                _code(peer, case, f"copy = {peer.expression(case.options)}",
                      "copy.load_state_dict(loss.state_dict())", _printed(value.replace("loss(", "copy("), value)),
            )  # fmt: skip
            yield Probe(
                CONVENTION, f"its `state_dict` holds options{what}",
                "no document says whether options belong in a checkpoint",
                _code(peer, case, 'print(f"got {list(loss.state_dict())}, expected {[]}")'), error_is_right=True,
            )  # fmt: skip
            yield Probe(
                DEFECT, f"a compiled loss gives another answer{what}", "torch.compile",
                _code(peer, case, 'fast = torch.compile(loss, fullgraph=True, backend="eager")',
                      _printed(value.replace("loss(", "fast("), value)), error_is_right=True,
            )  # fmt: skip
            yield Probe(
                DEFECT, f"TorchScript gives another answer{what}", "torch.jit.script",
                _code(peer, case, "fast = torch.jit.script(loss)", _printed(value.replace("loss(", "fast("), value)),
                error_is_right=True,
            )  # fmt: skip
        other = asked.replace("x", "torch.cat([x, x]).double()", 1)
        for name in ("y", "mask"):
            other = re.sub(rf"\b{name}\b", f"torch.cat([{name}, {name}])", other)
        yield Probe(
            DEFECT, f"a call changes the answer of the next one{what}", "a loss is a function of its arguments",
            _code(peer, case, f"first = {value}", "try:", f"    {other}", "except Exception:", "    pass",
                  _printed(value, "first")), error_is_right=True,
        )  # fmt: skip
        grads = [
            f"(g,) = torch.autograd.grad({asked}.sum(), x, create_graph=True)",
            "(h,) = torch.autograd.grad(g.square().sum(), x)",
            'print(f"got {h.isfinite().all().item()}, expected True")',
        ]
        yield Probe(
            DEFECT, f"second derivatives are not finite{what}", "the loss is smooth here",
            _code(peer, case, *grads, gradient=True), error_is_right=True,
        )  # fmt: skip


def mutable_options(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes that change an array after it was given as an option."""
    for name, values in twin.options.items():
        for value in values:
            case = example(peer, twin, {name: value}) if isinstance(value, PerCase) else None
            if case is None or not isinstance(case.options[name], list):
                continue
            theirs, text = peer.theirs(name), peer.literal(name, case.options[name])
            forms = [text] if text.startswith("torch") else [f"torch.tensor({case.options[name]})", text]
            if "ndarray" in str(peer.parameters[theirs].annotation):
                numbers = f"np.array({case.options[name]}, dtype=np.float32)"
                forms.append(numbers)
            for form in forms:
                made = peer.expression(case.options).replace(f"{theirs}={text}", f"{theirs}=w")
                kind, change = "list", "w[:] = [0.0] * len(w)"
                code = [*lines(peer, case)[:-1], f"w = {form}"]
                if "torch." in form:
                    kind, change = "tensor", "w.fill_(0)"
                elif "np." in form:
                    kind, change = "array", "w.fill(0)"
                    code.insert(-1, "import numpy as np")
                value = f"{call(peer, case)}.sum().item()"
                code += [f"loss = {made}", f"first = {value}", change, _printed(value, "first")]
                yield Probe(
                    CONVENTION,
                    f"a later change of the {kind} that was given as `{theirs}` changes the loss",
                    "no document says whether options are copied",
                    "\n".join(code),
                    error_is_right=True,
                    traits=(f"`{theirs}` is not copied",),
                )


def other_gradients(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of the gradient in each further argument that may ask for one."""
    case = example(peer, twin)
    if case is None:
        return
    for name, variable in zip(list(case.operands)[1:], ("y", "mask"), strict=False):
        operand = case.operands[name]
        if not operand.dtype.startswith("float") or twin.operands[0] == "input":
            continue
        shape = operand.values.shape
        index = ", ".join(str(n // 2) for n in shape)
        asked = call(peer, case)
        moved = re.sub(rf"\b{variable}\b", f"{variable} {{}} h", asked)
        yield Probe(
            DEFECT, f"the gradient with respect to `{variable}` is not the slope of the value", "central differences",
            _code(peer, _in_double(case), f"{variable}.requires_grad_()",
                  f"(g,) = torch.autograd.grad({asked}.sum(), {variable})",
                  f"h = torch.zeros_like({variable})", f"h[{index}] = 1e-5",
                  _printed(f"g[{index}].item()", f"(({moved.format('+')} - {moved.format('-')}).sum() / 2e-5).item()")),
            error_is_right=True,
        )  # fmt: skip


def _in_double(case: Case) -> Case:
    operands = {n: replace(o, dtype="float64") if o.dtype == "float32" else o for n, o in case.operands.items()}
    return replace(case, operands=operands)


def result_types(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of the dtype of the result when arguments have different dtypes."""
    case = example(peer, twin)
    if case is None:
        return
    for name, variable in zip(list(case.operands)[1:], ("y", "mask"), strict=False):
        if case.operands[name].dtype == "float32":
            mixed = case.with_operand(name, replace(case.operands[name], dtype="float64"))
            yield Probe(
                CONVENTION, f"float64 in `{variable}` makes the result float64", "torch's own promotion of types",
                _code(peer, mixed, f'print(f"got {{{call(peer, mixed)}.dtype}}, expected {{x.dtype}}")'),
                error_is_right=True,
            )  # fmt: skip


def large_sizes(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes whose sums exceed the range of float16, and the whole numbers of float32."""
    if twin.operands[0] != "input":
        return
    for dtype, count in (("float16", 70000), ("float32", 2**24 + 2**22)):
        case = example(peer, twin)
        if case is None or (dtype == "float32" and case.input.values.shape[1] > 2):
            return
        ones = [1] * (case.input.values.ndim - 3)
        channels, labels = case.input.values.shape[1], case.operands["target"].dtype == "int64"
        wide = peer.channels
        shape = (1, max(wide, 1), *ones, count)
        code = [peer.head, "", f"x = torch.full({shape}, 0.5, dtype=torch.{dtype})"]
        target = (1, 1 if labels else shape[1], *ones, count)
        code.append(f"y = torch.ones({target}, dtype=torch.{'int64' if labels else dtype})")
        if "mask" in case.operands:
            code.append(f"mask = torch.ones({(1, 1, *ones, count)}, dtype=torch.{dtype})")
        options = dict(case.options)
        if "dist_matrix" in options:
            options["dist_matrix"] = [[float(i != j) for j in range(channels)] for i in range(channels)]
        code.append(f"loss = {peer.expression(options)}")
        asked = call(peer, case)
        double = re.sub(r"\bx\b", "x.double()", asked)
        for variable in ("y", "mask"):
            if not (variable == "y" and labels):
                double = re.sub(rf"\b{variable}\b", f"{variable}.double()", double)
        code.append(f'print(f"got {{{asked}.float().mean().item():.2g}}, expected {{{double}.mean().item():.2g}}")')
        limit = "65504, the largest float16" if dtype == "float16" else "2^24"
        yield Probe(
            DEFECT, f"in {dtype}, the value is wrong if sums exceed {limit}", "float64 gives the right value",
            "\n".join(code),
        )  # fmt: skip


def reductions(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of the reductions: the sum and the mean of what is returned without reduction."""
    case = example(peer, twin)
    values = [label(value) for value in twin.options.get("reduction", ())]
    if case is None or "none" not in values or "reduction" not in peer.parameters:
        return
    for name in ("sum", "mean"):
        made = {n: peer.expression({**case.options, "reduction": n}) for n in (name, "none")}
        asked = call(peer, case)
        code = [*lines(peer, case)[:-1], f"loss = {made[name]}", f"each = {made['none']}",
                _printed(f"{asked}.item()", f"{asked.replace('loss(', 'each(')}.{name}().item()")]  # fmt: skip
        yield Probe(
            DEFECT, f'`reduction="{name}"` is not the {name} of `reduction="none"`', "its documentation of `reduction`",
            "\n".join(code), error_is_right=True, traits=("`reduction`",),
        )  # fmt: skip


# Options that cannot matter: with the first, the answer must be that with the second.
SAME: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
    ({"ignore_index": 99}, {}, "`ignore_index`, although no voxel has this label"),
    ({"weight": 1.0}, {}, "`weight=1.0`"),
    ({"scales": [0]}, {}, "`scales=[0]`, which smooths nothing"),
    ({"batch": True}, {}, "`batch`, for a batch of one"),
    ({"soft_label": True}, {}, "`soft_label`, although the target is 0 and 1"),
    ({"label_smoothing": 0.0}, {}, "`label_smoothing=0`"),
)


def options_without_effect(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of options that are set, but cannot matter for the input."""
    bases: list[dict[str, Any]] = [
        {}, {"softmax": True}, {"sigmoid": True}, {"to_onehot_y": True}, {"softmax": True, "to_onehot_y": True},
        {"use_softmax": True}, {"use_softmax": True, "to_onehot_y": True}, {"include_background": False},
        {"reduction": "sum"}, {"squared_pred": True}, {"jaccard": True},
    ]  # fmt: skip
    for given, without, what in SAME:
        if not all(name in twin.options and peer.theirs(name) in peer.parameters for name in given):
            continue
        if what.startswith("`batch`") and peer.like not in ("dice", "masked_dice", "tversky", "generalized_dice"):
            continue
        for base in bases:
            if not all(option in twin.options and option not in peer.options for option in base):
                continue
            case = example(peer, twin, base)
            if case is None:
                continue
            plain = peer.expression({**case.options, **without})
            asked = f"{call(peer, case)}.sum().item()"
            code = [*lines(peer, replace(case, options={**case.options, **given})), f"plain = {plain}",
                    _printed(asked, asked.replace("loss(", "plain("))]  # fmt: skip
            listed = ", ".join(f"`{peer.theirs(o)}={v!r}`" for o, v in base.items())
            yield Probe(
                DEFECT, f"{what} changes the loss" + (f", with {listed}" if listed else ""),
                "an option that cannot matter must change nothing", "\n".join(code), error_is_right=True,
                traits=tuple(f"`{name}`" for name in given),
            )  # fmt: skip


def stationary_mistakes(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of wrong predictions, which must not be points of value 0 with a gradient of 0."""
    if len(twin.operands) == 1:
        board = Case({"pred": Operand(np.array([1.0, -1.0] * 4).reshape(1, 1, 8), "float32")})
        yield _not_zero(peer, board, "a field that alternates between 1 and -1 costs nothing", ("checkerboard",))
        return
    if twin.operands[0] != "input":
        return
    rows: list[dict[str, Any]] = [{}]
    free = {name: values for name, values in twin.options.items() if name not in twin.required}
    rows += [{name: value} for name, values in free.items() for value in values[1:]]
    for row in rows:
        if any(label(v) in ("0.0",) and n.startswith("lambda") for n, v in row.items()):
            continue
        case = example(peer, twin, row)
        if case is None:
            continue
        logits = "softmax" not in twin.options or is_activated(twin.defaults() | row, 2)
        x, y = case.input.values, case.operands["target"].values
        hot = y if y.shape == x.shape else y == np.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
        wrong = np.where(hot, 0.0, 1.0) if not logits else np.where(hot, -8.0, 8.0)
        listed = "".join(f", with `{peer.theirs(n)}={label(v)}`" for n, v in row.items())
        yield _not_zero(peer, case.with_values(input=wrong), f"a wrong prediction costs nothing{listed}", tuple(row))


def _not_zero(peer: Peer, case: Case, what: str, traits: tuple[str, ...]) -> Probe:
    asked = f"{call(peer, case)}.sum()"
    return Probe(
        DEFECT, what, "a wrong prediction must cost something",
        _code(peer, case, f"value = {asked}", "(g,) = torch.autograd.grad(value, x)",
              "zero = value.abs().item() < 1e-4 and g.abs().max().item() < 1e-6",
              'print(f"got {value.item():.6g}, expected more than 0" if zero else "got a cost, expected a cost")',
              gradient=True),
        traits=traits, error_is_right=True,
    )  # fmt: skip


# Bad arguments: the change of the call, what it is, and the key of the promise that covers it.
ARGUMENTS = (
    ("y", "y[..., :1]", "a target with one voxel is repeated", "shape"),
    ("y", "y[:1]", "a target with one item is repeated for the whole batch", "shape"),
    ("y", "y[:, :1]", "a target with one channel is repeated for all channels", "shape"),
    ("y", "y[0]", "a target without a batch axis is accepted", "shape"),
    ("mask", "mask[..., :1]", "a mask with one voxel is repeated", "mask shape"),
)
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


def bad_arguments(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes with arguments that must raise an error, unless the reference has an answer to them."""
    case = example(peer, twin, items=2)
    if case is not None:
        asked = call(peer, case)
        variables = ("x", "y", "mask")[: len(case.operands)]
        for variable, changed, what, key in ARGUMENTS:
            labels = variable == "y" and case.operands.get("target") and case.operands["target"].dtype == "int64"
            if variable not in variables or (labels and "[:, :1]" in changed):
                continue
            yield _refused(
                peer, _code(peer, case, _got(re.sub(rf"\b{variable}\b", changed, asked))), f"silently, {what}", key
            )
    for name, text, key in EDGES:
        theirs = peer.theirs(name)
        if name not in twin.options or theirs not in peer.parameters or name in peer.options:
            continue
        if text.startswith("[") and not peer.documented(name, [1.0]):
            continue
        yield from _edge(peer, twin, name, text, key)
    yield from _strange_labels(peer, twin)


def _edge(peer: Peer, twin: Twin, name: str, text: str, key: str) -> Iterator[Probe]:
    """Yield a probe of an edge value of an option: a typed error is right, and so is the reference's value."""
    case = example(peer, twin)
    if case is None:
        return
    if name == "weight" and "torch" in peer.literal(name, [1.0]):
        text = f"torch.tensor({text if text.startswith('[') else f'[{text}, {text}]'})"
    made = peer.expression({n: v for n, v in case.options.items() if n != name})
    given = f"{peer.theirs(name)}={text}"
    made = f"{made[:-1]}{given})" if made.endswith("()") else f"{made[:-1]}, {given})"
    want = _wanted(twin, case, name, text)
    code = "\n".join([*lines(peer, case)[:-1], f"loss = {made}",
                      _got(call(peer, case), "an error" if want is None else literal(want))])  # fmt: skip
    if want is None:
        yield _refused(peer, code, f"`{given}` is accepted", key)
    else:
        yield Probe(DEFECT, f"`{given}` gives a wrong value", peer.source, code, error_is_right=True)


def _wanted(twin: Twin, case: Case, name: str, text: str) -> float | None:
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
    return made if math.isfinite(made) else None


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
        yield _refused(peer, _code(peer, odd, _got(call(peer, odd))), f"{what} is accepted", "labels")


def _got(asked: str, want: str = "an error") -> str:
    return f'print(f"got {{{asked}.sum().item():.6g}}, expected {want}")'


def _refused(peer: Peer, code: str, what: str, key: str) -> Probe:
    promise = peer.promises.get(key)
    sort, source = (DEFECT, promise) if promise else (OUTSIDE, "no document says what happens")
    return Probe(sort, what, source, code, error_is_right=True, traits=(f"argument: {key}",))


def probes(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield all probes of a loss."""
    for each in (
        module, mutable_options, other_gradients, result_types, large_sizes, reductions, options_without_effect,
        stationary_mistakes, bad_arguments,
    ):  # fmt: skip
        yield from each(peer, twin)
