"""Probes of properties that need no reference: each finding is shown by lines of the library's own code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from twinloss.harness.auditing.arguments import bad_arguments
from twinloss.harness.auditing.erratum import CONVENTION, DEFECT, HALF, OUTSIDE
from twinloss.harness.auditing.peer import VARIABLES, Peer
from twinloss.harness.auditing.probe import Probe, code_of, example, printed
from twinloss.harness.auditing.snippets import call, lines
from twinloss.harness.drawing.segmentation_options import is_activated
from twinloss.harness.model.operand import Operand, PerCase, label
from twinloss.harness.model.twin import Case, Twin


def module(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of what users expect of every loss: copies, no state, compilation, second derivatives."""
    rows = [{}, *({name: value} for name, values in twin.options.items() for value in values[1:]
                  if isinstance(value, PerCase) or "weight" in name)]  # fmt: skip
    for row in rows:
        case = example(peer, twin, row)
        if case is None:
            continue
        asked = call(peer, case)
        what = "".join(
            f", with `{peer.theirs(name)}`" if isinstance(value, PerCase) else f", with `{peer.theirs(name)}={value}`"
            for name, value in row.items()
        )
        value = f"{asked}.sum().item()"
        is_module = hasattr(peer.found, "forward")
        if is_module:
            for name, source, *copying in (
                ("a pickled copy", "pickle", "import pickle", "copy = pickle.loads(pickle.dumps(loss))"),
                ("a deep copy", "copy.deepcopy", "from copy import deepcopy", "copy = deepcopy(loss)"),
            ):
                yield Probe(
                    DEFECT, f"{name} does not give the same answer{what}", f"{source}, as of every torch module",
                    code_of(peer, case, *copying, printed(value.replace("loss(", "copy("), value)),
                    traits=("a copy does not give the same answer",),
                )  # fmt: skip
            yield Probe(
                DEFECT, f"after a call, a new loss does not accept its `state_dict`{what}", "torch.nn.Module",
                code_of(peer, case, f"copy = {peer.expression(case.options)}", asked,
                        'print(f"got {copy.load_state_dict(loss.state_dict())}, "',
                        '      "expected <All keys matched successfully>")'),
                traits=("a call changes the loss",),
            )  # fmt: skip
            yield Probe(
                CONVENTION, f"its `state_dict` holds options{what}",
                "no document says whether options belong in a checkpoint",
                code_of(peer, case, 'print(f"got {list(loss.state_dict())}, expected {[]}")'), error_is_right=True,
            )  # fmt: skip
            yield Probe(
                DEFECT, f"a compiled loss gives another answer{what}", "torch.compile",
                code_of(peer, case, 'fast = torch.compile(loss, fullgraph=True, backend="eager")',
                      printed(value.replace("loss(", "fast("), value)), error_is_right=True,
            )  # fmt: skip
            yield Probe(
                DEFECT, f"TorchScript gives another answer{what}", "torch.jit.script",
                code_of(peer, case, "fast = torch.jit.script(loss)", printed(value.replace("loss(", "fast("), value)),
                error_is_right=True,
            )  # fmt: skip
        grads = [
            f"(g,) = torch.autograd.grad({asked}.sum(), x, create_graph=True)",
            "(h,) = torch.autograd.grad(g.square().sum(), x)",
            'print(f"got {h.isfinite().all().item()}, expected True")',
        ]
        yield Probe(
            DEFECT, f"second derivatives are not finite{what}", "the loss is smooth here",
            code_of(peer, case, *grads, gradient=True), error_is_right=True,
        )  # fmt: skip


def memory(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes that call a loss, then call it with more classes, or with more items in another dtype."""
    rows = [{}, *({name: value} for name, values in twin.options.items() for value in values[1:])]
    for row in rows:
        case = example(peer, twin, row)
        if case is None:
            continue
        asked, what = call(peer, case), "".join(f", with `{peer.theirs(n)}={label(v)}`" for n, v in row.items())
        others = [
            _doubled(asked, ("x", "y", "mask"), "torch.cat([{0}, {0}])").replace(
                ".cat([x, x])", ".cat([x, x]).double()"
            )
        ]
        if twin.operands[0] == "input":
            labels = case.operands["target"].values.shape[1] == 1
            others.append(_doubled(asked, ("x",) if labels else ("x", "y"), "torch.cat([{0}, {0}], 1)"))
        for other in others:
            yield Probe(
                DEFECT, f"a call changes the answer of the next one{what}", "a loss is a function of its arguments",
                code_of(peer, case, f"fresh = {peer.expression(case.options)}",
                        f"wanted = {other.replace('loss(', 'fresh(')}.sum().item()", asked, "try:",
                        f'    made = f"{{{other}.sum().item():.6g}}"', "except Exception as error:",
                        "    made = type(error).__name__", 'print(f"got {made}, expected {wanted:.6g}")'),
                error_is_right=True, traits=("a call changes the loss",),
            )  # fmt: skip


def _doubled(asked: str, variables: tuple[str, ...], form: str) -> str:
    """Return the code of a call with some of its variables replaced."""
    for name in variables:
        asked = re.sub(rf"\b{name}\b", form.format(name), asked)
    return asked


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
                code += [f"loss = {made}", f"first = {value}", change, printed(value, "first")]
                yield Probe(
                    CONVENTION,
                    f"a later change of the {kind} that was given as `{theirs}` changes the loss",
                    "no document says whether options are copied",
                    "\n".join(code),
                    error_is_right=True,
                    traits=(f"`{theirs}` is not copied",),
                )


def other_gradients(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of the gradient with respect to each further argument that may require one."""
    case = example(peer, twin)
    if case is None:
        return
    for name, variable in zip(list(case.operands)[1:], ("y", "mask"), strict=False):
        operand = case.operands[name]
        if not operand.dtype.startswith("float"):
            continue
        shape = operand.values.shape
        index = ", ".join(str(n // 2) for n in shape)
        asked = call(peer, case)
        moved = re.sub(rf"\b{variable}\b", f"{variable} {{}} h", asked)
        yield Probe(
            DEFECT, f"the gradient with respect to `{variable}` is not the slope of the value", "central differences",
            code_of(peer, _in_double(case), f"{variable}.requires_grad_()",
                  f"(g,) = torch.autograd.grad({asked}.sum(), {variable})",
                  f"h = torch.zeros_like({variable})", f"h[{index}] = 1e-3",
                  f"slope = ({moved.format('+')} - {moved.format('-')}).sum().item() / 2e-3",
                  f"got = g[{index}].item()", printed("slope if abs(got - slope) <= 0.02 * abs(slope) + 1e-5 else got",
                                                      "slope")),
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
                code_of(peer, mixed, f'print(f"got {{{call(peer, mixed)}.dtype}}, expected {{x.dtype}}")'),
                error_is_right=True,
            )  # fmt: skip


def large_sizes(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes whose sums exceed the range of float16, or the integers that float32 represents exactly."""
    case = example(peer, twin)
    if case is None:
        return
    for dtype, count in (("float16", 70000), ("float32", 2**24 + 2**22)):
        if dtype == "float32" and (case.input.values.shape[1] * len(twin.operands) > 4 or "num_bins" in twin.options):
            return  # too much memory: the histogram needs a row of bins for each voxel
        made, double = [peer.head, ""], call(peer, case)
        for variable, (name, operand) in zip(VARIABLES, case.operands.items(), strict=False):
            integer = operand.dtype == "int64"
            channels = (
                peer.channels if name == "input" or (name == "target" and not integer) else operand.values.shape[1]
            )
            shape = (1, channels, *[1] * (operand.values.ndim - 3), count)
            kind = "int64" if integer else dtype
            if twin.operands[0] == "input":
                numbers = (
                    f"torch.full({shape}, 0.5, dtype=torch.{dtype})"
                    if name == "input"
                    else (f"torch.ones({shape}, dtype=torch.{kind})")
                )
            else:
                step = 3 if variable == "x" else 5
                numbers = f"(torch.arange({count}) % {step}).to(torch.{dtype}).expand({shape})"
            made.append(f"{variable} = {numbers}")
            if not integer:
                double = re.sub(rf"\b{variable}\b", f"{variable}.double()", double)
        made.append(f"loss = {peer.expression(_of_classes(case.options, peer.channels))}")
        made += [
            f"got, want = {call(peer, case)}.double().mean(), {double}.mean()",
            "off = ((got - want) / want).abs().item()",
            'print("got", "at most" if off <= 0.01 else "more than", "1 % of error, expected at most 1 % of error")',
        ]
        limit = "65504, the largest float16" if dtype == "float16" else "2^24"
        sort, source = (OUTSIDE, HALF) if dtype == "float16" else (DEFECT, "float64 gives the right value")
        yield Probe(
            sort, f"in {dtype}, the value is wrong if sums exceed {limit}", source, "\n".join(made),
            error_is_right=True, traits=("sums in " + dtype,),
        )  # fmt: skip


def _of_classes(options: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return the options with a matrix of distances between this number of classes."""
    unit = [[float(i != j) for j in range(classes)] for i in range(classes)]
    return {n: unit if n == "dist_matrix" else v for n, v in options.items()}


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
                printed(f"{asked}.item()", f"{asked.replace('loss(', 'each(')}.{name}().item()")]  # fmt: skip
        yield Probe(
            DEFECT, f'`reduction="{name}"` is not the {name} of `reduction="none"`',
            peer.quotes.get("`reduction`", "its documentation of `reduction`"), "\n".join(code),
            error_is_right=True, traits=("`reduction`",),
        )  # fmt: skip


# Options under which the mean of a batch is not the mean of its items, because voxels are counted over the batch.
COUNTED_TOGETHER = ("batch", "ignore_index", "weight", "reduction")


def items_alone(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of whether an item has the same loss alone as in a batch, by the mean over the items."""
    rows = [{}, *({name: value} for name, values in twin.options.items() for value in values[1:]
                  if name not in COUNTED_TOGETHER)]  # fmt: skip
    for row in rows:
        case = None if peer.options.get("batch") else example(peer, twin, row, items=2)
        if case is None or len(twin.operands) == 1:
            continue
        asked = call(peer, case)
        alone = [_doubled(asked, ("x", "y", "mask"), form) for form in ("{0}[:1]", "{0}[1:]")]
        options = "".join(f", with `{peer.theirs(n)}={label(v)}`" for n, v in row.items())
        yield Probe(
            DEFECT, f"the loss of an item depends on the rest of the batch{options}",
            peer.quotes.get(
                "the rest of the batch",
                "its documentation of `reduction`: the mean is the sum divided by the number of elements",
            ),
            code_of(peer, case, printed(f"{asked}.item()", f"(({' + '.join(alone)}) / 2).item()")),
            error_is_right=True, traits=("the rest of the batch",),
        )  # fmt: skip


def documented_range(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield probes of whether the value stays in the range that the documentation names."""
    if peer.range_source is None or peer.lowest is None or peer.highest is None:
        return
    case = example(peer, twin)
    if case is None:
        return
    asked = call(peer, case)
    for what, changed in RANGES.items():
        code = [*lines(peer, case)[:-1], changed, lines(peer, case)[-1], f"value = {asked}.item()",
                f"inside = {peer.lowest - SLACK} <= value <= {peer.highest + SLACK}",
                f'print(f"got {{value:.6g}}, expected " + (f"{{value:.6g}}" if inside else '
                f'"a value in [{peer.lowest:g}, {peer.highest:g}]"))']  # fmt: skip
        yield Probe(
            DEFECT, f"the value is outside its documented range{what}", peer.range_source, "\n".join(code),
            error_is_right=True, traits=("range",),
        )  # fmt: skip


# The inputs whose value is compared with the range, by the words that are added to a finding.
RANGES = {"": "", ", with a contrast of 1 at 4000": "x, y = 4000 + x, 4000 + y"}
SLACK = 1e-3


# Options that cannot matter: the loss with the first ones must be the loss with the second ones.
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
                    printed(asked, asked.replace("loss(", "plain("))]  # fmt: skip
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
    rows += [{name: value} for name, values in twin.options.items() for value in values[1:]]
    first = [{name: values[1]} for name, values in twin.options.items() if len(values) > 1]
    rows += [a | b for a, b in combinations(first, 2)]
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
        named = [f"`{peer.theirs(n)}={label(v)}`" for n, v in row.items()]
        listed = f", with {' and '.join(named)}" if named else ""
        yield _not_zero(peer, case.with_values(input=wrong), f"a wrong prediction costs nothing{listed}", tuple(row))


def _not_zero(peer: Peer, case: Case, what: str, traits: tuple[str, ...]) -> Probe:
    asked = f"{call(peer, case)}.sum()"
    return Probe(
        DEFECT, what, "a wrong prediction must cost something",
        code_of(peer, case, f"value = {asked}", "(g,) = torch.autograd.grad(value, x)",
              "zero = value.abs().item() < 1e-4 and g.abs().max().item() < 1e-6",
              'print(f"got {value.item():.6g}, expected more than 0" if zero else "got a cost, expected a cost")',
              gradient=True),
        traits=traits, error_is_right=True,
    )  # fmt: skip


def probes(peer: Peer, twin: Twin) -> Iterator[Probe]:
    """Yield all probes of a loss."""
    for each in (
        module, memory, mutable_options, other_gradients, result_types, large_sizes, reductions, items_alone,
        options_without_effect, stationary_mistakes, documented_range, bad_arguments,
    ):  # fmt: skip
        yield from each(peer, twin)
